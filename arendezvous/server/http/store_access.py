"""Serves the resources of the store: asks the keyspace, compares entity tags, and makes changes once.

Entity tags and the conditions on them are those of RFC 9110, section 13: compare-and-set as HTTP has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import anyio
from aiohttp import web

from arendezvous.keyspace.grants import Grant
from arendezvous.keyspace.host import Caller
from arendezvous.keyspace.messages import Get, StoreRequest
from arendezvous.keyspace.values import PIECE, Pieces
from arendezvous.server.http.access import forbidden, grant_of
from arendezvous.server.http.pieces import PiecesBody
from arendezvous.server.http.repeats import REPEATS, Outcome
from arendezvous.server.http.responses import Problem
from arendezvous.server.http.routes import CONTEXT, OCTETS
from arendezvous.server.tcp.paced import cut
from arendezvous.wire.http.names import KEYS, QUEUES

PATIENCE: Final = 10.0  # seconds that an answer waits for what it may tell of to be recorded
_TAG: Final = re.compile(r'[ \t]*(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"[ \t]*(?:,|$)')


class StoreAccess:
    """One request as a client of the keyspace, which asks only what its token is good for."""

    def __init__(self, request: web.Request, caller: Caller) -> None:
        self.context = request.app[CONTEXT]
        self.grant = grant_of(request)
        self._caller = caller

    def ask(self, message: StoreRequest) -> Any:
        """Returns the reply, None if there is none yet; a 403 if the token is not good for it."""
        require(self.grant, message)
        return self._caller.ask(message)

    async def delivered(self) -> Any:
        """Returns the reply to what was asked last, once there is one. Cancellation: safe."""
        return await self._caller.delivered()

    def awaited(self) -> set[bytes]:
        """The keys that are still missing of those that were waited for last."""
        return set(self.context.keys.keyspace.awaited(self._caller.number))

    def read(self, key: bytes) -> tuple[bytes | Pieces | None, int]:
        """The value of a key, and its revision; None and 0 if it is absent."""
        value: bytes | Pieces | None = self.ask(Get(key)).value
        return value, self.revision(key)

    def revision(self, key: bytes) -> int:
        """The revision of a key; 0 if it is absent."""
        return self.context.keys.keyspace.revision_of(key)


def require(grant: Grant, message: StoreRequest) -> None:
    """Checks, before a body is read, that a token is good for asking this of the store; a 403 if not."""
    if why := grant.why_not(message):
        raise forbidden(grant, f"not for it: {why}")


@contextmanager
def store_access(request: web.Request) -> Iterator[StoreAccess]:
    """Makes the request a client of the keyspace while the block runs; what it waits for ends with it."""
    keys = request.app[CONTEXT].keys
    caller = Caller(keys, in_pieces=True)
    try:
        yield StoreAccess(request, caller)
    finally:
        keys.detach(caller.number)


async def change(
    request: web.Request, body: bytes, act: Callable[[StoreAccess], Outcome]
) -> web.StreamResponse:
    """Answers with what comes of `act`, which is carried out once for each idempotency key."""
    with store_access(request) as store:

        async def run() -> Outcome:
            return act(store)

        outcome = await request.app[REPEATS].once(request, body, run)
        assert outcome is not None  # noqa: S101 - `run` never awaits, so there is never another one under way
        return outcome.response()


async def once_recorded(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Returns the answer of a resource of the store once all that it may tell of is recorded.

    A 503 if that takes longer than `PATIENCE`; that of another resource at once. Cancellation: safe.
    """
    if not request.path.startswith((KEYS, QUEUES)):
        return response
    context = request.app[CONTEXT]
    with anyio.move_on_after(PATIENCE):
        await context.keys.settled()
        return response
    records = context.coordinator.records
    why = (records and records.commits.obstacle) or f"that has taken {PATIENCE:g} s"
    detail = f"the server cannot record what has changed in the store: {why}; ask again"
    return Problem(503, detail, "not-recorded", {"Retry-After": "1"}).response()


def value_answer(
    request: web.Request, value: bytes | Pieces, headers: Mapping[str, str], *, is_stored: bool = True
) -> web.Response:
    """The answer with a value; a long one is sent in pieces, and not copied.

    It is charged to the store until then, if it `is_stored` there.
    """
    fields = {**headers, "Content-Type": OCTETS}
    if is_stored and len(value) > PIECE:
        body = PiecesBody(request, cut(value), len(value), OCTETS, reading=[value])
        return web.Response(body=body, headers=fields)
    fields["Content-Length"] = str(len(value))  # aiohttp would not tell it to HEAD if it is 0
    return web.Response(body=value if isinstance(value, bytes) else value.whole(), headers=fields)


def etag_of(request: web.Request, revision: int) -> str:
    """The tag of a key's value: its revision, and the start of the server that counts them."""
    return f'"{revision}-{request.app[CONTEXT].server_id}"'


def tag_header(request: web.Request, revision: int) -> dict[str, str]:
    """The header that tells the present tag; none if the key is absent."""
    return {"ETag": etag_of(request, revision)} if revision else {}


@dataclass(frozen=True, slots=True)
class Tags:
    """Holds what an ``If-Match`` or ``If-None-Match`` names."""

    strong: frozenset[str]  # without ``W/``, quotes included
    weak: frozenset[str]  # with it
    any: bool = False  # whether it is ``*``: every value there may be

    @classmethod
    def of(cls, request: web.Request, header: str) -> Self | None:
        """Reads what the header names; None without one, a 400 if it is malformed."""
        values = request.headers.getall(header, None)
        if values is None:
            return None
        text = ",".join(values).strip()
        if text == "*":
            return cls(frozenset(), frozenset(), any=True)
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


def require_match(request: web.Request, revision: int) -> None:
    """Checks ``If-Match`` against the present revision (0: absent): a 412 with the present tag, or a 400."""
    match = Tags.of(request, "If-Match")
    if match is not None and not match.match(request, revision, strong=True):
        what = "has another tag now, in the ETag of this answer" if revision else "is not there"
        detail = f"If-Match does not hold: the key {what}"
        raise Problem(412, detail, "condition-failed", tag_header(request, revision))


def require_conditions(request: web.Request, revision: int) -> None:
    """Checks the conditions of a request that changes something, as `require_match` does the first."""
    none_match = Tags.of(request, "If-None-Match")
    require_match(request, revision)
    if none_match is not None and none_match.match(request, revision, strong=False):
        detail = "If-None-Match does not hold: the key is there, with the tag in the ETag of this answer"
        raise Problem(412, detail, "condition-failed", tag_header(request, revision))
