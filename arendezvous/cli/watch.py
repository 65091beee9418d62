"""``arendezvous watch``: a run, live."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from arendezvous.cli.exits import run_async
from arendezvous.cli.options import Json, RunId, Timeout, Url, located, without_server

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from arendezvous.backends.tcp.watching import News
    from arendezvous.cli.watch_screen import WatchScreen
    from arendezvous.schemes import RunNews


def watch(url: Url, run_id: RunId, json: Json = False, timeout: Timeout = 5.0) -> None:
    """Show what happens to a run, as it happens, until Ctrl-C or SIGTERM (exit code 0).

    The run need not exist yet. With --json: one object a line, first the status, then every event.
    """
    run_async(_watch, url, run_id, json, timeout)


async def _watch(url: str, run_id: str, json: bool, timeout: float) -> None:
    import sys

    from arendezvous.cli.signals import cancelled_by_signals

    with cancelled_by_signals():
        async with _watch_at(url, run_id, timeout) as news:
            if json or not sys.stdout.isatty():
                await _write_all(news, json=json)
                return
            from arendezvous.cli.watch_screen import WatchScreen

            with WatchScreen() as screen:
                await _show_live(news, screen)


def _watch_at(url: str, run_id: str, timeout: float) -> AbstractAsyncContextManager[RunNews]:
    scheme, where = located(url, run_id, timeout)
    if scheme.watch is None:
        raise without_server(url, lambda other: other.watch)
    return scheme.watch(where)


async def _write_all(news: RunNews, *, json: bool) -> None:
    async for item in news:
        for line in _json_lines(item) if json else plain_lines(item):
            typer.echo(line)


async def _show_live(news: RunNews, screen: WatchScreen) -> None:
    """Keeps a table up to date; however much happens, it asks for a status four times a second at most."""
    import anyio

    stale = anyio.Event()

    async def refresh() -> None:
        nonlocal stale
        while True:
            await stale.wait()
            stale = anyio.Event()
            await news.ask_status()
            await anyio.sleep(0.25)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refresh)
            async for item in news:
                if screen.show(item, plain_lines(item)):
                    stale.set()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def plain_lines(news: News) -> list[str]:
    """Says in words what the news are."""
    from datetime import datetime

    from arendezvous.law.status import RunStatus
    from arendezvous.law.words import event_text

    if isinstance(news, RunStatus):
        return str(news).splitlines()
    now = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
    lines = [f"{now}  {event_text(event)}" for event in news.events]
    if news.missed:
        lines.append(f"{now}  {news.missed} events were missed, as they came too fast")
    return lines


def _json_lines(news: News) -> list[str]:
    import json

    from arendezvous.cli.output import data_of
    from arendezvous.law.status import RunStatus

    if isinstance(news, RunStatus):
        return [json.dumps({"status": data_of(news)})]
    objects = [{"event": type(event).__name__, "at": news.at, **data_of(event)} for event in news.events]
    if news.missed:
        objects.append({"event": "Missed", "at": news.at, "count": news.missed})
    return [json.dumps(item) for item in objects]
