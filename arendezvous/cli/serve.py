"""``arendezvous serve``: the server in a process of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arendezvous.cli.exits import run_async

if TYPE_CHECKING:
    from arendezvous.server.auth import Authority
    from arendezvous.server.tls import ServerTls


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 picks a free one.")
    ] = 29400,
    http_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port for HTTP; 0 picks a free one.", show_default="no HTTP"),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="One token a line: TOKEN [run=RUN_ID] [read-only]. Changes are read again, or on SIGHUP.",
            show_default="ARENDEZVOUS_TOKEN, or no tokens",
        ),
    ] = None,
    allow_plain_stores: Annotated[
        bool,
        typer.Option(
            "--allow-plain-stores",
            help="Let clients of a TCPStore without a token, as stock torch's, use all of the store.",
        ),
    ] = False,
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Serve TLS with this certificate.", show_default="no TLS"),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its key.", show_default="in the same file")
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Let in only clients with a certificate that one of these authorities has signed.",
            show_default="any client",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Allow an address that is not loopback: anybody who reaches it may join and close runs.",
        ),
    ] = False,
    connection_rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="New connections a second from one address, beyond --connection-burst.",
            show_default="any number",
        ),
    ] = None,
    connection_burst: Annotated[
        int, typer.Option(min=1, help="New connections that one address may make at once.")
    ] = 16_384,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every incident to stderr.")] = False,
) -> None:
    """Serve rendezvous, and a key-value store in the protocol of torch's TCPStore, until SIGTERM or Ctrl-C.

    The first line on stdout is "serving tcp://HOST:PORT http://HOST:PORT"; the second only with --http-port.
    Uses uvloop if it is installed, and raises the limit on open files to what this process is allowed.
    """
    import logging

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    where = (host, port, http_port)
    files = (tls_cert, tls_key, tls_ca)
    rate = (connection_rate, connection_burst)
    run_async(_serve, where, token_file, allow_plain_stores, files, insecure, rate, use_uvloop=True)


async def _serve(
    where: tuple[str, int, int | None],
    token_file: Path | None,
    plain_stores: bool,
    files: tuple[Path | None, Path | None, Path | None],
    insecure: bool,
    rate: tuple[float | None, int],
) -> None:
    import anyio

    from arendezvous.cli.collector import tune_collector
    from arendezvous.cli.open_files import raise_open_files
    from arendezvous.cli.signals import CancelledBySignals
    from arendezvous.endpoint import join_host_port
    from arendezvous.server.limits import ServerLimits
    from arendezvous.server.serve import serve as serving

    raise_open_files()
    host, port, http_port = where
    security: dict[str, Any] = {
        "authority": _authority_of(token_file),
        "tls": _tls_of(*files),
        "plain_stores": plain_stores,
        "limits": ServerLimits(connection_rate=rate[0], connection_burst=rate[1]),
    }
    with CancelledBySignals() as stop:
        address = join_host_port(host, port)
        http = None if http_port is None else join_host_port(host, http_port)
        async with serving(address, http=http, insecure=insecure, **security) as server:
            tune_collector()
            with anyio.open_signal_receiver(signal.SIGHUP) as hangups:
                typer.echo(" ".join(["serving", *filter(None, [server.tcp_url, server.http_url])]))
                async for _ in hangups:
                    server.reload()
    assert stop.signal is not None  # noqa: S101 - nothing else ends the block without an error
    typer.echo(f"stopped by {stop.signal.name}", err=True)


def _authority_of(token_file: Path | None) -> Authority | None:
    """The tokens of the file; else the one in the environment; else none."""
    from arendezvous.server.auth import Authority

    path = token_file or os.environ.get("ARENDEZVOUS_TOKEN_FILE")
    token = os.environ.get("ARENDEZVOUS_TOKEN", "").strip()
    if token and not token_file:
        return Authority.of(token)
    return Authority.from_file(path) if path else None


def _tls_of(cert: Path | None, key: Path | None, ca: Path | None) -> ServerTls | None:
    from arendezvous.errors import RendezvousSettingsError
    from arendezvous.server.tls import ServerTls

    if cert is not None:
        return ServerTls(str(cert), str(key or ""), str(ca or ""))
    for name, path in (("--tls-key", key), ("--tls-ca", ca)):
        if path is not None:
            expected = "left out without --tls-cert, the certificate to serve with"
            raise RendezvousSettingsError.of(name, str(path), expected)
    return None
