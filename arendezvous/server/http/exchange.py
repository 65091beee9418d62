"""What all handlers about runs do alike: find the run, read the body, write the answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
from aiohttp import web

from arendezvous.coordinator.run import Run
from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.law.state import check_text
from arendezvous.server.http.bodies import read_body
from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.problem import Problem, of_error
from arendezvous.server.http.written import Written, head_of

NO_STORE: Final = {"Cache-Control": "no-store"}  # what every answer about runs says in its headers
_JSON: Final = {**NO_STORE, "Content-Type": "application/json"}
MAX_REQUEST: Final = 64 * 1024  # bytes, as for native sessions


def run_id_of(request: web.Request) -> str:
    """The run that the path names; it need not exist.

    Raises:
        Problem: 400, it is no name of a run.
    """
    run_id = request.match_info["run_id"]
    try:
        check_text("run id", run_id, empty=False)
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


async def read_json(request: web.Request) -> bytes:
    """Reads the body of the request as JSON, whatever it is called: curl says that it is a form.

    Raises:
        Problem: 413, it is too long; see `read_body`.
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


def answer(
    request: web.Request, content: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> web.StreamResponse:
    """Makes an answer of `content`, which is JSON."""
    fields = {**_JSON, "Content-Length": str(len(content)), **(headers or {})}
    keep_alive = request.keep_alive
    head = head_of(request, status, fields, keep_alive=keep_alive)
    return Written(status, head if request.method == "HEAD" else head + content, keep_alive=keep_alive)
