"""Entity tags and the conditions on them (RFC 9110, section 13): compare-and-set as HTTP has it."""

from __future__ import annotations

import re
from typing import Final, Self

from aiohttp import web

from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.problem import Problem

_TAG: Final = re.compile(r'[ \t]*(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"[ \t]*(?:,|$)')


def etag_of(request: web.Request, revision: int) -> str:
    """The tag of a key's value: its revision, and the start of the server that counts them."""
    return f'"{revision}-{request.app[CONTEXT].server_id}"'


def tag_header(request: web.Request, revision: int) -> dict[str, str]:
    """The header that tells the present tag; none if the key is absent."""
    return {"ETag": etag_of(request, revision)} if revision else {}


class Tags:
    """What an ``If-Match`` or ``If-None-Match`` names.

    Attributes:
        strong: The tags without ``W/``, quotes included.
        weak: Those with it.
        any: Whether it is ``*``: every value there may be.
    """

    def __init__(self, strong: frozenset[str], weak: frozenset[str], *, any_: bool = False) -> None:
        self.strong = strong
        self.weak = weak
        self.any = any_

    @classmethod
    def of(cls, request: web.Request, header: str) -> Self | None:
        """What the header names; None without one.

        Raises:
            Problem: 400, it is malformed.
        """
        values = request.headers.getall(header, None)
        if values is None:
            return None
        text = ",".join(values).strip()
        if text == "*":
            return cls(frozenset(), frozenset(), any_=True)
        strong: set[str] = set()
        weak: set[str] = set()
        at = 0
        while at < len(text):
            match = _TAG.match(text, at)
            if match is None:
                expected = 'tags in double quotes with commas between, such as "17-3f2a", or *'
                raise Problem(400, f"{header} is {text[:80]!r}; expected are {expected}", "bad-condition")
            (weak if match[1] else strong).add(f'"{match[2]}"')
            at = match.end()
        return cls(frozenset(strong), frozenset(weak))

    def match(self, request: web.Request, revision: int, *, strong: bool) -> bool:
        """Whether the value of this revision (0: none) is one of them; `strong` counts no weak tags."""
        if not revision or self.any:
            return bool(revision) and self.any
        tag = etag_of(request, revision)
        return tag in self.strong or (not strong and tag in self.weak)


def require(request: web.Request, revision: int) -> None:
    """Checks the conditions of a request that changes something, against the present revision (0: absent).

    Raises:
        Problem: 412, one of them does not hold; the answer has the present tag. 400, one is malformed.
    """
    match, none_match = Tags.of(request, "If-Match"), Tags.of(request, "If-None-Match")
    if match is not None and not match.match(request, revision, strong=True):
        what = "has another tag now, in the ETag of this answer" if revision else "is not there"
        raise Problem(
            412, f"If-Match does not hold: the key {what}", "condition-failed", tag_header(request, revision)
        )
    if none_match is not None and none_match.match(request, revision, strong=False):
        detail = "If-None-Match does not hold: the key is there, with the tag in the ETag of this answer"
        raise Problem(412, detail, "condition-failed", tag_header(request, revision))
