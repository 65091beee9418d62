"""``POST /v1/kv/{key}?op=...``: what can be done to a key beyond reading and writing it."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import msgspec
from aiohttp import web

from arendezvous.keyspace.keyspace import leading_integer
from arendezvous.keyspace.messages import Add, Append, Barrier, CompareSet, WaitDone, Watch
from arendezvous.server.http.asking import Asker, Query, asking, bad_query, key_of
from arendezvous.server.http.bodies import JSON, MAX_STRUCTURED, decode_body, one_of_each, read_body
from arendezvous.server.http.conditions import require, tag_header
from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.problem import Problem
from arendezvous.server.http.repeats import REPEATS, Outcome
from arendezvous.server.http.resources.kv import change
from arendezvous.wire.http.names import KEYS

_NUMBER: Final = re.compile(rb"\s*[+-]?[0-9]{1,19}\s*", re.ASCII)
_BIT: Final = 1 << 63
_MOST: Final = 2**31 - 1


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a compare-set needs."""

    expected: bytes
    desired: bytes


class Arrived(msgspec.Struct, frozen=True):
    """How many have come to a barrier that is not full yet, and how many it needs."""

    arrived: int
    world_size: int


async def post_key(request: web.Request) -> web.StreamResponse:
    """POST: the operation that the query names."""
    name = Query(request, "op", "wait", "world_size").text("op")
    operation = OPERATIONS.get(name)
    if operation is None:
        raise bad_query("op", f"is {name[:40]!r}", f"one of: {', '.join(OPERATIONS)}")
    return await operation(request)


async def _append(request: web.Request) -> web.StreamResponse:
    Query(request, "op")
    key, body = key_of(request, KEYS), await read_body(request)

    def append(asker: Asker) -> Outcome:
        require(request, _revision(request, key))
        asker.ask(Append(key, body))
        return Outcome(204, headers=tag_header(request, _revision(request, key)))

    return await change(request, body, append)


async def _add(request: web.Request) -> web.StreamResponse:
    Query(request, "op")
    key, body = key_of(request, KEYS), await read_body(request, 64)
    delta = int(body) if _NUMBER.fullmatch(body) else _BIT
    if not -_BIT <= delta < _BIT:
        detail = f"the body is {body!r}; expected is what to add: an integer of 64 bits, as decimal text"
        raise Problem(400, detail, "bad-body")

    def add(asker: Asker) -> Outcome:
        require(request, _revision(request, key))
        total = asker.ask(Add(key, delta)).number
        return Outcome(200, b"%d" % total, JSON, tag_header(request, _revision(request, key)))

    return await change(request, body, add)


async def _compare_set(request: web.Request) -> web.StreamResponse:
    Query(request, "op")
    key, body = key_of(request, KEYS), await read_body(request, MAX_STRUCTURED)
    pair = decode_body(
        request,
        body,
        Comparison,
        lambda decoded: decoded,
        lambda fields: Comparison(*one_of_each(fields, "expected", "desired")),
    )

    def compare(asker: Asker) -> Outcome:
        present, revision = asker.read(key)
        if (present or b"") != pair.expected:
            what = "is another one" if revision else "is missing"
            shown = None if present is None else base64.b64encode(present).decode()
            raise Problem(
                412,
                f"the value {what}; nothing was stored. The present one is in 'present', in base64",
                "compare-failed",
                tag_header(request, revision),
                {"present": shown},
            )
        asker.ask(CompareSet(key, pair.expected, pair.desired))
        return Outcome(204, headers=tag_header(request, _revision(request, key)))

    return await change(request, body, compare)


async def _barrier(request: web.Request) -> web.StreamResponse:
    query = Query(request, "op", "wait", "world_size")
    key, seconds = key_of(request, KEYS), query.seconds("wait")
    world_size = query.integer("world_size", -_MOST, _MOST)
    passed = False
    with asking(request) as asker:

        async def arrive() -> Outcome:
            nonlocal passed
            passed = asker.ask(Barrier(key, world_size)) is not None
            return Outcome(202, msgspec.json.encode(Arrived(_count(asker, key), world_size)), JSON)

        outcome = await request.app[REPEATS].once(request, b"", arrive)
        passed = passed or _count(asker, key) >= world_size
        with anyio.move_on_after(seconds):
            passed = passed or (seconds > 0 and await _passes(asker, key, world_size))
        if passed:
            return web.Response(status=204)
        body = msgspec.json.encode(Arrived(_count(asker, key), world_size))
    assert outcome is not None  # noqa: S101 - `arrive` never awaits, so there is never another one under way
    return Outcome(202, body, JSON).response()


async def _passes(asker: Asker, key: bytes, world_size: int) -> bool:
    """Returns True once a barrier at which the asker has arrived is full."""
    reply = None
    while _count(asker, key) < world_size and not isinstance(reply, WaitDone):
        revision = asker.context.keys.keyspace.revision_of(key)
        reply = asker.ask(Watch(key, revision)) or await asker.delivered()
    return True


def _count(asker: Asker, key: bytes) -> int:
    value, _ = asker.read(key)
    return leading_integer(value or b"0") or 0


def _revision(request: web.Request, key: bytes) -> int:
    return request.app[CONTEXT].keys.keyspace.revision_of(key)


OPERATIONS: Final[dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = {
    "append": _append,
    "add": _add,
    "compare-set": _compare_set,
    "barrier": _barrier,
}
"""By the name in ``op``."""
