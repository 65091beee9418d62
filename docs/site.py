"""A hook of mkdocs: links to files that are not on the site become their names."""

from __future__ import annotations

import posixpath
import re
from typing import Any, Final

_LINK: Final = re.compile(r"(?<!!)\[([^\]]*)\]\(([^):#]+)(?:#[^)]*)?\)")
_ON_THE_SITE: Final = re.compile(r"docs/(?!examples/).*\.(md|png|svg)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to files of the repository into their names."""
    here = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def named(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link[2]))
        return link[0] if _ON_THE_SITE.fullmatch(target) else f"{link[1]} (`{target}` in the repository)"

    return _LINK.sub(named, markdown)
