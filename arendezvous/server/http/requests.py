"""Reading requests: which run or key they name, what is in their query, and their bodies, within limits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import msgspec
from aiohttp import StreamReader, web

from arendezvous.coordinator.run import Run
from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.law.state import check_id
from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.responses import JSON, NO_STORE, Problem, of_error
from arendezvous.server.http.routes import FORM
from arendezvous.wire.http.names import MAX_KEY, parse_form, parse_pairs, quote_key, unquote

J = TypeVar("J")
T = TypeVar("T")

MAX_WAIT: Final = 3600.0
MAX_PARAMETERS: Final = 16
MAX_FIELDS: Final = 64 * 1024
MAX_REQUEST: Final = 64 * 1024  # bytes of what a run is asked, as for native sessions
MAX_STRUCTURED: Final = 32 * 1024 * 1024  # decoding a longer one would hold up everybody else
BODY_RATE: Final = 64 * 1024  # bytes a second below which a body is too slow, after a start


def run_id_of(request: web.Request) -> str:
    """The run that the path names; it need not exist.

    Raises:
        Problem: 400, it is no name of a run.
    """
    run_id = request.match_info["run_id"]
    try:
        check_id("run id", run_id)
    except RendezvousSettingsError as error:
        raise Problem(400, error.message, "bad-run-id") from error
    return run_id


def run_of(request: web.Request) -> Run:
    """The run that the path names.

    Raises:
        Problem: 404, there is none.
    """
    run_id = run_id_of(request)
    run = request.app[CONTEXT].coordinator.runs.get(run_id)
    if run is None:
        detail = f"there is no run {run_id!r} here; a run begins when its first node joins"
        members = {"error": RendezvousStateError.__name__, "data": {}}
        raise Problem(404, detail, "no-such-run", NO_STORE, members)
    return run


def target_of(request: web.Request) -> tuple[bytes, bytes]:
    """The path and the query, as they were sent: aiohttp's own view of them does not keep every byte."""
    target = request.raw_path.encode("utf-8", "surrogateescape")
    if not target.startswith(b"/"):  # the absolute form, as proxies are sent it
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    path, _, query = target.partition(b"?")
    return path, query


def key_of(request: web.Request, base: str) -> bytes:
    """The key that the path names, as the server stores it: with the slash that torch puts before each.

    Raises:
        Problem: 400, it is not percent-encoded, or too long.
    """
    path, _ = target_of(request)
    start = base.encode()
    if not path.startswith(start + b"/"):
        raise Problem(404, f"the path has to begin with {base}/, letter for letter", "no-such-resource")
    return checked_key(path[len(start) + 1 :])


def checked_key(text: bytes | str) -> bytes:
    """The key that is written percent-encoded, as the server stores it.

    Raises:
        Problem: 400, it is not percent-encoded, or too long.
    """
    try:
        key = unquote(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text)
    except ValueError as error:
        raise Problem(400, f"the key is not to be understood: {error}", "bad-key") from error
    return stored_key(key)


def stored_key(key: bytes) -> bytes:
    """The key as the server stores it.

    Raises:
        Problem: 400, it is too long.
    """
    if len(key) >= MAX_KEY:
        raise Problem(400, f"the key has {len(key)} bytes; at most {MAX_KEY - 1} are allowed", "bad-key")
    return b"/" + key


def shown_key(key: bytes) -> str:
    """A key, as the server stores it, the way it is written in a URL."""
    return quote_key(key[1:])


