"""The routes of the store: keys, many keys at once, queues."""

from __future__ import annotations

from typing import Final

import anyio
from aiohttp import web

from arendezvous.server.http.bodies import BUDGET, BodyBudget
from arendezvous.server.http.repeats import REPEATS, Repeats
from arendezvous.server.http.resources.kv import delete_key, get_key, put_key
from arendezvous.server.http.resources.kv_many import LISTINGS, MAX_LISTINGS, get_list, post_list
from arendezvous.server.http.resources.kv_operations import post_key
from arendezvous.server.http.resources.queues import get_queue, post_queue
from arendezvous.wire.http.names import KEYS, QUEUES

_ANY: Final = r"/{key:[\s\S]*}"  # newlines, too


def add_store(app: web.Application) -> None:
    """Adds the routes, and what they share."""
    app[BUDGET] = BodyBudget()
    app[REPEATS] = Repeats()
    app[LISTINGS] = anyio.Semaphore(MAX_LISTINGS)
    routes = app.router
    routes.add_get(KEYS, get_list)
    routes.add_post(KEYS, post_list)
    routes.add_get(KEYS + _ANY, get_key)
    routes.add_put(KEYS + _ANY, put_key)
    routes.add_delete(KEYS + _ANY, delete_key)
    routes.add_post(KEYS + _ANY, post_key)
    routes.add_get(QUEUES + _ANY, get_queue)
    routes.add_post(QUEUES + _ANY, post_queue)
