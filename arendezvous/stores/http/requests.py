"""The requests of a store over HTTP: few at a time, and sent again when that is safe.

Every request that changes something has an idempotency key, so the server carries it out once, however often
it is sent. What the key is known for ends with the server: a request that may have been carried out is sent
again with that server's name, and another one refuses it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Final

import anyio

from arendezvous.errors import (
    RendezvousConnectionError,
    RendezvousPermissionError,
    StoreError,
    StoreFullError,
)
from arendezvous.net.backoff import Backoff
from arendezvous.net.http_client import HttpClient, UnansweredError
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER, KEYS, SERVER_HEADER

POLL: Final = 25.0  # seconds that one request waits at most: proxies end those that are silent for a minute
MAX_REQUESTS: Final = 64  # under way at once, but for those that wait: more would be no faster
BACKOFF: Final = Backoff(first=0.02, last=1.0)
_LEAST_SECONDS: Final = 0.01
_EXPECTED: Final = (404, 412)  # refusals that are answers of a store
_DENIED: Final = (401, 403)
_FULL: Final = 507


class StoreRequests:
    """Sends requests to one server, for one event loop; any number at the same time.

    Args:
        client: The way to the server.
        read_timeout: After how many seconds without an answer a request is given up.

    Its fields:
        _server: Which start of the server has answered last; empty: none yet.
        _turns: Taken by each request that does not wait.
        _name: What all idempotency keys begin with.
        _count: How many were drawn.
    """

    def __init__(self, client: HttpClient, read_timeout: float) -> None:
        self._client = client
        self._read_timeout = read_timeout
        self._turns = asyncio.Semaphore(MAX_REQUESTS)
        self._server = ""
        self._name = secrets.token_hex(12)
        self._count = 0

    def draw_name(self) -> str:
        """Returns a new idempotency key."""
        self._count += 1
        return f"{self._name}-{self._count:x}"

    async def connect(self, seconds: float | None) -> None:
        """Returns once the server answers.

        Raises:
            RendezvousConnectionError: It did not within `seconds`.
            RendezvousPermissionError: The token is missing or wrong.
        """
        patience = math.inf if seconds is None else seconds
        answer = await self._send("GET", f"{KEYS}?limit=0", b"", {}, "connect", 0.0, patience)
        _require_good(answer, "connect")

    async def look(self, path: str, doing: str, body: bytes = b"", *, wait_until: float = 0.0) -> HttpAnswer:
        """Sends a request that changes nothing: a GET, or a POST of JSON if there is a body.

        Args:
            path: The path and the query.
            doing: What is being done, for errors.
            body: The body.
            wait_until: Until when, by the event loop's clock, the server may let it wait; it may end earlier.

        Raises:
            RendezvousConnectionError: There was no answer for the `read_timeout`.
            RendezvousPermissionError: The token is missing, wrong, or not good for this.
            StoreError: The server refuses the request.
        """
        verb, headers = ("POST", {"Content-Type": "application/json"}) if body else ("GET", {})
        return await self._take_turn(verb, path, body, headers, doing, wait_until)

    async def change(
        self,
        verb: str,
        path: str,
        doing: str,
        body: bytes = b"",
        *,
        name: str = "",
        kind: str = "application/octet-stream",
        wait_until: float = 0.0,
    ) -> HttpAnswer:
        """Sends a request that changes something; it is carried out once.

        Args:
            verb: The method.
            path: The path and the query.
            doing: What is being done, for errors.
            body: The body.
            name: The idempotency key; empty draws one.
            kind: The content type of the body.
            wait_until: See `look`.

        Raises:
            RendezvousConnectionError: There was no answer for the `read_timeout`, or only one from another
                server; the request may have been carried out.
            RendezvousPermissionError: The token is missing, wrong, or not good for this.
            StoreError: The server refuses the request.
        """
        if not self._server:
            await self.connect(self._read_timeout)
        headers = {"Content-Type": kind, IDEMPOTENCY_HEADER: name or self.draw_name()}
        return await self._take_turn(verb, path, body, headers, doing, wait_until)

    async def _take_turn(
        self, verb: str, path: str, body: bytes, headers: Mapping[str, str], doing: str, wait_until: float
    ) -> HttpAnswer:
        may_wait = wait_until > anyio.current_time()  # and then it must not keep others from theirs
        async with nullcontext() if may_wait else self._turns:
            answer = await self._send(verb, path, body, headers, doing, wait_until, self._read_timeout)
        _require_good(answer, doing)
        return answer

    async def _send(
        self,
        verb: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        doing: str,
        wait_until: float,
        patience: float,
    ) -> HttpAnswer:
        end, pauses = anyio.current_time() + patience, BACKOFF.start()
        server, in_doubt = self._server, False
        while True:
            began = anyio.current_time()
            wait = min(max(wait_until - began, 0.0), POLL)
            asked = f"{path}{'&' if '?' in path else '?'}wait={wait:.3f}" if wait else path
            limit = min(max(end - began, _LEAST_SECONDS), self._read_timeout) + wait
            sent = {**headers, SERVER_HEADER: server} if in_doubt else headers
            try:
                answer = await self._client.request(verb, asked, body, sent, limit=limit)
            except UnansweredError as error:
                in_doubt = in_doubt or (error.sent and IDEMPOTENCY_HEADER in headers)
                end += max(min(anyio.current_time() - began, wait), 0.0)  # that was waiting, not silence
                lasting = error.distrusted or error.foreign or error.misdirected
                if lasting or not await pauses.sleep(until=end):
                    raise self._unreachable(doing, error, in_doubt=in_doubt) from error
            else:
                self._server = answer.server
                return answer

    def _unreachable(
        self, doing: str, error: UnansweredError, *, in_doubt: bool
    ) -> RendezvousConnectionError:
        doubt = "; whether it was carried out is not known" if in_doubt else ""
        return RendezvousConnectionError(
            f"{doing}: {self._client.url} could not be reached: {error}{doubt}. Check the address, and that"
            " the server runs",
            endpoint=self._client.url,
            doing=doing,
        )


def _require_good(answer: HttpAnswer, doing: str) -> None:
    """Raises the error that the answer stands for, except for what a caller expects."""
    if answer.is_good or answer.status in _EXPECTED:
        return
    detail = f"{doing}: {answer.detail}"
    if answer.status in _DENIED:
        raise RendezvousPermissionError(detail, authenticated=answer.status == 403)
    if answer.status == _FULL:
        raise StoreFullError(detail, limit=getattr(answer.error(), "limit", 0))
    if answer.kind == "other-server":
        raise RendezvousConnectionError(detail, doing=doing)
    raise StoreError(detail)