class Query:
    """The query of a request; what is not known in it is refused, so that nothing misspelt is overlooked.

    Args:
        request: The request.
        names: The parameters that are allowed.

    Raises:
        Problem: 400, there is another one, or one is there twice.
    """

    def __init__(self, request: web.Request, *names: str) -> None:
        _, query = target_of(request)
        try:
            pairs = parse_form(query, MAX_PARAMETERS)
        except ValueError as error:
            raise Problem(400, f"the query is not to be understood: {error}", "bad-query") from error
        self._values = dict(pairs)
        allowed = ", ".join(names) or "none"
        for name in self._values:
            if name not in names:
                raise bad_query(name, "is not a parameter of this resource", f"one of: {allowed}")
        if len(self._values) < len(pairs):
            raise Problem(400, "a parameter of the query is there twice; give each once", "bad-query")

    def raw(self, name: str) -> bytes | None:
        """The bytes of a parameter; None if it is absent."""
        return self._values.get(name)

    def text(self, name: str) -> str:
        """A parameter as text; empty if it is absent."""
        return self._values.get(name, b"").decode("utf-8", "replace")

    def texts(self) -> dict[str, str]:
        """All parameters as text; those that are empty are left out."""
        return {name: self.text(name) for name, value in self._values.items() if value}

    def seconds(self, name: str) -> float:
        """A parameter that is a number of seconds; 0 if it is absent.

        Raises:
            Problem: 400, it is something else.
        """
        text = self.text(name)
        try:
            seconds = float(text or 0)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= MAX_WAIT:
            raise bad_query(name, f"is {text[:40]!r}", f"a number of seconds from 0 to {MAX_WAIT:g}")
        return seconds

    def integer(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """A parameter that is an integer; `default` if it is absent.

        Raises:
            Problem: 400, it is something else, or absent without a default.
        """
        text = self.text(name)
        if not text and default is not None:
            return default
        if not text.removeprefix("-").isascii() or not text.removeprefix("-").isdigit() or len(text) > 20:
            raise bad_query(name, f"is {text[:40]!r}", f"an integer from {least} to {most}")
        if not least <= int(text) <= most:
            raise bad_query(name, f"is {text}", f"an integer from {least} to {most}")
        return int(text)


def bad_query(name: str, what: str, expected: str) -> Problem:
    """The answer to a query that is not as it has to be."""
    return Problem(400, f"{name[:80]!r} in the query {what}; expected is {expected}", "bad-query")


class BodyBudget:
    """The bytes in bodies of all requests that are under way.

    Attributes:
        held: How many there are.
    """

    def __init__(self) -> None:
        self.held = 0
        self._by_request: dict[int, int] = {}

    def take(self, request: web.Request, size: int, most: int) -> bool:
        """Takes `size` bytes more for `request`; False if that would be more than `most` altogether."""
        if self.held + size > most:
            return False
        self.held += size
        self._by_request[id(request)] = self._by_request.get(id(request), 0) + size
        return True

    def give_back(self, request: web.Request) -> None:
        """Gives back all that was taken for `request`."""
        self.held -= self._by_request.pop(id(request), 0)


BUDGET: Final = web.AppKey("bodies", BodyBudget)


async def read_body(request: web.Request, most: int | None = None) -> bytes:
    """Reads the body.

    Args:
        request: The request.
        most: Bytes allowed; None stands for the server's `max_body`.

    Raises:
        Problem: 413, it is too long; 408, it comes too slowly; 503, those of all requests together are too
            long; 400, it is cut off, or not in the encoding that it claims.
    """
    app = request.app
    limits, budget = app[CONTEXT].limits, app[BUDGET]
    most = limits.max_body if most is None else min(most, limits.max_body)
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        detail = f"the body is encoded as {encoding[:40]!r}; send it as it is"
        raise Problem(415, detail, "bad-body", {"Accept-Encoding": "identity"})
    content = request.content
    if not content.is_eof() and (request.content_length or 0) > most:
        raise _too_long(most)
    chunks: list[bytes] = []
    total, began = 0, asyncio.get_running_loop().time()
    try:
        while not content.at_eof():
            grace = limits.handshake_timeout
            chunk = content.read_nowait() if content.is_eof() else await _more(content, began, grace, total)
            total += len(chunk)
            if total > most:
                raise _too_long(most)
            if not budget.take(request, len(chunk), limits.max_bodies):
                detail = "the bodies of all requests under way are too long together; try again"
                raise Problem(503, detail, "busy", {"Retry-After": "1"})
            chunks.append(chunk)
    except (web.RequestPayloadError, web.HTTPException) as error:
        raise Problem(400, f"the body is cut off or malformed: {error}", "bad-body") from error
    return b"".join(chunks)


async def _more(content: StreamReader, began: float, grace: float, came: int) -> bytes:
    """Reads what comes next of a body, of which `came` bytes have come since `began`.

    Raises:
        Problem: 408, it comes too slowly: it has `grace` seconds, and one more for each `BODY_RATE` bytes.
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


async def read_json(request: web.Request) -> bytes:
    """Reads a body that is JSON, whatever it is called: curl says that it is a form.

    Raises:
        Problem: 413, it is longer than `MAX_REQUEST`; see `read_body`.
    """
    return await read_body(request, MAX_REQUEST)


@contextmanager
def understood() -> Iterator[None]:
    """Answers with 400 if what a request has in its body is not understood, or can never be allowed.

    Raises:
        Problem: 400, it is.
    """
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
    from_form: Callable[[list[tuple[bytes, bytes]]], T],
) -> T:
    """Decodes a body that is JSON, with bytes in base64, or a form, with everything percent-encoded.

    Args:
        request: The request, for its content type.
        body: The body.
        kind: What the JSON has to be: a struct.
        from_json: Makes the result of that.
        from_form: Makes the result of the fields of a form; raises `ValueError` if they are not as expected.

    Raises:
        Problem: 400, it is something else; 415, it is neither JSON nor a form.
    """
    try:
        if request.content_type == JSON:
            return from_json(msgspec.json.decode(body, type=kind))
        if request.content_type == FORM:
            return from_form(parse_pairs(body, MAX_FIELDS))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not as expected: {error}", "bad-body") from error
    detail = f"the body is {request.content_type[:80]!r}; expected is {JSON} or {FORM}"
    raise Problem(415, detail, "bad-body")


def one_of_each(fields: list[tuple[bytes, bytes]], *names: str) -> list[bytes]:
    """The values of the fields `names`.

    Raises:
        ValueError: There are others, or not exactly one of each.
    """
    if sorted(name for name, _ in fields) != sorted(name.encode() for name in names):
        given = ", ".join(name.decode(errors="replace")[:40] for name, _ in fields[:8])
        expected = f"{', '.join(names)}, each once"
        raise ValueError(f"the form has the fields {given or 'none'}; expected are {expected}")
    values = dict(fields)
    return [values[name.encode()] for name in names]


def _too_long(most: int) -> Problem:
    return Problem(413, f"the body is too long; at most {most} bytes are allowed", "too-long")
