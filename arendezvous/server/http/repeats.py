"""Requests that are sent again after a lost answer: each is carried out once, and answered the same way.

A client that changes something sends an ``Idempotency-Key``, a text that it never uses for another request.
What came of the request is kept for a while, within limits; a repetition gets it instead of being carried
out, and one that comes while the first is still waiting shares its end. What changed nothing is not kept.
The header's meaning is that of the IETF's draft "The Idempotency-Key HTTP Header Field".
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import anyio
import msgspec
from aiohttp import web

from arendezvous.server.http.access import Requester, requester_of
from arendezvous.server.http.requests import target_of
from arendezvous.server.http.responses import NO_STORE, Problem
from arendezvous.server.http.routes import CONTEXT
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER, SERVER_HEADER

MAX_COUNT: Final = 64 * 1024  # outcomes that are kept at once
MAX_BYTES: Final = 64 * 1024 * 1024  # of all of them
MAX_AGE: Final = 900.0  # seconds after its last use for which one is kept
AT_ONCE: Final = 64  # of what is kept of a client's, one in so many is forgotten at once
MAX_NAME: Final = 128
_OVERHEAD: Final = 512  # bytes, roughly, of an outcome without its body

Name = tuple[bytes, str]  # the digest of a token, as the keys of one bearer are not another's, and the key


class Outcome(msgspec.Struct, frozen=True):
    """An answer that can be given again, with further headers besides the usual."""

    status: int
    body: bytes = b""
    content_type: str = "application/octet-stream"
    headers: dict[str, str] = {}

    def response(self) -> web.Response:
        """The answer itself."""
        headers = NO_STORE | self.headers
        if self.status == HTTPStatus.NO_CONTENT:
            return web.Response(status=self.status, headers=headers)
        return web.Response(
            status=self.status, body=self.body, content_type=self.content_type, headers=headers
        )


class _Kept(msgspec.Struct):
    request: bytes
    outcome: Outcome
    used: float
    client: Requester


@dataclass(slots=True)
class _Running:
    request: bytes
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended: anyio.Event = field(default_factory=anyio.Event)


class Repeats:
    """Remembers what came of requests with an idempotency key, and those that are under way.

    If too much is kept, the client of whose requests the most is kept loses some of it, the oldest: whatever
    one client does, it pushes out what came of its own requests. The latest is kept in any case.

    Its fields:
        _bytes: Bytes of all that are kept.
        _kept: Name to outcome, the one that was used the longest ago first.
        _by_client: Client to the names of its outcomes, the one that was kept first in front.
        _sizes: Client to the bytes of its outcomes.
        _running: Name to what is under way.
    """

    def __init__(
        self, max_count: int = MAX_COUNT, max_bytes: int = MAX_BYTES, max_age: float = MAX_AGE
    ) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._bytes = 0
        self._kept: OrderedDict[Name, _Kept] = OrderedDict()
        self._by_client: dict[Requester, dict[Name, None]] = {}
        self._sizes: dict[Requester, int] = {}
        self._running: dict[Name, _Running] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def once(
        self,
        request: web.Request,
        body: bytes,
        run: Callable[[], Awaitable[Outcome | None]],
        seconds: float = 0.0,
    ) -> Outcome | None:
        """Returns what comes of `run`, or came of it when the request was made before, with the same key.

        `run` carries it out, and awaits nothing after its last effect; None says that nothing was changed.
        Another request of the same key that is under way is waited for, for some `seconds`; if it is
        cancelled, that ends its `run`, and this one takes its place. A 422 if it was another request.
        """
        name = name_of(request)
        if name is None:
            return await run()
        marked = mark_of(request, body)
        with anyio.move_on_after(seconds):
            while (running := self._running.get(name)) is not None:
                _same(running.request, marked)
                await running.ended.wait()
        kept = self._look(name)
        if kept is not None:
            _same(kept.request, marked)
            return kept.outcome
        if name in self._running:
            return None
        running, outcome = self._running.setdefault(name, _Running(marked)), None
        try:
            with running.scope:
                outcome = await run()
        finally:
            del self._running[name]
            running.ended.set()
        if outcome is not None:
            self.keep(name, marked, outcome, requester_of(request))
        return outcome

    def end(self, name: Name, marked: bytes, instead: Outcome, client: Requester) -> Outcome | None:
        """Has further requests of this key answered with `instead`; one that is under way is ended.

        Returns the answer before, None if there was none; a 422 if the key was used for another request.
        """
        running, kept = self._running.get(name), self._kept.get(name)
        if kept is not None:
            _same(kept.request, marked)
        if running is not None:
            _same(running.request, marked)
            running.scope.cancel()
        self.keep(name, marked, instead, client)
        return None if kept is None else kept.outcome

    def keep(self, name: Name, marked: bytes, outcome: Outcome, client: Requester) -> None:
        """Keeps what came of the request with this mark, of this client."""
        self._forget(name)
        self._kept[name] = _Kept(marked, outcome, asyncio.get_running_loop().time(), client)
        self._by_client.setdefault(client, {})[name] = None
        self._sizes[client] = self._sizes.get(client, 0) + _size(outcome)
        self._bytes += _size(outcome)
        while self._is_old():
            self._forget(next(iter(self._kept)))
        while len(self._kept) > 1 and (len(self._kept) > self._max_count or self._bytes > self._max_bytes):
            self._make_room(name)

    def _make_room(self, latest: Name) -> None:
        """Forgets some of what is kept of the client of whose requests the most is; never the latest."""
        if len(self._kept) > self._max_count:
            largest = max(self._by_client, key=lambda client: len(self._by_client[client]))
        else:
            largest = max(self._sizes, key=self._sizes.__getitem__)
        names = [name for name in self._by_client[largest] if name != latest]
        if not names:  # the latest alone is too large
            names = [next(name for name in self._kept if name != latest)]
        for name in names[: max(1, len(names) // AT_ONCE)]:
            self._forget(name)

    def _look(self, name: Name) -> _Kept | None:
        while self._kept and self._is_old():
            self._forget(next(iter(self._kept)))
        kept = self._kept.get(name)
        if kept is not None:
            kept.used = asyncio.get_running_loop().time()
            self._kept.move_to_end(name)
        return kept

    def _is_old(self) -> bool:
        oldest = next(iter(self._kept.values()))
        return oldest.used + self._max_age < asyncio.get_running_loop().time()

    def _forget(self, name: Name) -> None:
        kept = self._kept.pop(name, None)
        if kept is None:
            return
        size, names = _size(kept.outcome), self._by_client[kept.client]
        self._bytes -= size
        self._sizes[kept.client] -= size
        del names[name]
        if not names:
            del self._by_client[kept.client], self._sizes[kept.client]


REPEATS: Final = web.AppKey("repeats", Repeats)


def name_of(request: web.Request) -> Name | None:
    """The idempotency key of a request, and whose it is; None without one, a 400 if it is malformed.

    A 409 if the request was made before, to a server that has ended since.
    """
    text = request.headers.get(IDEMPOTENCY_HEADER)
    asked = request.headers.get(SERVER_HEADER)
    if asked is not None and asked != request.app[CONTEXT].server_id:
        detail = (
            f"the request is meant for the server {asked[:40]!r}, which has ended since: whether it was"
            " carried out there is not known here"
        )
        raise Problem(409, detail, "other-server")
    if text is None:
        return None
    if not 0 < len(text) <= MAX_NAME or not text.isascii() or not text.isprintable():
        expected = f"1 to {MAX_NAME} printable characters of ASCII, such as a UUID"
        raise Problem(400, f"{IDEMPOTENCY_HEADER} is {text[:80]!r}; expected are {expected}", "bad-repeat")
    return requester_of(request).token, text


def mark_of(request: web.Request, body: bytes, query: bytes | None = None) -> bytes:
    """Makes what tells requests apart: all but their headers, and for how long they wait.

    A `query` stands for its own, if that of another request of the same path is wanted.
    """
    path, own = target_of(request)
    parts = (own if query is None else query).split(b"&")
    essence = b"&".join(sorted(part for part in parts if not part.startswith(b"wait=")))
    mark = hashlib.blake2b(digest_size=16)
    for part in (request.method.encode(), path, essence, body):
        mark.update(b"%d:" % len(part))
        mark.update(part)
    return mark.digest()


def _same(one: bytes, other: bytes) -> None:
    if one != other:
        detail = f"this {IDEMPOTENCY_HEADER} was used for another request; draw a new one for each request"
        raise Problem(422, detail, "repeat-differs")


def _size(outcome: Outcome) -> int:
    return _OVERHEAD + len(outcome.body)
