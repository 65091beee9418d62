"""Reading requests: which run or key they name, and what is in their query."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from arendezvous.coordinator.run import Run
from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.law.checks import check_id
from arendezvous.server.http.responses import NO_STORE, Problem
from arendezvous.server.http.routes import CONTEXT, Handler
from arendezvous.server.tcp.sharing import SHARE
from arendezvous.wire.http.named import OperationCodec
from arendezvous.wire.http.names import CLIENT, MAX_KEY, PROTOCOL_HEADER, parse_form, quote_key, unquote
from arendezvous.wire.native.messages import VERSION

T = TypeVar("T", bound=msgspec.Struct)

MAX_WAIT: Final = 3600.0
MAX_PARAMETERS: Final = 16


def run_id_of(request: web.Request) -> str:
    """The run that the path names, there or not; a 400 if it is no name of one."""
    run_id = request.match_info["run_id"]
    try:
        check_id("run id", run_id)
    except RendezvousSettingsError as error:
        raise Problem(400, error.message, "bad-run-id") from error
    return run_id


def run_of(request: web.Request) -> Run:
    """The run that the path names; a 404 if there is none."""
    run_id = run_id_of(request)
    run = request.app[CONTEXT].coordinator.runs.get(run_id)
    if run is None:
        detail = f"there is no run {run_id!r} here; a run begins when its first node joins"
        members = {"error": RendezvousStateError.__name__, "data": {}}
        raise Problem(404, detail, "no-such-run", NO_STORE, members)
    return run


async def run_in_turn(request: web.Request) -> Run:
    """As `run_of`, but waits for a turn to look at all of its nodes, if they are many. Cancellation: safe."""
    run = run_of(request)
    if len(run.state.nodes) <= SHARE:
        return run
    await request.app[CONTEXT].shared.turns.wait(2 * len(run.state.nodes))
    return run_of(request)  # it may have been forgotten


def version_of(request: web.Request) -> int:
    """Tells which version of the protocol the client speaks; one that is not ours copes with any."""
    named = PROTOCOL_HEADER in request.headers or request.headers.get("User-Agent") != CLIENT
    return VERSION if named else 1


def target_of(request: web.Request) -> tuple[bytes, bytes]:
    """The path and the query, as they were sent: aiohttp's own view of them does not keep every byte."""
    target = request.raw_path.encode("utf-8", "surrogateescape")
    if not target.startswith(b"/"):  # the absolute form, as proxies are sent it
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    path, _, query = target.partition(b"?")
    return path, query


def key_of(request: web.Request, base: str) -> bytes:
    """The key that the path names, as the server stores it, see `checked_key`."""
    path, _ = target_of(request)
    start = base.encode()
    if not path.startswith(start + b"/"):
        raise Problem(404, f"the path has to begin with {base}/, letter for letter", "no-such-resource")
    return checked_key(path[len(start) + 1 :])


def checked_key(text: bytes | str) -> bytes:
    """The key that is written percent-encoded, as the server stores it; a 400 if it is not, or too long."""
    try:
        key = unquote(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text)
    except ValueError as error:
        raise Problem(400, f"the key is not to be understood: {error}", "bad-key") from error
    return stored_key(key)


def stored_key(key: bytes) -> bytes:
    """The key as the server stores it, with the slash that torch puts before each; 400 if it is too long."""
    if len(key) >= MAX_KEY:
        raise Problem(400, f"the key has {len(key)} bytes; at most {MAX_KEY - 1} are allowed", "bad-key")
    return b"/" + key


def shown_key(key: bytes) -> str:
    """A key, as the server stores it, the way it is written in a URL."""
    return quote_key(key[1:])


class Query:
    """The query of a request, whose parameters are `names`.

    A 400 if one is there twice, or another is: nothing misspelt is to be overlooked.
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

    def operation(self, codec: OperationCodec[T], node: str, **more: str) -> T:
        """The operation of `node` that the parameters describe, those not empty; a 400 if that is none."""
        texts = {name: self.text(name) for name, value in self._values.items() if value}
        try:
            return codec.of_texts(texts, node, **more)
        except (msgspec.ValidationError, RendezvousSettingsError) as error:
            raise Problem(400, f"the query is not to be understood: {error}", "bad-query") from error

    def seconds(self, name: str) -> float:
        """A parameter that is a number of seconds, 0 if it is absent; a 400 if it is something else."""
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

        A 400 if it is something else, or absent without a default.
        """
        text = self.text(name)
        if not text and default is not None:
            return default
        if not text.removeprefix("-").isascii() or not text.removeprefix("-").isdigit() or len(text) > 20:
            raise bad_query(name, f"is {text[:40]!r}", f"an integer from {least} to {most}")
        if not least <= int(text) <= most:
            raise bad_query(name, f"is {text}", f"an integer from {least} to {most}")
        return int(text)


def by_operation(operations: Mapping[str, Handler], does: str, *names: str) -> Handler:
    """Makes the handler that has the operation carried out which ``op`` names; `does` describes it."""

    async def handler(request: web.Request) -> web.StreamResponse:
        name = Query(request, "op", *names).text("op")
        if name not in operations:
            raise bad_query("op", f"is {name[:40]!r}", f"one of: {', '.join(operations)}")
        return await operations[name](request)

    handler.__doc__ = does
    return handler


def bad_query(name: str, what: str, expected: str) -> Problem:
    """The answer to a query that is not as it has to be."""
    return Problem(400, f"{name[:80]!r} in the query {what}; expected is {expected}", "bad-query")
