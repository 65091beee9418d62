"""``arendezvous status``, ``explain``, ``watch`` and ``doctor``: looking at a server, or at a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from arendezvous.cli.contact import Contact, RunId
from arendezvous.cli.exits import ExitCode, cancelled_by_signals
from arendezvous.cli.output import data_of, say, write_json, write_table
from arendezvous.errors import RendezvousSettingsError, without_password

if TYPE_CHECKING:
    from arendezvous.cli.watch_screen import WatchScreen
    from arendezvous.doctor.checks import Finding
    from arendezvous.law.status import NodeStatus, RunStatus
    from arendezvous.observing import Item, NewsFeed
    from arendezvous.wire.native.messages import RunSummary


_ANSWERED: Final = ("server", "cluster")  # the checks that tell that there is somebody to ask
TOGETHER: Final = 0.25  # seconds: what happens within them is told together


async def status(
    contact: Contact,
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="The run; without it, all runs.")] = "",
) -> None:
    """Show the runs of a server, or the nodes of one run."""
    if run_id:
        await _show_run(contact, run_id)
    else:
        await _show_server(contact)


async def explain(contact: Contact, run_id: RunId) -> None:
    """Say in plain words how a run stands: who is in, who is missing, who was dropped and why."""
    from arendezvous.connecting import known_run
    from arendezvous.law.status import explained

    async with contact.session(run_id) as backend:
        found = await known_run(backend, run_id)
    contact.tell({"explain": explained(found), **data_of(found)}, *explained(found))


async def _show_server(contact: Contact) -> None:
    from arendezvous.connecting import without_server
    from arendezvous.law.words import counted
    from arendezvous.observing import ServerBackend

    scheme, where = contact.located()
    if scheme.backend is None or not (scheme.is_server and scheme.is_shared):
        raise without_server(contact.url, lambda other: other.is_server and other.is_shared)
    async with scheme.backend(where) as backend:
        assert isinstance(backend, ServerBackend)  # noqa: S101 - the entry says so
        runs, endpoint, server = await backend.runs(), backend.endpoint, backend.server_id
    data = {"endpoint": endpoint, "server": server, "runs": runs}
    contact.tell(data, f"{endpoint} keeps {counted(len(runs), 'run')}")
    if runs and not contact.json:
        headings = ("RUN", "STATE", "ROUND", "NODES", "WAITING", "SPARES", "INCARNATION")
        write_table(headings, [_summary_row(run) for run in runs])


async def _show_run(contact: Contact, run_id: str) -> None:
    from arendezvous.connecting import known_run
    from arendezvous.law.status import explained, trouble_text
    from arendezvous.law.words import ago, duration

    def row(node: NodeStatus) -> tuple[str, ...]:
        brought = (node.desc.brought.role or "-", str(node.desc.brought.slots)) if bring else ()
        return (
            node.desc.name,
            *brought,
            node.phase.value,
            "-" if node.rank < 0 else str(node.rank),
            duration(node.since),
            ago(node.heartbeat_age),
            (*node.desc.addresses, node.desc.addr)[0],
            str(node.desc.pid),
            trouble_text(node),
        )

    async with contact.session(run_id) as backend:
        found = await known_run(backend, run_id)
    contact.tell(found, *explained(found)[: 1 if found.closed is None else 2])
    if found.nodes and not contact.json:
        bring = any(node.desc.brings is not None for node in found.nodes)
        headings = ("STATE", "RANK", "SINCE", "HEARTBEAT", "ADDRESS", "PID", "REMARK")
        named = ("NODE", "ROLE", "SLOTS") if bring else ("NODE",)
        write_table((*named, *headings), [row(node) for node in found.nodes])


def state_of(run: RunSummary | RunStatus) -> str:
    """The state of a run in a word."""
    if run.ended:
        return "ended"
    if run.closed:
        return "closed"
    return "complete" if run.complete else "gathering"


def _summary_row(run: RunSummary) -> tuple[str, ...]:
    numbers = (run.round, run.participants, run.waiting, run.spares, run.incarnation)
    return (run.run_id, state_of(run), *map(str, numbers))


async def doctor(
    contact: Contact,
    run_id: Annotated[
        str, typer.Argument(metavar="[RUN_ID]", help="A run to look at, too: is it open, who is in it.")
    ] = "",
) -> int:
    """Check what would stop a node on this machine from joining: names, ports, who answers, TLS, limits.

    One line for each check: ok, warning or failed, what was found, and what to do. Exits with 0 if a node
    could join, with 1 if not.
    """
    from arendezvous.doctor.checks import Level

    checks = await _examine(contact, run_id)
    failed = [check.name for check in checks if check.level is Level.FAILED]
    verdict = f"a node here could not join: {', '.join(failed)}" if failed else "a node here could join"
    data = {"url": without_password(contact.url), "joinable": not failed, "checks": checks}
    contact.tell(data, *map(str, checks), verdict)
    return ExitCode.FAILED if failed else ExitCode.OK


async def _examine(contact: Contact, run_id: str) -> list[Finding]:
    """Makes the checks of the scheme, and, if there is somebody to ask, that of the run."""
    from arendezvous.doctor.checks import Level, check_run
    from arendezvous.schemes import urls_where

    scheme, where = contact.located(run_id or "doctor")
    if scheme.examine is None:
        expected = f"a URL that begins with {urls_where(lambda other: other.examine)}"
        raise RendezvousSettingsError.of("URL", contact.url, f"{expected}: of others nothing can be checked")
    checks = await scheme.examine(where)
    if run_id and any(check.name in _ANSWERED and check.level is Level.OK for check in checks):
        checks.append(await check_run(contact.session(run_id)))
    return checks


async def watch(contact: Contact, run_id: RunId) -> None:
    """Show what happens to a run, as it happens, until Ctrl-C or SIGTERM (exit code 0).

    The run need not exist yet. A server that ends is waited for. With --json: one object a line, first the
    status, then every event; another status after each outage.
    """
    import sys

    from arendezvous.connecting import news_of, without_server
    from arendezvous.observing import NewsFeed

    scheme, where = contact.located(run_id)
    if scheme.watch is None or not scheme.is_shared:
        raise without_server(contact.url, lambda other: other.watch and other.is_shared)
    feed = NewsFeed(news_of(scheme, where))
    with cancelled_by_signals():
        if contact.json:
            await feed.follow(_write_json)
        elif sys.stdout.isatty():
            from arendezvous.cli.watch_screen import WatchScreen

            with WatchScreen() as screen:
                await _show(feed, screen)
        else:
            await _show(feed, None)


async def _show(feed: NewsFeed[Any], screen: WatchScreen | None) -> None:
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
