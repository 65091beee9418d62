"""A hook of mkdocs: what a page says of files outside of `docs/` is kept as text, as they are not on the site."""

from __future__ import annotations

import re
from typing import Any, Final

_OUTSIDE: Final = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turns links to files of the repository into their names."""
    return _OUTSIDE.sub(r"\1 (`\2` in the repository)", markdown)
