"""``/v1/kv``: many keys at once; which there are, their values, and waiting for all of them."""

from __future__ import annotations

import heapq
from typing import Final

import anyio
import anyio.lowlevel
import msgspec
from aiohttp import web

from arendezvous.keyspace.messages import Check, ListKeys, MultiGet, MultiSet, Wait
from arendezvous.server.http.repeats import Outcome
from arendezvous.server.http.requests import (
    MAX_STRUCTURED,
    Query,
    bad_query,
    checked_key,
    decode_body,
    read_body,
    shown_key,
    stored_key,
)
from arendezvous.server.http.responses import Problem, json_answer
from arendezvous.server.http.routes import (
    CHANGING,
    FORM,
    REPEATED,
    WAIT,
    Answer,
    Content,
    Handler,
    Needs,
    Resource,
    Route,
    json,
    operation,
    query,
)
from arendezvous.server.http.store_access import StoreAccess, change, store_access
from arendezvous.wire.http.names import KEYS

MAX_LISTED: Final = 10_000
DEFAULT_LISTED: Final = 1000
_LISTINGS: Final = web.AppKey("listings", anyio.Semaphore)  # each has a copy of all keys while it lasts
MAX_LISTINGS: Final = 4
_SLICE: Final = 5000  # keys looked at before others get their turn


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
    """Whether all keys have been there, and those that have not, percent-encoded as in URLs."""

    ready: bool
    missing: list[str]


async def get_list(request: web.Request) -> web.StreamResponse:
    """Lists keys in the order of their bytes.

    Those that begin with ``prefix``, after ``after``, at most ``limit``.
    """
    query = Query(request, "prefix", "after", "limit")
    limit = query.integer("limit", 0, MAX_LISTED, DEFAULT_LISTED)
    prefix, after = stored_key(query.raw("prefix") or b""), query.raw("after")
    start = b"" if after is None else stored_key(after)
    async with request.app[_LISTINGS]:
        with store_access(request) as store:
            keys: list[bytes] = store.ask(ListKeys()).keys
            grant = store.grant
        if grant.run_id is not None:
            keys = [key for key in keys if grant.may_read_key(key)]
        found: list[bytes] = []
        for at in range(0, len(keys) if limit else 0, _SLICE):
            part = (key for key in keys[at : at + _SLICE] if key > start and key.startswith(prefix))
            found = heapq.nsmallest(limit + 1, [*found, *part])
            await anyio.lowlevel.checkpoint()
    shown = [shown_key(key) for key in found[:limit]]
    return _answer(Listing(shown, shown[-1] if limit and len(found) > limit else None, len(keys)))


async def post_list(request: web.Request) -> web.StreamResponse:
    """Gets, sets or waits for many keys at once."""
    name = Query(request, "op", "wait").text("op")
    handler = OPERATIONS.get(name)
    if handler is None:
        raise bad_query("op", f"is {name[:40]!r}", f"one of: {', '.join(OPERATIONS)}")
    return await handler(request)


async def _multi_set(request: web.Request) -> web.StreamResponse:
    Query(request, "op")
    body = await read_body(request, MAX_STRUCTURED)
    items = decode_body(
        request,
        body,
        ItemList,
        lambda decoded: [(checked_key(key), value) for key, value in decoded.items],
        lambda fields: [(stored_key(key), value) for key, value in fields],
    )

    def put(store: StoreAccess) -> Outcome:
        store.ask(MultiSet(items))
        return Outcome(204)

    return await change(request, body, put)


async def _multi_get(request: web.Request) -> web.StreamResponse:
    seconds = Query(request, "op", "wait").seconds("wait")
    keys = await _keys_of(request)
    with store_access(request) as store:
        ready: bool = store.ask(Check(keys)).ready
        with anyio.move_on_after(seconds):
            while seconds and not ready:
                if store.ask(Wait(keys)) is None:
                    await store.delivered()
                ready = store.ask(Check(keys)).ready
        values: list[bytes | None] = store.ask(MultiGet(keys)).values
        most = store.context.limits.max_body
    size = sum(len(value or b"") for value in values)
    if size > most:
        detail = f"the values have {size} bytes together; at most {most} are sent: ask for fewer keys"
        raise Problem(413, detail, "too-long")
    return _answer(ValueList(values, ready))


async def _check(request: web.Request) -> web.StreamResponse:
    seconds = Query(request, "op", "wait").seconds("wait")
    keys = await _keys_of(request)
    with store_access(request) as store:
        if store.ask(Wait(keys)) is None and seconds:
            with anyio.move_on_after(seconds):
                await store.delivered()
        missing = store.awaited()
    return _answer(Readiness(not missing, [shown_key(key) for key in sorted(missing)]))


async def _keys_of(request: web.Request) -> list[bytes]:
    body = await read_body(request, MAX_STRUCTURED)
    return decode_body(
        request,
        body,
        KeyList,
        lambda decoded: [checked_key(key) for key in decoded.keys],
        _keys_of_form,
    )


def _keys_of_form(fields: list[tuple[bytes, bytes]]) -> list[bytes]:
    for name, _ in fields:
        if name != b"key":
            raise ValueError(f"the form has a field {name.decode(errors='replace')[:80]!r}; expected is key")
    return [stored_key(value) for _, value in fields]


def _answer(body: msgspec.Struct) -> web.Response:
    return json_answer(msgspec.json.encode(body))


OPERATIONS: Final[dict[str, Handler]] = {
    "multi-get": _multi_get,
    "multi-set": _multi_set,
    "check": _check,
}
"""By the name in ``op``."""


def _set_up(app: web.Application) -> None:
    app[_LISTINGS] = anyio.Semaphore(MAX_LISTINGS)


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
        "POST", KEYS, "manyKeys", post_list, "store",
        {
            200: Answer(
                "multi-get: the values; check: whether all are there.", (json(ValueList, Readiness),)
            ),
            204: Answer("multi-set: it is done."),
        },
        REPEATED,
        (operation(*OPERATIONS), WAIT, *CHANGING),
        (json(KeyList, ItemList), Content(FORM)),
        Needs.ANY_SCOPE,
    ),
), _set_up)  # fmt: skip
