"""``arendezvous watch``: a run, live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from arendezvous.cli.exits import cancelled_by_signals, run_async
from arendezvous.cli.options import Json, RunId, Timeout, Url, located
from arendezvous.cli.output import data_of, say, write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from arendezvous.cli.watch_screen import WatchScreen
    from arendezvous.observing import Item, NewsFeed
    from arendezvous.schemes import RunNews

TOGETHER: Final = 0.25  # seconds: what happens within them is told together


def watch(url: Url, run_id: RunId, json: Json = False, timeout: Timeout = 5.0) -> None:
    """Show what happens to a run, as it happens, until Ctrl-C or SIGTERM (exit code 0).

    The run need not exist yet. A server that ends is waited for. With --json: one object a line, first the
    status, then every event; another status after each outage.
    """
    run_async(_watch, url, run_id, json, timeout)


async def _watch(url: str, run_id: str, json: bool, timeout: float) -> None:
    import sys

    from arendezvous.observing import NewsFeed

    feed = NewsFeed(_watching(url, run_id, timeout))
    with cancelled_by_signals():
        if json:
            await feed.follow(_write_json)
        elif sys.stdout.isatty():
            from arendezvous.cli.watch_screen import WatchScreen

            with WatchScreen() as screen:
                await _show(feed, screen)
        else:
            await _show(feed, None)


def _watching(url: str, run_id: str, timeout: float) -> Callable[[], AbstractAsyncContextManager[RunNews]]:
    from arendezvous.connecting import news_of, without_server

    scheme, where = located(url, run_id, timeout)
    if scheme.watch is None or not scheme.is_shared:
        raise without_server(url, lambda other: other.watch and other.is_shared)
    return news_of(scheme, where)


async def _show(feed: NewsFeed, screen: WatchScreen | None) -> None:
    """Writes what happens, what came together in one go; a screen's table is kept up to date with it."""
    import anyio

    from arendezvous.cli.watch_screen import Narrator, stamped
    from arendezvous.law.status import RunStatus

    narrator, items, come = Narrator(), list[Any](), anyio.Event()

    def take(item: Item) -> None:
        items.append(item)
        come.set()

    async def write() -> None:
        nonlocal come
        while True:
            await come.wait()
            if not any(isinstance(item, RunStatus) for item in items):
                await anyio.sleep(TOGETHER)
            come = anyio.Event()
            told = items.copy()
            items.clear()
            if screen is None:
                say(*stamped(narrator.tell(told)))
            elif screen.show(told, narrator):
                await feed.ask_status()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await feed.follow(take)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def _write_json(item: Item) -> None:
    from arendezvous.law.status import RunStatus
    from arendezvous.observing import Outage

    objects: list[dict[str, Any]]
    if isinstance(item, RunStatus):
        objects = [{"status": item}]
    elif isinstance(item, Outage):
        objects = [{"event": "Outage", "reason": item.reason}]
    else:
        objects = [{"event": event.name, "at": item.at, **data_of(event)} for event in item.events]
        if item.missed:
            objects.append({"event": "Missed", "at": item.at, "count": item.missed})
    for each in objects:
        write_json(each, indent=None)
