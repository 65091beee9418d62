"""Bodies of requests: read within limits for each client and for all, and decoded if that costs little."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import msgspec
from aiohttp import HttpVersion11, StreamReader, web

from arendezvous.errors import RendezvousSettingsError
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.http.access import Requester, requester_of
from arendezvous.server.http.connection import HttpConnection, connection_of
from arendezvous.server.http.responses import JSON, NO_STORE, Problem, of_error
from arendezvous.server.http.routes import CONTEXT, FORM
from arendezvous.server.tcp.sharing import TURN
from arendezvous.wire.http.names import parse_pairs

J = TypeVar("J")
T = TypeVar("T")
F = TypeVar("F")

MAX_REQUEST: Final = 64 * 1024  # bytes of what a run is asked, as for native sessions
MAX_STRUCTURED: Final = 16 * 1024 * 1024  # of JSON; decoding it takes 25 ms, and nobody else has a turn
MAX_FORM: Final = 1024 * 1024  # of a form, which takes ten times as long for each byte
MAX_FIELDS: Final = 64 * 1024  # of a form
MAX_KEYS: Final = 128 * 1024  # in JSON: as many as clients of the c10d protocol may name
MAX_QUOTES: Final = 4 * MAX_KEYS + 64  # around a key and a value each, and names of members
COUNTED_AT_ONCE: Final = 1024 * 1024
BODY_RATE: Final = 64 * 1024  # bytes a second below which a body is too slow, after a start
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class BodyBudget:
    """Counts the bytes in bodies of all requests that are under way, by client.

    One client may have no more than its share; if all of them have too many, whoever has the most loses the
    request that has been under way for the longest. So nobody is refused because of what another does.

    Fields:
        held: How many bytes there are.
        _requests: Client to its requests that have a body, the oldest first: by their identity, as they have
            no hash, each with its connection and the bytes of its body.
        _sums: Client to the bytes of all of these.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self.held = 0
        self._limits = limits
        self._requests: dict[Requester, dict[int, tuple[HttpConnection | None, int]]] = {}
        self._sums: dict[Requester, int] = {}

    def take(self, request: web.Request, size: int) -> None:
        """Takes `size` bytes more for `request`; a 503 if its client has too many, or all clients have."""
        client, limits = requester_of(request), self._limits
        total = self._sums.get(client, 0) + size
        if total > limits.max_client_bodies:
            raise _busy(f"your requests under way have bodies of {total} bytes")
        while self.held + size > limits.max_bodies:
            largest = max(self._sums, key=self._sums.__getitem__, default=client)
            if self._sums.get(largest, 0) <= total:
                raise _busy("the bodies of all requests under way are too long together")
            oldest, (connection, kept) = next(iter(self._requests[largest].items()))
            self._forget(largest, oldest)
            if connection is not None:
                connection.drop(f"the bodies of all requests are too long together; its has {kept} bytes")
        requests = self._requests.setdefault(client, {})
        connection, before = requests.get(id(request)) or (connection_of(request), 0)
        requests[id(request)] = (connection, before + size)
        self._sums[client] = total
        self.held += size

    def give_back(self, request: web.Request) -> None:
        """Gives back all that was taken for `request`; may be called for any."""
        if self.held:
            self._forget(requester_of(request), id(request))

    def _forget(self, client: Requester, request: int) -> None:
        requests = self._requests.get(client, {})
        _, size = requests.pop(request, (None, 0))
        if not size:
            return
        self.held -= size
        self._sums[client] -= size
        if not requests:
            del self._requests[client], self._sums[client]


BUDGET: Final = web.AppKey("bodies", BodyBudget)


async def read_body(request: web.Request, most: int | None = None) -> bytes:
    """Reads the body, of at most `most` bytes; None stands for the server's `max_body`.

    A 413 if it is too long, 408 if it comes too slowly, 503 if those of all requests together are too long,
    400 if it is cut off, or malformed, and 415 if it is encoded.
    """
    app = request.app
    limits, budget = app[CONTEXT].limits, app[BUDGET]
    most = limits.max_body if most is None else min(most, limits.max_body)
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        detail = f"the body is encoded as {encoding[:40]!r}; send it as it is"
        raise Problem(415, detail, "bad-body", {"Accept-Encoding": "identity"})
    content = request.content
    if not content.is_eof():
        if (request.content_length or 0) > most:
            raise _too_long(most)
        is_waiting = request.headers.get("Expect", "").lower() == "100-continue"
        if is_waiting and request.version == HttpVersion11 and request.transport is not None:
            request.transport.write(_CONTINUE)  # by now it is known that the body may come
    connection = connection_of(request)
    came = io.BytesIO()  # which gives what was written without a copy; to join 64 MiB takes 0.1 s
    total, began = 0, asyncio.get_running_loop().time()
    try:
        while not content.at_eof():
            grace = limits.handshake_timeout
            chunk = content.read_nowait() if content.is_eof() else await _more(content, began, grace, total)
            total += len(chunk)
            if total > most:
                raise _too_long(most)
            budget.take(request, len(chunk))
            if connection is not None:
                connection.body_read(len(chunk), is_over=content.is_eof())
            came.write(chunk)
    except (web.RequestPayloadError, web.HTTPException) as error:
        raise Problem(400, f"the body is cut off or malformed: {error}", "bad-body") from error
    return came.getvalue()


