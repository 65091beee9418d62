"""``/v1/kv``: many keys at once; which there are, their values, and waiting for all of them."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import anyio
import msgspec
from aiohttp import web

from arendezvous.keyspace.messages import Check, ListKeys, MultiGet, MultiSet, NumKeys, Ready, Wait
from arendezvous.keyspace.values import PIECE, Pieces
from arendezvous.server.http import routes
from arendezvous.server.http.access import grant_of
from arendezvous.server.http.bodies import decode_body, read_structured
from arendezvous.server.http.pieces import PiecesBody, base64_size, in_base64
from arendezvous.server.http.repeats import REPEATS, Outcome
from arendezvous.server.http.requests import Query, by_operation, checked_key, shown_key, stored_key
from arendezvous.server.http.responses import JSON, NO_STORE, Problem, json_answer
from arendezvous.server.http.routes import CONTEXT, Answer, Content, Needs, Resource, Route, json, query
from arendezvous.server.http.store_access import StoreAccess, require, store_access
from arendezvous.server.tcp.sharing import Turns
from arendezvous.wire.http.names import KEYS

T = TypeVar("T")

MAX_LISTED: Final = 10_000
DEFAULT_LISTED: Final = 1000
_LISTINGS: Final = web.AppKey("listings", anyio.Semaphore)  # each has a copy of all keys while it lasts
MAX_LISTINGS: Final = 4
MAX_SHOWN: Final = 1024 * 1024  # bytes of keys in one answer, beyond which there are no more in it
SLICE: Final = 2000  # keys looked at before others get their turn
STEP: Final = 1000  # keys asked for, or shown, before others get their turn
MAX_STEP: Final = 64 * 1024  # bytes of them
LONGEST: Final = 60.0  # seconds to wait for the same request, which is under way on another connection
_KEYS_A_UNIT: Final = 10  # keys that cost about as much as the simplest request to look at
_ITEMS_A_UNIT: Final = 4  # likewise, to set or to get


class Listing(msgspec.Struct, frozen=True):
    """Some keys, in the order of their bytes; ``next`` is where to go on, None at the end."""

    keys: list[str]
    next: str | None
    total: int


class KeyList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys, percent-encoded as in URLs."""

    keys: list[str]


