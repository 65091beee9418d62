"""The doctor's look at one run: whether a node could still join it, and who is there."""

from __future__ import annotations

from typing import Final

from arendezvous.cli.doctor_checks import CHECK_TIMEOUT, Check, Level
from arendezvous.cli.options import session
from arendezvous.errors import RendezvousError
from arendezvous.law.status import RunStatus, sentences

NAMED: Final = 8


async def check_run(url: str, run_id: str) -> Check:
    """Whether a run is open, who is in it, and who is missing.

    Args:
        url: Where the run is, or would be.
        run_id: The run.

    Raises:
        RendezvousSettingsError: The URL is of a scheme that no command knows.
    """
    try:
        async with session(url, run_id, CHECK_TIMEOUT) as backend:
            status = await backend.status()
    except RendezvousError as error:
        return Check("run", Level.FAILED, error.message)
    return judge_run(status)


def judge_run(status: RunStatus) -> Check:
    """What to say of a run that a node wants to join."""
    said = sentences(status)
    if status.closed is not None:
        advice = "open it again with 'arendezvous reopen', or use another run id"
        return Check("run", Level.FAILED, f"run {status.run_id!r} is {said[1]}", advice)
    found = said[0]
    if status.complete and status.nodes:
        names = [node.desc.name for node in status.nodes]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        found += f"; in it: {', '.join(names[:NAMED])}{more}"
    return Check("run", Level.OK, found)
