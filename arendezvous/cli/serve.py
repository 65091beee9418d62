"""``arendezvous serve``: the server in a process of its own."""

from __future__ import annotations

import gc
import inspect
import os
import resource
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from arendezvous.cli.command import time_option
from arendezvous.cli.exits import cancelled_by_signals, run_async
from arendezvous.cli.output import say

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from arendezvous.errors import RendezvousError
    from arendezvous.server.access.authority import Authority
    from arendezvous.server.fleet import FleetServer
    from arendezvous.server.serve import Server
    from arendezvous.server.tls import ServerTls


THRESHOLDS: Final = (10_000, 50, 50)  # allocations, and collections of the generation before


def _taken(metavar: str, text: str, otherwise: bool | str = True, **others: Any) -> Any:
    """Declares an option with a value; `otherwise` says what is so without it, where its default does not."""
    return typer.Option(metavar=metavar, help=text, show_default=otherwise, **others)


def _port(text: str, otherwise: bool | str = True) -> Any:
    return _taken("PORT", text, otherwise, min=0, max=65535)


def _etcd(metavar: str, text: str, otherwise: bool | str = True, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, show_default=otherwise, rich_help_panel="Fleet")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The server that is asked for: each option of the command, with what the command line says of it."""

    host: Annotated[str, _taken("ADDRESS", "The address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _port("The port to listen on; 0 picks a free one.")] = 29400
    http_port: Annotated[int | None, _port("The port for HTTP; 0 picks a free one.", "no HTTP")] = None
    token_file: Annotated[
        Path | None,
        _taken(
            "FILE",
            "One token a line: TOKEN [run=RUN_ID] [read-only]. Changes are read again, or on SIGHUP.",
            "ARENDEZVOUS_TOKEN, or no tokens",
        ),
    ] = None
    allow_plain_stores: Annotated[
        bool,
        typer.Option(
            "--allow-plain-stores",
            help="Let clients of a TCPStore without a token, as stock torch's, use all of the store.",
        ),
    ] = False
    tls_cert: Annotated[Path | None, _taken("FILE", "Serve TLS with this certificate.", "no TLS")] = None
    tls_key: Annotated[Path | None, _taken("FILE", "Its key.", "in the same file")] = None
    tls_ca: Annotated[
        Path | None,
        _taken(
            "FILE",
            "Let in only clients with a certificate that one of these authorities has signed.",
            "any client",
        ),
    ] = None
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Allow an address that is not loopback: anybody who reaches it may join and close runs.",
        ),
    ] = False
    connection_rate: Annotated[
        float | None,
        _taken(
            "NUMBER",
            "New connections a second from one address, beyond --connection-burst.",
            "any number",
            min=0.001,
        ),
    ] = None
    connection_burst: Annotated[
        int, _taken("NUMBER", "New connections that one address may make at once.", min=1)
    ] = 16_384  # as of `ServerLimits`, which --help has no time to import
    run_retention: Annotated[
        float,
        time_option(
            0, 1e12, "After how long a run that nobody is in any more is forgotten, a closed one too."
        ),
    ] = 3600.0  # likewise, of `CoordinatorLimits`
    limit: Annotated[
        list[str] | None,
        _taken(
            "NAME=VALUE",
            "A limit, such as store.max_bytes=2GiB; several times. docs/reference/limits.md names them all.",
            "fit for 4 GB of memory",
        ),
    ] = None
    data_dir: Annotated[
        Path | None,
        _taken(
            "DIR",
            "Keep rounds, closed runs, keys and queues here, so that they outlive this process, however it"
            " ends. One server at a time.",
            "in memory",
        ),
    ] = None
    sync_full: Annotated[
        bool,
        typer.Option("--sync-full", help="Have what is kept in --data-dir outlive a power cut, too; slower."),
    ] = False
    etcd: Annotated[
        str,
        _etcd(
            "HOST[:PORT],...",
            "Stand in for, and be stood in for by, the other servers that name the same etcd and prefix.",
            "alone",
        ),
    ] = ""
    etcd_prefix: Annotated[str, _etcd("TEXT", "What the fleet's keys in etcd begin with.")] = "/arendezvous"
    etcd_user: Annotated[
        str,
        _etcd(
            "NAME",
            "Who to be in etcd; the password is in ARENDEZVOUS_ETCD_PASSWORD, or in the file.",
            "ARENDEZVOUS_ETCD_USER, or nobody",
        ),
    ] = ""
    etcd_password_file: Annotated[
        str, _etcd("FILE", "Its first line is the user's password.", "ARENDEZVOUS_ETCD_PASSWORD_FILE")
    ] = ""
    etcd_cacert: Annotated[
        str, _etcd("FILE", "Speak TLS with etcd and trust these authorities.", "no TLS", "--etcd-cacert")
    ] = ""
    etcd_cert: Annotated[str, _etcd("FILE", "The certificate to show etcd.", "none")] = ""
    etcd_key: Annotated[str, _etcd("FILE", "Its key.", "in the same file")] = ""
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every incident to stderr.")] = False

    @property
    def etcd_options(self) -> dict[str, str | None]:
        """Returns the options of `etcd_arguments`; None: left out."""
        return {
            "etcd_prefix": self.etcd_prefix,
            "user": self.etcd_user or None,
            "password_file": self.etcd_password_file or None,
            "cacert": self.etcd_cacert or None,
            "cert": self.etcd_cert or None,
            "key": self.etcd_key or None,
        }


def serve(**options: Any) -> None:
    """Serve rendezvous, and a key-value store in the protocol of torch's TCPStore, until SIGTERM or Ctrl-C.

    The first line on stdout is "serving tcp://HOST:PORT http://HOST:PORT"; the second only with --http-port.
    With --etcd it is one of several servers, one of which leads; nodes name all: tcp://HOST1,HOST2,HOST3.
    Uses uvloop if it is installed, and raises the limit on open files to what this process is allowed.
    """
    import logging

    from arendezvous.wire.foreign import printable

    class Formatter(logging.Formatter):
        def formatMessage(self, record: logging.LogRecord) -> str:
            return printable(super().formatMessage(record))

    wanted, handler = Wanted(**options), logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO if wanted.verbose else logging.WARNING, handlers=[handler])
    run_async(_serve, wanted, use_uvloop=True)


serve.__signature__ = inspect.signature(Wanted, eval_str=True)  # type: ignore[attr-defined]  # typer reads it


async def _serve(wanted: Wanted) -> None:
    import asyncio

    raise_open_files()
    serving = _server_of(wanted)
    failures: list[RendezvousError] = []
    with cancelled_by_signals() as came:
        async with serving as server:
            _tune_collector()
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.reload)
            say(" ".join(["serving", *filter(None, [server.tcp_url, server.http_url])]))
            failures.append(await _failed(server))
    if failures:
        raise failures[0]
    say(f"stopped by {came[-1].name}", err=True)


async def _failed(server: Server | FleetServer) -> RendezvousError:
    """Waits until the server cannot go on, and returns why; one that stands alone always can."""
    import anyio

    from arendezvous.server.serve import Server

    while isinstance(server, Server):
        await anyio.sleep_forever()
    return await server.failed()


def _tune_collector() -> None:
    """Has the collector look less often at what stays: what is loaded by now never, the rest more rarely.

    A server's objects live as long as its members, and are freed by their reference counts. With the
    defaults, which suit programs that make many cycles, a tenth to a quarter of what many who connect and
    join cost goes into looking for some.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def _server_of(wanted: Wanted) -> AbstractAsyncContextManager[Server | FleetServer]:
    """The server, which listens as soon as it is entered."""
    from arendezvous.coordinator.budget import CoordinatorLimits
    from arendezvous.net.endpoint import join_host_port
    from arendezvous.server.access.limits import ServerLimits, with_limits
    from arendezvous.server.serve import serve as serving

    address = join_host_port(wanted.host, wanted.port)
    limits = ServerLimits(
        connection_rate=wanted.connection_rate,
        connection_burst=wanted.connection_burst,
        coordinator=CoordinatorLimits(run_retention=wanted.run_retention),
    )
    options: dict[str, Any] = {
        "http": None if wanted.http_port is None else join_host_port(wanted.host, wanted.http_port),
        "insecure": wanted.insecure,
        "authority": _authority_of(wanted.token_file),
        "tls": _tls_of(wanted.tls_cert, wanted.tls_key, wanted.tls_ca),
        "plain_stores": wanted.allow_plain_stores,
        "limits": with_limits(limits, wanted.limit or []),
    }
    if not wanted.etcd:
        return serving(address, data_dir=wanted.data_dir, sync_full=wanted.sync_full, **options)
    if wanted.data_dir is not None:
        from arendezvous.errors import RendezvousSettingsError

        expected = "left out: with --etcd nothing is kept on this machine"
        raise RendezvousSettingsError.of("--data-dir", str(wanted.data_dir), expected)
    from arendezvous.directory.etcd import EtcdDirectory
    from arendezvous.etcd.settings import etcd_arguments
    from arendezvous.schemes import parse_endpoint
    from arendezvous.server.fleet import serve_fleet

    where = parse_endpoint(wanted.etcd, "etcd")
    directory = EtcdDirectory(**etcd_arguments(wanted.etcd_options, where))
    return serve_fleet(directory, address, **options)


def _authority_of(token_file: Path | None) -> Authority | None:
    """The tokens of the file; else the one in the environment; else none."""
    from arendezvous.server.access.authority import Authority

    if not token_file and (token := os.environ.get("ARENDEZVOUS_TOKEN", "").strip()):
        return Authority.of(token)
    path = token_file or os.environ.get("ARENDEZVOUS_TOKEN_FILE")
    return Authority.from_file(path) if path else None


def _tls_of(cert: Path | None, key: Path | None, ca: Path | None) -> ServerTls | None:
    from arendezvous.errors import RendezvousSettingsError
    from arendezvous.net.tls import COMMAND_NAMES
    from arendezvous.server.tls import ServerTls

    if cert is not None:
        return ServerTls(str(cert), str(key or ""), str(ca or ""), names=COMMAND_NAMES)
    for name, path in (("--tls-key", key), ("--tls-ca", ca)):
        if path is not None:
            expected = "left out without --tls-cert, the certificate to serve with"
            raise RendezvousSettingsError.of(name, str(path), expected)
    return None


def raise_open_files() -> None:
    """Raises the soft limit to the hard one, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # some systems have a hard limit that they do not allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