class ItemList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys, percent-encoded as in URLs, each with a value in base64."""

    items: list[tuple[str, bytes]]


class ValueList(msgspec.Struct, frozen=True):
    """Values in base64, in the order of the keys; None where there is none."""

    values: list[bytes | None]
    ready: bool


class Readiness(msgspec.Struct, frozen=True):
    """Whether all keys have been there, and those that have not, percent-encoded, as they were asked for."""

    ready: bool
    missing: list[str]


async def get_list(request: web.Request) -> web.StreamResponse:
    """Lists keys in the order of their bytes."""
    query = Query(request, "prefix", "after", "limit")
    limit = query.integer("limit", 0, MAX_LISTED, DEFAULT_LISTED)
    prefix, after = stored_key(query.raw("prefix") or b""), query.raw("after")
    start = b"" if after is None else stored_key(after)
    async with request.app[_LISTINGS]:
        with store_access(request) as store:
            total: int = store.ask(NumKeys(store.grant.key_prefix)).number
            found = await _sorted(store, prefix, start) if limit else iter(())
            shown, more = await _first(store, found, limit)
    return json_answer(msgspec.json.encode(Listing(shown, shown[-1] if more else None, total)))


async def _sorted(store: StoreAccess, prefix: bytes, start: bytes) -> Iterator[bytes]:
    """Gives the keys that begin with `prefix` and come after `start`, in the order of their bytes."""
    turns, grant, keyspace = store.context.shared.turns, store.grant, store.context.keys.keyspace
    keyspace.handled[ListKeys] += 1
    parts: list[list[bytes]] = []
    for keys in keyspace.listing(max(prefix, grant.key_prefix, key=len)):
        for at in range(0, len(keys), SLICE):
            some = [key for key in keys[at : at + SLICE] if key > start and key.startswith(prefix)]
            parts.append(sorted(filter(grant.may_read_key, some) if grant.run_id is not None else some))
            await turns.wait(SLICE // _KEYS_A_UNIT)
    return heapq.merge(*parts)


async def _first(store: StoreAccess, keys: Iterator[bytes], limit: int) -> tuple[list[str], bool]:
    """Takes the first `limit` keys as they are shown, or fewer if they are long; tells if there are more."""
    shown: list[str] = []
    size = since = 0
    for key in keys:
        if len(shown) == limit or size > MAX_SHOWN:
            return shown, True
        shown.append(shown_key(key))
        size += len(shown[-1])
        if len(shown) % STEP == 0 or size - since > MAX_STEP:
            since = size
            await store.context.shared.turns.wait(STEP // _ITEMS_A_UNIT)
    return shown, False


async def _multi_set(request: web.Request) -> web.StreamResponse:
    Query(request, "op")
    require(grant_of(request), MultiSet([]))
    body = await read_structured(request)
    given: Sequence[tuple[str | bytes, bytes]] = decode_body(
        request, body, ItemList, lambda decoded: decoded.items, lambda fields: fields
    )
    turns = request.app[CONTEXT].shared.turns
    items: list[tuple[bytes, bytes]] = []
    async for some in _in_steps(turns, given, _length_of_key):
        items += [(_stored(key), value) for key, value in some]
    with store_access(request) as store:

        async def put() -> Outcome:
            async for some in _in_steps(turns, items, _length_of_key):
                store.ask(MultiSet(some))
            return Outcome(204)

        outcome = await request.app[REPEATS].once(request, body, put, LONGEST)
    if outcome is None:
        raise Problem(409, "the same request is still under way; ask again", "under-way")
    return outcome.response()


async def _multi_get(request: web.Request) -> web.StreamResponse:
    seconds = Query(request, "op", "wait").seconds("wait")
    keys = await _keys_of(request)
    with store_access(request) as store:
        ready = await _are_there(store, keys)
        with anyio.move_on_after(seconds):
            while seconds and not ready:
                if await _begin_waiting(store, keys):
                    await store.delivered()
                ready = await _are_there(store, keys)
        values: list[bytes | Pieces | None] = []
        async for some in _in_steps(store.context.shared.turns, keys):
            values += store.ask(MultiGet(some)).values
    size = sum(len(value or b"") for value in values)
    most = request.app[CONTEXT].limits.max_body
    if size > most:
        detail = f"the values have {size} bytes together; at most {most} are sent: ask for fewer keys"
        raise Problem(413, detail, "too-long")
    end = b'],"ready":%s}' % (b"true" if ready else b"false")
    sizes = [4 if value is None else base64_size(value) + 2 for value in values]
    size = len(b'{"values":[') + sum(sizes) + max(0, len(values) - 1) + len(end)
    there = [value for value in values if value is not None]
    body = PiecesBody(request, _encoded(values, end), size, JSON, reading=there, kept=64 * len(values))
    return web.Response(body=body, headers=NO_STORE)


async def _check(request: web.Request) -> web.StreamResponse:
    seconds = Query(request, "op", "wait").seconds("wait")
    keys = await _keys_of(request)
    with store_access(request) as store:
        if await _begin_waiting(store, keys) and seconds:
            with anyio.move_on_after(seconds):
                await store.delivered()
        awaited = store.awaited()
        shown: list[str] = []
        async for some in _in_steps(store.context.shared.turns, keys if awaited else []):
            shown += [shown_key(key) for key in some if key in awaited]
    missing = list(dict.fromkeys(shown))
    return json_answer(msgspec.json.encode(Readiness(not missing, missing)))


async def _are_there(store: StoreAccess, keys: list[bytes]) -> bool:
    """Tells whether all keys are there."""
    reply: Ready | None = await _ask_for_all(store, keys, Check)
    return not keys or (reply is not None and reply.ready)


async def _begin_waiting(store: StoreAccess, keys: list[bytes]) -> bool:
    """Has the request wait for all keys; returns False if all are there."""
    return bool(keys) and await _ask_for_all(store, keys, Wait) is None


async def _ask_for_all(store: StoreAccess, keys: list[bytes], kind: type[Check] | type[Wait]) -> Any:
    left, reply = len(keys), None
    async for some in _in_steps(store.context.shared.turns, keys):
        left -= len(some)
        reply = store.ask(kind(some, more=left > 0))
    return reply


async def _keys_of(request: web.Request) -> list[bytes]:
    body = await read_structured(request)
    given: Sequence[str | bytes] = decode_body(
        request, body, KeyList, lambda decoded: decoded.keys, _keys_of_form
    )
    keys: list[bytes] = []
    async for some in _in_steps(request.app[CONTEXT].shared.turns, given):
        keys += map(_stored, some)
    return keys


def _stored(key: str | bytes) -> bytes:
    """The key as the server stores it, from JSON, where it is percent-encoded, or from a form."""
    return checked_key(key) if isinstance(key, str) else stored_key(key)


async def _in_steps(
    turns: Turns,
    items: Sequence[T],
    weigh: Callable[[T], int] = len,  # type: ignore[assignment]  # of keys
) -> AsyncIterator[list[T]]:
    """Gives the items some at a time, with a turn for those after the first: few, if they are long."""
    step: list[T] = []
    size = 0
    for item in items:
        if len(step) == STEP or size > MAX_STEP:
            yield step
            await turns.wait(STEP // _ITEMS_A_UNIT)
            step, size = [], 0
        step.append(item)
        size += weigh(item)
    if step:
        yield step


def _length_of_key(item: tuple[str | bytes, bytes]) -> int:
    return len(item[0])


def _keys_of_form(fields: list[tuple[bytes, bytes]]) -> list[bytes]:
    for name, _ in fields:
        if name != b"key":
            raise ValueError(f"the form has a field {name.decode(errors='replace')[:80]!r}; expected is key")
    return [value for _, value in fields]


def _encoded(values: list[bytes | Pieces | None], end: bytes) -> Iterator[bytes]:
    """Makes the JSON of a `ValueList`, in which long values are encoded when it is their turn."""
    piece = bytearray(b'{"values":[')
    for number, value in enumerate(values):
        if number:
            piece += b","
        if value is None:
            piece += b"null"
            continue
        piece += b'"'
        for part in in_base64(value):
            piece += part
            if len(piece) >= PIECE:
                yield bytes(piece)
                piece.clear()
        piece += b'"'
    yield bytes(piece) + end


_OPERATIONS: Final[dict[str, routes.Handler]] = {
    "multi-get": _multi_get,
    "multi-set": _multi_set,
    "check": _check,
}
_POST: Final = by_operation(_OPERATIONS, "Gets, sets or waits for many keys at once.", "wait")


async def _shared(app: web.Application) -> AsyncIterator[None]:
    app[_LISTINGS] = anyio.Semaphore(MAX_LISTINGS)
    yield


RESOURCE: Final = Resource((
    Route(
        "GET", KEYS, "listKeys", get_list, "store",
        {200: Answer("Some keys.", (json(Listing),))},
        parameters=(
            query("prefix", "Only keys that begin with it."),
            query("after", "Only keys that come after it."),
            query(
                "limit", "At most so many.",
                type="integer", minimum=0, maximum=MAX_LISTED, default=DEFAULT_LISTED,
            ),
        ),
        needs=Needs.ANY_SCOPE,
    ),
    Route(
        "POST", KEYS, "manyKeys", _POST, "store",
        {
            200: Answer(
                "multi-get: the values; check: whether all are there.", (json(ValueList, Readiness),)
            ),
            204: Answer("multi-set: it is done."),
        },
        routes.REPEATED,
        (routes.operation(*_OPERATIONS), routes.WAIT, *routes.CHANGING),
        (json(KeyList, ItemList), Content(routes.FORM)),
        Needs.ANY_SCOPE,
    ),
), _shared)  # fmt: skip
