"""``arendezvous serve``: the server in a process of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from arendezvous.cli.exits import run_async


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 picks a free one.")
    ] = 29400,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Allow an address that is not loopback: anybody who reaches it may join and close runs.",
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every incident to stderr.")] = False,
) -> None:
    """Serve rendezvous, and a key-value store in the protocol of torch's TCPStore, until SIGTERM or Ctrl-C.

    The first line on stdout is "serving tcp://HOST:PORT". Uses uvloop if it is installed, and raises the
    limit on open files to what this process is allowed.
    """
    import logging

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    run_async(_serve, host, port, insecure, use_uvloop=True)


async def _serve(host: str, port: int, insecure: bool) -> None:
    import anyio

    from arendezvous.cli.open_files import raise_open_files
    from arendezvous.cli.signals import CancelledBySignals
    from arendezvous.endpoint import join_host_port
    from arendezvous.server.serve import serve as serving

    raise_open_files()
    with CancelledBySignals() as stop:
        async with serving(join_host_port(host, port), insecure=insecure) as server:
            typer.echo(f"serving {server.tcp_url}")
            await anyio.sleep_forever()
    assert stop.signal is not None  # noqa: S101 - nothing else ends the block without an error
    typer.echo(f"stopped by {stop.signal.name}", err=True)
