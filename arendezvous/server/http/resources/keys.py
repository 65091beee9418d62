"""``/v1/kv/{key}``: one key of the store, which clients of ``torch.distributed.TCPStore`` see as well."""

from __future__ import annotations

import itertools
import re
from typing import Final

import anyio
import msgspec
from aiohttp import web

from arendezvous.keyspace import messages
from arendezvous.keyspace.keyspace import leading_integer
from arendezvous.keyspace.values import Pieces
from arendezvous.server.http import routes
from arendezvous.server.http.access import grant_of
from arendezvous.server.http.bodies import decode_body, one_of_each, read_body, read_structured
from arendezvous.server.http.pieces import PiecesBody, base64_size, in_base64
from arendezvous.server.http.repeats import REPEATS, Outcome
from arendezvous.server.http.requests import Query, by_operation, key_of
from arendezvous.server.http.responses import JSON, NO_STORE, PROBLEM_JSON, Problem
from arendezvous.server.http.routes import Answer, Content, Needs, Resource, Route, header, json, query
from arendezvous.server.http.store_access import (
    StoreAccess,
    Tags,
    change,
    require,
    require_conditions,
    require_match,
    store_access,
    tag_header,
    value_answer,
)
from arendezvous.wire.http.names import KEYS

_NUMBER: Final = re.compile(rb"\s*[+-]?[0-9]{1,19}\s*", re.ASCII)
_BIT: Final = 1 << 63
_MOST: Final = 2**31 - 1


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Holds what a compare-set needs."""

    expected: bytes
    desired: bytes


class Arrived(msgspec.Struct, frozen=True):
    """How many have come to a barrier that is not full yet, and how many it needs."""

    arrived: int
    world_size: int


async def get_key(request: web.Request) -> web.StreamResponse:
    """Gets a value; waits until it is there, or is another one."""
    query = Query(request, "wait")
    key, seconds = key_of(request, KEYS), query.seconds("wait")
    known = Tags.of(request, "If-None-Match")
    with store_access(request) as store:
        value, revision = store.read(key)
        with anyio.move_on_after(seconds):
            while seconds and not _is_news(request, known, revision):
                changed: messages.Changed = (
                    store.ask(messages.Watch(key, revision)) or await store.delivered()
                )
                value, revision = changed.value, changed.revision
    require_match(request, revision)
    if value is None:
        waited = f" after {seconds:g} s" if seconds else ""
        raise Problem(404, f"the key is not there{waited}; ?wait=SECONDS waits for it", "no-such-key")
    headers = NO_STORE | tag_header(request, revision)
    if known is not None and not _is_news(request, known, revision):
        return web.Response(status=304, headers=headers)
    return value_answer(request, value, headers)


async def put_key(request: web.Request) -> web.StreamResponse:
    """Sets a value."""
    Query(request)
    return await _write(request, messages.Set)


async def _append(request: web.Request) -> web.StreamResponse:
    Query(request, "op")
    return await _write(request, messages.Append)


async def _write(
    request: web.Request, kind: type[messages.Set] | type[messages.Append]
) -> web.StreamResponse:
    key = key_of(request, KEYS)
    require(grant_of(request), kind(key, b""))
    body = await read_body(request)

    def write(store: StoreAccess) -> Outcome:
        before = store.revision(key)
        require_conditions(request, before)
        store.ask(kind(key, body))
        status = 204 if before or kind is messages.Append else 201
        return Outcome(status, headers=tag_header(request, store.revision(key)))

    return await change(request, body, write)


async def delete_key(request: web.Request) -> web.StreamResponse:
    """Deletes a key."""
    Query(request)
    key = key_of(request, KEYS)

    def delete(store: StoreAccess) -> Outcome:
        require_conditions(request, store.revision(key))
        if not store.ask(messages.DeleteKey(key)).number:
            raise Problem(404, "the key is not there; nothing was deleted", "no-such-key")
        return Outcome(204)

    return await change(request, b"", delete)


async def _add(request: web.Request) -> web.StreamResponse:
    Query(request, "op")
    key = key_of(request, KEYS)
    require(grant_of(request), messages.Add(key, 0))
    body = await read_body(request, 64)
    delta = int(body) if _NUMBER.fullmatch(body) else _BIT
    if not -_BIT <= delta < _BIT:
        detail = f"the body is {body!r}; expected is what to add: an integer of 64 bits, as decimal text"
        raise Problem(400, detail, "bad-body")

    def add(store: StoreAccess) -> Outcome:
        require_conditions(request, store.revision(key))
        total = store.ask(messages.Add(key, delta)).number
        return Outcome(200, b"%d" % total, JSON, tag_header(request, store.revision(key)))

    return await change(request, body, add)


async def _compare_set(request: web.Request) -> web.StreamResponse:
    Query(request, "op")
    key = key_of(request, KEYS)
    require(grant_of(request), messages.CompareSet(key, b"", b""))
    body = await read_structured(request)
    pair = decode_body(
        request,
        body,
        Comparison,
        lambda decoded: decoded,
        lambda fields: Comparison(*one_of_each(fields, "expected", "desired")),
    )

    def compare(store: StoreAccess) -> Outcome:
        before = store.revision(key)
        present = store.ask(messages.CompareSet(key, pair.expected, pair.desired)).value
        revision = store.revision(key)
        if revision == before:
            raise _Differs(present if revision else None, tag_header(request, revision))
        return Outcome(204, headers=tag_header(request, revision))

    try:
        return await change(request, body, compare)
    except _Differs as differs:
        return differs.answer(request)


class _Differs(Problem):
    """The answer to a comparison that fails, which has the present value, or None."""

    def __init__(self, present: bytes | Pieces | None, headers: dict[str, str]) -> None:
        what = "is missing" if present is None else "is another one"
        detail = f"the value {what}; nothing was stored. The present one is in 'present', in base64"
        shown = None if present is None else ""
        super().__init__(412, detail, "compare-failed", headers, {"present": shown})
        self._present = present

    def answer(self, request: web.Request) -> web.Response:
        """The answer itself; a long value is sent in pieces."""
        plain, present = self.response(), self._present
        if present is None:
            return plain
        assert isinstance(plain.body, bytes)  # noqa: S101 - it is of JSON
        start, end = plain.body[:-2], plain.body[-2:]  # in between is the text of the last member
        pieces = itertools.chain([start], in_base64(present), [end])
        size = len(plain.body) + base64_size(present)
        body = PiecesBody(request, pieces, size, PROBLEM_JSON, reading=[present])
        return web.Response(status=self.status, body=body, headers=NO_STORE | self.headers)


async def _barrier(request: web.Request) -> web.StreamResponse:
    query = Query(request, "op", "wait", "world_size")
    key, seconds = key_of(request, KEYS), query.seconds("wait")
    world_size = query.integer("world_size", -_MOST, _MOST)
    passed = False
    with store_access(request) as store:

        async def arrive() -> Outcome:
            nonlocal passed
            passed = store.ask(messages.Barrier(key, world_size)) is not None
            return Outcome(202, msgspec.json.encode(Arrived(_count(store, key), world_size)), JSON)

        outcome = await request.app[REPEATS].once(request, b"", arrive)
        passed = passed or _count(store, key) >= world_size
        with anyio.move_on_after(seconds):
            passed = passed or (seconds > 0 and await _passes(store, key, world_size))
        if passed:
            return web.Response(status=204)
        body = msgspec.json.encode(Arrived(_count(store, key), world_size))
    assert outcome is not None  # noqa: S101 - `arrive` never awaits, so there is never another one under way
    return Outcome(202, body, JSON).response()


async def _passes(store: StoreAccess, key: bytes, world_size: int) -> bool:
    """Returns True once a barrier at which the request has arrived is full."""
    reply = None
    while _count(store, key) < world_size and not isinstance(reply, messages.WaitDone):
        reply = store.ask(messages.Watch(key, store.revision(key))) or await store.delivered()
    return True


def _count(store: StoreAccess, key: bytes) -> int:
    value, _ = store.read(key)
    return leading_integer(value.parts[0] if isinstance(value, Pieces) else value or b"0") or 0


def _is_news(request: web.Request, known: Tags | None, revision: int) -> bool:
    """Whether the value of this revision is what one who knows `known` waits for."""
    if known is None:
        return revision > 0
    return not known.match(request, revision, strong=False)


_OPERATIONS: Final[dict[str, routes.Handler]] = {
    "append": _append,
    "add": _add,
    "compare-set": _compare_set,
    "barrier": _barrier,
}
_POST: Final = by_operation(
    _OPERATIONS, "Appends, adds, compares and sets, or waits at a barrier.", "wait", "world_size"
)

_PATH: Final = KEYS + r"/{key:[\s\S]*}"  # newlines, too
_KEY: Final = routes.Parameter(
    "key", "path", "The key, percent-encoded; it may hold any bytes.", required=True
)
_CONDITIONS: Final = (
    header("If-Match", "Only if the key has one of these tags; *: only if it is there."),
    header("If-None-Match", "Only if it has none of these; *: only if it is not there."),
)
_CHANGED: Final = (_KEY, *_CONDITIONS, *routes.CHANGING)
_TAG: Final = {"ETag": "Names the value: another one has another tag."}
_NO_KEY: Final = {404: "The key is not there."}
_LOST: Final = {412: "A condition does not hold; nothing was changed. The answer has the present ETag."}
_VALUE: Final = Content(routes.OCTETS)

RESOURCE: Final = Resource((
    Route(
        "GET", _PATH, "getKey", get_key, "store",
        {
            200: Answer("The value.", (_VALUE,), _TAG),
            304: Answer("It is still the value of If-None-Match.", headers=_TAG),
        },
        _NO_KEY | _LOST | routes.TOO_MANY_WAITS, (_KEY, routes.WAIT, *_CONDITIONS), needs=Needs.ANY_SCOPE,
    ),
    Route(
        "PUT", _PATH, "putKey", put_key, "store",
        {201: Answer("The key is new.", headers=_TAG), 204: Answer("The key was there.", headers=_TAG)},
        _LOST | routes.REPEATED, _CHANGED, (_VALUE,), Needs.ANY_SCOPE,
    ),
    Route(
        "DELETE", _PATH, "deleteKey", delete_key, "store", {204: Answer("It is deleted.")},
        _NO_KEY | _LOST | routes.REPEATED, _CHANGED, needs=Needs.ANY_SCOPE,
    ),
    Route(
        "POST", _PATH, "changeKey", _POST, "store",
        {
            200: Answer("add: the sum.", (json(int),), _TAG),
            202: Answer("barrier: not everybody is here yet.", (json(Arrived),)),
            204: Answer("It is done; barrier: everybody is here.", headers=_TAG),
        },
        _LOST | routes.REPEATED,
        (
            _KEY,
            routes.operation(*_OPERATIONS),
            query("world_size", "barrier: how many must come.", type="integer"),
            routes.WAIT, *_CONDITIONS, *routes.CHANGING,
        ),
        (_VALUE, json(Comparison), Content(routes.FORM)),
        Needs.ANY_SCOPE,
    ),
))  # fmt: skip
