"""Bodies of requests: read within limits on each and on all together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.problem import Problem
from arendezvous.wire.http.names import parse_pairs

J = TypeVar("J")
T = TypeVar("T")

MAX_FIELDS: Final = 64 * 1024
MAX_STRUCTURED: Final = 32 * 1024 * 1024  # decoding a longer one would hold up everybody else
FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"


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


def give_back(request: web.Request) -> None:
    """Gives back what the body of a request took of the budget, once the request has been handled."""
    request.app[BUDGET].give_back(request)


async def read_body(request: web.Request, most: int | None = None) -> bytes:
    """Reads the body; only behind the gate.

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
    chunks: list[bytes] = []
    total = 0
    if not content.is_eof() and (request.content_length or 0) > most:
        raise _too_long(most)
    try:
        while not content.at_eof():
            chunk = content.read_nowait() if content.is_eof() else await content.readany()
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
