"""``arendezvous doctor``: what would stop this node from joining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from arendezvous.cli.exits import ExitCode, run_async
from arendezvous.cli.options import HTTP, Json, Url, tcp_address
from arendezvous.cli.places import ETCD

if TYPE_CHECKING:
    from arendezvous.cli.doctor_checks import Check

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
    from arendezvous.cli.doctor_checks import Level
    from arendezvous.cli.output import write_json

    checks = await _examine(url)
    if run_id and any(check.name in _ANSWERED and check.level is Level.OK for check in checks):
        from arendezvous.cli.doctor_run import check_run

        checks.append(await check_run(url, run_id))
    failed = [check.name for check in checks if check.level is Level.FAILED]
    if json:
        write_json({"url": url, "joinable": not failed, "checks": checks})
    else:
        for check in checks:
            typer.echo(str(check))
        verdict = f"a node here could not join: {', '.join(failed)}" if failed else "a node here could join"
        typer.echo(verdict)
    return ExitCode.FAILED if failed else ExitCode.OK


async def _examine(url: str) -> list[Check]:
    from arendezvous.cli.credentials import given
    from arendezvous.cli.doctor_checks import examine
    from arendezvous.net.endpoint import parse_endpoint

    endpoint = parse_endpoint(url)
    if endpoint.scheme in ETCD:
        from arendezvous.cli.doctor_etcd import examine_etcd

        return await examine_etcd(endpoint)
    if endpoint.scheme in HTTP:
        from arendezvous.cli.doctor_http import examine_http

        return await examine_http(endpoint, given.get())
    return await examine(*tcp_address(url), given.get())
