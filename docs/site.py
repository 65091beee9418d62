"""A hook of mkdocs: links to files outside of `docs/`, which are not on the site, become their names."""

from __future__ import annotations

import re
from typing import Any, Final

_OUTSIDE: Final = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turns links to files of the repository into their names."""
    return _OUTSIDE.sub(r"\1 (`\2` in the repository)", markdown)
