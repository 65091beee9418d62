"""``/v1/queues/{key}``: queues, which stand beside the keys of the same names.

A value that is popped for a client that is gone by then is not lost where that can be known: nothing is
popped for a connection that is closed, and a client that sends an idempotency key gets the value when it asks
again, or gives it back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

import anyio
import msgspec
from aiohttp import web

from arendezvous.keyspace.messages import Popped, QueueLen, QueuePop, QueuePush, WaitQueue
from arendezvous.server.http.asking import Asker, Query, asking, bad_query, key_of
from arendezvous.server.http.bodies import JSON, read_body
from arendezvous.server.http.exchange import NO_STORE
from arendezvous.server.http.problem import Problem
from arendezvous.server.http.repeats import REPEATS, Outcome, mark_of, name_of
from arendezvous.server.http.resources.kv import OCTETS, change, value_response
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER, QUEUES

_GONE: Final = Outcome(409, b"", JSON)


class Length(msgspec.Struct, frozen=True):
    """How many values are in a queue."""

    length: int


async def get_queue(request: web.Request) -> web.StreamResponse:
    """GET and HEAD: the length; that of a queue that nobody has pushed to is 0."""
    Query(request)
    with asking(request) as asker:
        length: int = asker.ask(QueueLen(key_of(request, QUEUES))).number
    return web.Response(body=msgspec.json.encode(Length(length)), content_type=JSON, headers=NO_STORE)


async def post_queue(request: web.Request) -> web.StreamResponse:
    """POST: the operation that the query names."""
    name = Query(request, "op", "wait").text("op")
    operation = OPERATIONS.get(name)
    if operation is None:
        raise bad_query("op", f"is {name[:40]!r}", f"one of: {', '.join(OPERATIONS)}")
    return await operation(request)


async def _push(request: web.Request) -> web.StreamResponse:
    Query(request, "op")
    key, body = key_of(request, QUEUES), await read_body(request)

    def push(asker: Asker) -> Outcome:
        asker.ask(QueuePush(key, body))
        return Outcome(204)

    return await change(request, body, push)


async def _pop(request: web.Request) -> web.StreamResponse:
    seconds = Query(request, "op", "wait").seconds("wait")
    key = key_of(request, QUEUES)
    end = anyio.current_time() + seconds
    with asking(request) as asker:

        async def pop() -> Outcome | None:
            with anyio.move_on_at(end):
                while not _is_gone(request):
                    popped: Popped = asker.ask(QueuePop(key))
                    if popped.value is not None:
                        return Outcome(200, popped.value, OCTETS, NO_STORE)
                    if not seconds:
                        return None
                    if asker.ask(WaitQueue(key)) is None:
                        await asker.delivered()
            return None

        outcome = await request.app[REPEATS].once(request, b"", pop, seconds)
    if outcome is None:
        waited = f" after {seconds:g} s" if seconds else ""
        raise Problem(404, f"the queue is empty{waited}; ?wait=SECONDS waits for a value", "queue-empty")
    if outcome.status != HTTPStatus.OK:
        raise Problem(outcome.status, "this pop has been given up", "given-up")
    return value_response(outcome.body, outcome.headers)


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


async def _give_back(request: web.Request) -> web.StreamResponse:
    """Takes back the pop of the same idempotency key: its value, if any, goes to the end of the queue."""
    Query(request, "op")
    key, name = key_of(request, QUEUES), name_of(request)
    if name is None:
        raise Problem(400, f"give-back needs the {IDEMPOTENCY_HEADER} of the pop", "bad-repeat")
    with asking(request) as asker:
        asker.require(QueuePop(key))
        popped = request.app[REPEATS].end(name, mark_of(request, b"", b"op=pop"), _GONE)
        if popped is not None and popped.status == HTTPStatus.OK:
            asker.ask(QueuePush(key, popped.body))
    return web.Response(status=204)


OPERATIONS: Final[dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = {
    "push": _push,
    "pop": _pop,
    "give-back": _give_back,
}
"""By the name in ``op``."""
