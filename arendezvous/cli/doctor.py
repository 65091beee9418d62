"""``arendezvous doctor``: what would stop this node from joining."""

from __future__ import annotations

import typer

from arendezvous.cli.exits import ExitCode, run_async
from arendezvous.cli.options import Json, Url, tcp_address
from arendezvous.cli.places import ETCD


def doctor(url: Url, json: Json = False) -> None:
    """Check what would stop a node on this machine from joining: names, ports, who answers, TLS, limits.

    One line for each check: ok, warning or failed, what was found, and what to do. Exits with 0 if a node
    could join, with 1 if not.
    """
    run_async(_doctor, url, json)


async def _doctor(url: str, json: bool) -> int:
    from arendezvous.cli.credentials import given
    from arendezvous.cli.doctor_checks import Level, examine
    from arendezvous.cli.output import write_json
    from arendezvous.endpoint import parse_endpoint

    endpoint = parse_endpoint(url)
    if endpoint.scheme in ETCD:
        from arendezvous.cli.doctor_etcd import examine_etcd

        checks = await examine_etcd(endpoint)
    else:
        checks = await examine(*tcp_address(url), given.get())
    failed = [check.name for check in checks if check.level is Level.FAILED]
    if json:
        write_json({"url": url, "joinable": not failed, "checks": checks})
    else:
        for check in checks:
            typer.echo(str(check))
        verdict = f"a node here could not join: {', '.join(failed)}" if failed else "a node here could join"
        typer.echo(verdict)
    return ExitCode.FAILED if failed else ExitCode.OK
