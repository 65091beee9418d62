"""``/v1/kv/{key}``: one key of the store, which clients of ``torch.distributed.TCPStore`` see as well."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Final

import anyio
from aiohttp import web

from arendezvous.keyspace.messages import Changed, DeleteKey, Set, Watch
from arendezvous.server.http.asking import Asker, Query, asking, key_of
from arendezvous.server.http.bodies import read_body
from arendezvous.server.http.conditions import Tags, require, tag_header
from arendezvous.server.http.context import CONTEXT
from arendezvous.server.http.exchange import NO_STORE
from arendezvous.server.http.problem import Problem
from arendezvous.server.http.repeats import REPEATS, Outcome
from arendezvous.wire.http.names import KEYS

OCTETS: Final = "application/octet-stream"
_LARGE: Final = 64 * 1024


async def get_key(request: web.Request) -> web.StreamResponse:
    """GET and HEAD: the value, with its tag; ``wait`` waits for it, or for another than ``If-None-Match``."""
    query = Query(request, "wait")
    key, seconds = key_of(request, KEYS), query.seconds("wait")
    known = Tags.of(request, "If-None-Match")
    with asking(request) as asker:
        value, revision = asker.read(key)
        with anyio.move_on_after(seconds):
            while seconds and not _is_news(request, known, revision):
                changed: Changed = asker.ask(Watch(key, revision)) or await asker.delivered()
                value, revision = changed.value, changed.revision
    match = Tags.of(request, "If-Match")
    if match is not None and not match.match(request, revision, strong=True):
        detail = "If-Match does not hold: the key has another tag now, or is not there"
        raise Problem(412, detail, "condition-failed", tag_header(request, revision))
    if value is None:
        waited = f" after {seconds:g} s" if seconds else ""
        raise Problem(404, f"the key is not there{waited}; ?wait=SECONDS waits for it", "no-such-key")
    headers = NO_STORE | tag_header(request, revision)
    if known is not None and not _is_news(request, known, revision):
        return web.Response(status=304, headers=headers)
    return value_response(value, headers)


def value_response(value: bytes, headers: dict[str, str]) -> web.Response:
    """The answer with a value."""
    length = {"Content-Length": str(len(value))}  # aiohttp would not tell it to HEAD if it is 0
    return web.Response(body=piecewise(value), content_type=OCTETS, headers=headers | length)


def piecewise(body: bytes) -> bytes | io.BytesIO:
    """A body as it is, or if it is long so that it is sent piece by piece and shared by all who get it."""
    return io.BytesIO(body) if len(body) > _LARGE else body


async def put_key(request: web.Request) -> web.StreamResponse:
    """PUT: stores the body, if the conditions hold; 201 if there was none, else 204."""
    Query(request)
    key = key_of(request, KEYS)
    body = await read_body(request)

    def put(asker: Asker) -> Outcome:
        before = asker.context.keys.keyspace.revision_of(key)
        require(request, before)
        asker.ask(Set(key, body))
        return Outcome(204 if before else 201, headers=_tag_now(request, key))

    return await change(request, body, put)


async def delete_key(request: web.Request) -> web.StreamResponse:
    """DELETE: removes the key, if the conditions hold; 404 if it is not there."""
    Query(request)
    key = key_of(request, KEYS)

    def delete(asker: Asker) -> Outcome:
        before = asker.context.keys.keyspace.revision_of(key)
        require(request, before)
        if not asker.ask(DeleteKey(key)).number:
            raise Problem(404, "the key is not there; nothing was deleted", "no-such-key")
        return Outcome(204)

    return await change(request, b"", delete)


async def change(request: web.Request, body: bytes, act: Callable[[Asker], Outcome]) -> web.StreamResponse:
    """Answers with what comes of `act`, which is carried out once for each idempotency key."""
    with asking(request) as asker:

        async def run() -> Outcome:
            return act(asker)

        outcome = await request.app[REPEATS].once(request, body, run)
        assert outcome is not None  # noqa: S101 - `run` never awaits, so there is never another one under way
        return outcome.response()


def _tag_now(request: web.Request, key: bytes) -> dict[str, str]:
    return tag_header(request, request.app[CONTEXT].keys.keyspace.revision_of(key))


def _is_news(request: web.Request, known: Tags | None, revision: int) -> bool:
    """Whether the value of this revision is what one who knows `known` waits for."""
    if known is None:
        return revision > 0
    return not known.match(request, revision, strong=False)
