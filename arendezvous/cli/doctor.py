"""``arendezvous doctor``: what would stop this node from joining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from arendezvous.cli.exits import ExitCode, run_async
from arendezvous.cli.options import Json, Url, located, session
from arendezvous.cli.output import say
from arendezvous.errors import RendezvousSettingsError, without_password

if TYPE_CHECKING:
    from arendezvous.doctor.checks import Finding

_ANSWERED: Final = ("server", "cluster")  # the checks that tell that there is somebody to ask


def doctor(
    url: Url,
    run_id: Annotated[
        str, typer.Argument(metavar="[RUN_ID]", help="A run to look at, too: is it open, who is in it.")
    ] = "",
    json: Json = False,
) -> None:
    """Check what would stop a node on this machine from joining: names, ports, who answers, TLS, limits.

    One line for each check: ok, warning or failed, what was found, and what to do. Exits with 0 if a node
    could join, with 1 if not.
    """
    run_async(_doctor, url, run_id, json)


async def _doctor(url: str, run_id: str, json: bool) -> int:
    from arendezvous.cli.output import write_json
    from arendezvous.doctor.checks import Level

    checks = await _examine(url, run_id)
    failed = [check.name for check in checks if check.level is Level.FAILED]
    if json:
        write_json({"url": without_password(url), "joinable": not failed, "checks": checks})
    else:
        for check in checks:
            say(str(check))
        verdict = f"a node here could not join: {', '.join(failed)}" if failed else "a node here could join"
        say(verdict)
    return ExitCode.FAILED if failed else ExitCode.OK


async def _examine(url: str, run_id: str) -> list[Finding]:
    """Makes the checks of the scheme, and, if there is somebody to ask, that of the run."""
    from arendezvous.doctor.checks import CHECK_TIMEOUT, Level, check_run

    scheme, where = located(url, run_id or "doctor", CHECK_TIMEOUT)
    if scheme.examine is None:
        from arendezvous.schemes import urls_where

        expected = f"a URL that begins with {urls_where(lambda other: other.examine)}"
        raise RendezvousSettingsError.of("URL", url, f"{expected}: of others nothing can be checked")
    checks = await scheme.examine(where)
    if run_id and any(check.name in _ANSWERED and check.level is Level.OK for check in checks):
        checks.append(await check_run(session(url, run_id, CHECK_TIMEOUT)))
    return checks
