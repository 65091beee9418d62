"""``arendezvous demo``: the whole story on this machine, with real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arendezvous.cli.exits import ExitCode, cancelled_by_signals, run_async

if TYPE_CHECKING:
    from arendezvous.cli.demo_story import Show


def demo() -> None:
    """Show the whole story on this machine, with real processes, in a few seconds.

    Four processes meet, and one of them hosts the server. One is killed, and the rest meet again; a late one
    is admitted; one drains; the run is closed. Exits with 0 only if every step was observed.
    """
    run_async(_demo)


async def _demo() -> int:
    from arendezvous.cli.demo_story import Show, Story

    code = 0
    with Show(Story.STEPS) as show, cancelled_by_signals() as stop:
        code = await _tell(show)
    return stop.exit_code or code


async def _tell(show: Show) -> int:
    import time

    from arendezvous.cli.demo_cast import DemoError, assembled
    from arendezvous.cli.demo_story import Story

    began = time.monotonic()
    try:
        async with assembled(lambda: show.nodes(cast.actors.values())) as cast:
            await Story(cast, show).tell()
    except DemoError as error:
        show.failure(str(error))
        return ExitCode.FAILED
    show.success(f"every step was observed, in {time.monotonic() - began:.1f} s")
    return ExitCode.OK
