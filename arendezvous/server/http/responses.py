"""Answers: JSON, and errors as problem details (RFC 9457): a type, a title, a status and what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web

from arendezvous import errors

logger = logging.getLogger(__name__)

JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"
NO_STORE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""What every answer says that changes, or that clients have written: keep no copy, guess no type."""
_ANSWERS: Final[dict[type[errors.RendezvousError], tuple[int, str]]] = {
    errors.RendezvousPermissionError: (403, "forbidden"),
    errors.RendezvousClosedError: (409, "run-closed"),
    errors.RendezvousSettingsError: (409, "settings"),
    errors.RoundOverError: (409, "round-over"),
    errors.StoreFullError: (507, "store-full"),
    errors.StoreError: (409, "not-a-number"),
    errors.RendezvousError: (409, "conflict"),
}


@dataclass(eq=False)
class Problem(Exception):
    """An answer that is an error."""

    status: int
    detail: str  # what is wrong, what was expected and what to do
    kind: str  # the last part of the problem's type: a short name in kebab case
    headers: dict[str, str] = field(default_factory=dict)  # further ones of the answer
    members: Mapping[str, Any] = field(default_factory=dict)  # further ones of the body, for programs

    def response(self) -> web.Response:
        """The answer itself."""
        body = {
            "type": f"urn:arendezvous:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }
        try:
            encoded = msgspec.json.encode(body)
        except UnicodeEncodeError:  # bytes of a header that are not UTF-8, which are quoted
            encoded = msgspec.json.encode(_escaped(body))
        response = web.Response(
            status=self.status, body=encoded, content_type=PROBLEM_JSON, headers={**NO_STORE, **self.headers}
        )
        if self.headers.get("Connection") == "close":
            response.force_close()
        return response


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(name): _escaped(inner) for name, inner in value.items()}
    return value


def json_answer(content: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Makes an answer of JSON, which is not to be kept by anybody on the way."""
    fields = {**NO_STORE, "Content-Type": JSON, **(headers or {})}
    return web.Response(body=content, status=status, headers=fields)


def answer_to(request: web.Request, error: Exception) -> web.Response:
    """Turns an error into a problem answer; what is nobody's fault but ours is logged and a 500.

    An `HTTPException` that is an answer and no error is raised again.
    """
    if isinstance(error, Problem):
        return error.response()
    if isinstance(error, errors.RendezvousError):
        return of_error(error).response()
    if isinstance(error, web.HTTPException):
        if error.status < HTTPStatus.BAD_REQUEST:
            raise error
        return _of_aiohttp(request, error).response()
    route = request.match_info.route.resource  # not the path, which may have a key in it
    logger.error("%s %s failed", request.method, route and route.canonical, exc_info=error)
    return Problem(500, "an error of the server itself; its log says more", "internal").response()


def of_error(error: errors.RendezvousError) -> Problem:
    """The answer that stands for `error`; programs find its class in ``error``, and its data in ``data``."""
    status, kind = next(answer for known, answer in _ANSWERS.items() if isinstance(error, known))
    return Problem(status, error.message, kind, members={"error": type(error).__name__, "data": error.data})


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> Problem:
    headers = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    if error.status == HTTPStatus.NOT_FOUND:
        detail = f"there is no resource {request.path!r} here; /openapi.json lists what there is"
        return Problem(error.status, detail, "no-such-resource", headers)
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"there is no {request.method} of {request.path!r}; the header Allow says what there is"
        return Problem(error.status, detail, "bad-request", headers)
    return Problem(error.status, error.text or error.reason, "bad-request", headers)
