"""``/v1/queues/{key}``: queues, which stand beside the keys of the same names.

A value that is popped for a client that is gone by then is not lost where that can be known: nothing is
popped for a connection that is closed, and a client that sends an idempotency key gets the value when it asks
again, or gives it back. A pop that is given back before it has taken a value takes none.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import anyio
import anyio.lowlevel
import msgspec
from aiohttp import web

from arendezvous.errors import StoreError
from arendezvous.keyspace.messages import Popped, QueueLen, QueuePop, QueuePush, WaitQueue
from arendezvous.server.http import routes
from arendezvous.server.http.access import grant_of, requester_of
from arendezvous.server.http.bodies import read_body
from arendezvous.server.http.repeats import REPEATS, Outcome, mark_of, name_of
from arendezvous.server.http.requests import Query, by_operation, key_of
from arendezvous.server.http.responses import JSON, NO_STORE, Problem, json_answer
from arendezvous.server.http.routes import Answer, Content, Needs, Resource, Route, json
from arendezvous.server.http.store_access import StoreAccess, change, require, store_access, value_answer
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER, QUEUES

_GONE: Final = Outcome(409, b"", JSON)


class Length(msgspec.Struct, frozen=True):
    """How many values are in a queue."""

    length: int


async def get_queue(request: web.Request) -> web.StreamResponse:
    """Tells how many values are in a queue."""
    Query(request)
    with store_access(request) as store:
        length: int = store.ask(QueueLen(key_of(request, QUEUES))).number
    return json_answer(msgspec.json.encode(Length(length)))


async def _push(request: web.Request) -> web.StreamResponse:
    Query(request, "op")
    key = key_of(request, QUEUES)
    require(grant_of(request), QueuePush(key, b""))
    body = await read_body(request)

    def push(store: StoreAccess) -> Outcome:
        store.ask(QueuePush(key, body))
        return Outcome(204)

    return await change(request, body, push)


async def _pop(request: web.Request) -> web.StreamResponse:
    seconds = Query(request, "op", "wait").seconds("wait")
    key = key_of(request, QUEUES)
    end = anyio.current_time() + seconds
    with store_access(request) as store:

        async def pop() -> Outcome | None:
            with anyio.CancelScope(deadline=end):
                while request.transport is not None and not request.transport.is_closing():
                    popped: Popped = store.ask(QueuePop(key))
                    if popped.value is not None:
                        return Outcome(200, popped.value, routes.OCTETS, NO_STORE)
                    if not seconds:
                        return None
                    if store.ask(WaitQueue(key)) is None:
                        await store.delivered()
                        # It may have been given back, or be over, in the very turn in which a value came.
                        await anyio.lowlevel.checkpoint_if_cancelled()
            return None

        outcome = await request.app[REPEATS].once(request, b"", pop, seconds)
    if outcome is None:
        waited = f" after {seconds:g} s" if seconds else ""
        raise Problem(404, f"the queue is empty{waited}; ?wait=SECONDS waits for a value", "queue-empty")
    if outcome.status != HTTPStatus.OK:
        raise Problem(outcome.status, "this pop has been given up", "given-up")
    return value_answer(request, outcome.body, outcome.headers, is_stored=False)


async def _give_back(request: web.Request) -> web.StreamResponse:
    """Takes back the pop of the same key: its value, if any, goes to the end of the queue."""
    Query(request, "op")
    key, name = key_of(request, QUEUES), name_of(request)
    if name is None:
        raise Problem(400, f"give-back needs the {IDEMPOTENCY_HEADER} of the pop", "bad-repeat")
    with store_access(request) as store:
        require(store.grant, QueuePop(key))
        repeats, mark, who = request.app[REPEATS], mark_of(request, b"", b"op=pop"), requester_of(request)
        popped = repeats.end(name, mark, _GONE, who)
        if popped is not None and popped.status == HTTPStatus.OK:
            try:
                store.ask(QueuePush(key, popped.body))
            except StoreError:  # there is no room: the value is still that of the pop
                repeats.keep(name, mark, popped, who)
                raise
    return web.Response(status=204)


_OPERATIONS: Final[dict[str, routes.Handler]] = {"push": _push, "pop": _pop, "give-back": _give_back}
_POST: Final = by_operation(_OPERATIONS, "Pushes, pops, or gives back what was popped.", "wait")

_PATH: Final = QUEUES + r"/{key:[\s\S]*}"  # newlines, too
_QUEUE: Final = routes.Parameter("key", "path", "The queue, percent-encoded.", required=True)

RESOURCE: Final = Resource((
    Route(
        "GET", _PATH, "queueLength", get_queue, "store",
        {200: Answer("The length; 0 if nobody has pushed to it.", (json(Length),))},
        parameters=(_QUEUE,), needs=Needs.ANY_SCOPE,
    ),
    Route(
        "POST", _PATH, "changeQueue", _POST, "store",
        {
            200: Answer("pop: the value.", (Content(routes.OCTETS),)),
            204: Answer("push, give-back: it is done."),
        },
        {404: "pop: the queue is empty."} | routes.REPEATED,
        (_QUEUE, routes.operation(*_OPERATIONS), routes.WAIT, *routes.CHANGING),
        (Content(routes.OCTETS),),
        Needs.ANY_SCOPE,
    ),
))  # fmt: skip