async def _more(content: StreamReader, began: float, grace: float, came: int) -> bytes:
    """Reads what comes next of a body, of which `came` bytes have come since `began`.

    It has `grace` seconds, and one more for each `BODY_RATE` bytes: else a 408.
    """
    try:
        async with asyncio.timeout_at(began + grace + came / BODY_RATE):
            return await content.readany()
    except TimeoutError as error:
        seconds = asyncio.get_running_loop().time() - began
        detail = (
            f"of the body only {came} bytes have come in {seconds:.3g} s;"
            f" after {grace:g} s at least {BODY_RATE} bytes a second are expected"
        )
        raise Problem(408, detail, "slow-body", {"Connection": "close"}) from error


async def read_structured(request: web.Request) -> bytes:
    """Reads a body for `decode_body`, see `read_body`."""
    body = await read_body(request, MAX_FORM if request.content_type == FORM else MAX_STRUCTURED)
    if len(body) > COUNTED_AT_ONCE:
        await request.app[CONTEXT].shared.turns.wait(TURN)
    return body


async def read_json(request: web.Request) -> bytes:
    """Reads JSON of at most `MAX_REQUEST` bytes, whatever it is called: curl says that it is a form."""
    return await read_body(request, MAX_REQUEST)


@contextmanager
def understood() -> Iterator[None]:
    """Answers with 400 if what a request has in its body is not understood, or can never be allowed."""
    try:
        yield
    except RendezvousSettingsError as error:
        raise Problem(400, error.message, "bad-body", members=of_error(error).members) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        detail = f"the body is not the JSON that is expected: {error}; /openapi.json has its schema"
        raise Problem(400, detail, "bad-body", NO_STORE) from error


def decode_body(
    request: web.Request,
    body: bytes,
    kind: type[J],
    from_json: Callable[[J], T],
    from_form: Callable[[list[tuple[bytes, bytes]]], F],
) -> T | F:
    """Decodes a body that is JSON, with bytes in base64, or a form, with everything percent-encoded.

    The JSON has to be a struct, `kind`; `from_form` takes the fields of a form, and raises
    `ValueError` if they are not as expected. A 400 for what is something else, a 415 for what is neither.
    """
    try:
        if request.content_type == JSON:
            _check_strings(body)
            return from_json(msgspec.json.decode(body, type=kind))
        if request.content_type == FORM:
            return from_form(parse_pairs(body, MAX_FIELDS))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not as expected: {error}", "bad-body") from error
    detail = f"the body is {request.content_type[:80]!r}; expected is {JSON} or {FORM}"
    raise Problem(415, detail, "bad-body")


def _check_strings(body: bytes) -> None:
    """Raises `ValueError` if JSON has too many strings, before all of them are made."""
    quotes = 0
    for start in range(0, len(body), COUNTED_AT_ONCE):
        quotes += body.count(b'"', start, start + COUNTED_AT_ONCE)
        if quotes > MAX_QUOTES:
            raise ValueError(f"it has too many strings; at most {MAX_KEYS} keys are allowed in one request")


def one_of_each(fields: list[tuple[bytes, bytes]], *names: str) -> list[bytes]:
    """The values of the fields `names`; `ValueError` unless there is exactly one of each, and no other."""
    if sorted(name for name, _ in fields) != sorted(name.encode() for name in names):
        given = ", ".join(name.decode(errors="replace")[:40] for name, _ in fields[:8])
        expected = f"{', '.join(names)}, each once"
        raise ValueError(f"the form has the fields {given or 'none'}; expected are {expected}")
    values = dict(fields)
    return [values[name.encode()] for name in names]


def _too_long(most: int) -> Problem:
    return Problem(413, f"the body is too long; at most {most} bytes are allowed", "too-long")


def _busy(what: str) -> Problem:
    return Problem(503, f"{what}; try again", "busy", {"Retry-After": "1"})
