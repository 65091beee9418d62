"""``arendezvous serve``: the server in a process of its own."""

from __future__ import annotations

import gc
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

import typer

from arendezvous.cli.command import time_option
from arendezvous.cli.exits import cancelled_by_signals, run_async
from arendezvous.cli.output import say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from arendezvous.errors import RendezvousError
    from arendezvous.server.access.authority import Authority
    from arendezvous.server.fleet import FleetServer
    from arendezvous.server.serve import Server
    from arendezvous.server.tls import ServerTls


Host: TypeAlias = Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")]
Port: TypeAlias = Annotated[
    int, typer.Option(min=0, max=65535, metavar="PORT", help="The port to listen on; 0 picks a free one.")
]
HttpPort: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        metavar="PORT",
        help="The port for HTTP; 0 picks a free one.",
        show_default="no HTTP",
    ),
]
TokenFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="One token a line: TOKEN [run=RUN_ID] [read-only]. Changes are read again, or on SIGHUP.",
        show_default="ARENDEZVOUS_TOKEN, or no tokens",
    ),
]
AllowPlainStores: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-plain-stores",
        help="Let clients of a TCPStore without a token, as stock torch's, use all of the store.",
    ),
]
TlsCert: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Serve TLS with this certificate.", show_default="no TLS"),
]
TlsKey: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Its key.", show_default="in the same file")
]
TlsCa: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Let in only clients with a certificate that one of these authorities has signed.",
        show_default="any client",
    ),
]
Insecure: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Allow an address that is not loopback: anybody who reaches it may join and close runs.",
    ),
]
ConnectionRate: TypeAlias = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        metavar="NUMBER",
        help="New connections a second from one address, beyond --connection-burst.",
        show_default="any number",
    ),
]
ConnectionBurst: TypeAlias = Annotated[
    int, typer.Option(min=1, metavar="NUMBER", help="New connections that one address may make at once.")
]
RunRetention: TypeAlias = Annotated[
    float,
    time_option(0, 1e12, "After how long a run that nobody is in any more is forgotten, a closed one too."),
]
Limit: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="A limit, such as store.max_bytes=2GiB; several times. docs/limits.md names them all.",
        show_default="fit for 4 GB of memory",
    ),
]
DataDir: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep rounds, closed runs, keys and queues here, so that they outlive this process, however it"
        " ends. One server at a time.",
        show_default="in memory",
    ),
]
SyncFull: TypeAlias = Annotated[
    bool,
    typer.Option("--sync-full", help="Have what is kept in --data-dir outlive a power cut, too; slower."),
]
_ETCD: Final = "Fleet"
Etcd: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="HOST[:PORT],...",
        help="Stand in for, and be stood in for by, the other servers that name the same etcd and prefix.",
        show_default="alone",
        rich_help_panel=_ETCD,
    ),
]
EtcdPrefix: TypeAlias = Annotated[
    str, typer.Option(metavar="TEXT", help="What the fleet's keys in etcd begin with.", rich_help_panel=_ETCD)
]
EtcdUser: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Who to be in etcd; the password is in ARENDEZVOUS_ETCD_PASSWORD, or in the file.",
        show_default="ARENDEZVOUS_ETCD_USER, or nobody",
        rich_help_panel=_ETCD,
    ),
]
EtcdPasswordFile: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="Its first line is the user's password.",
        show_default="ARENDEZVOUS_ETCD_PASSWORD_FILE",
        rich_help_panel=_ETCD,
    ),
]
EtcdCaCert: TypeAlias = Annotated[
    str,
    typer.Option(
        "--etcd-cacert",
        metavar="FILE",
        help="Speak TLS with etcd and trust these authorities.",
        show_default="no TLS",
        rich_help_panel=_ETCD,
    ),
]
EtcdCert: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="The certificate to show etcd.",
        show_default="none",
        rich_help_panel=_ETCD,
    ),
]
EtcdKey: TypeAlias = Annotated[
    str,
    typer.Option(metavar="FILE", help="Its key.", show_default="in the same file", rich_help_panel=_ETCD),
]
Verbose: TypeAlias = Annotated[bool, typer.Option("--verbose", "-v", help="Log every incident to stderr.")]


THRESHOLDS: Final = (10_000, 50, 50)  # allocations, and collections of the generation before


class Wanted(NamedTuple):
    """The server that is asked for, option by option."""

    host: str
    port: int
    http_port: int | None
    token_file: Path | None
    plain_stores: bool
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    insecure: bool
    connection_rate: float | None
    connection_burst: int
    run_retention: float
    limits: list[str]
    data_dir: Path | None
    sync_full: bool
    etcd: str
    etcd_options: dict[str, str | None]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 29400,
    http_port: HttpPort = None,
    token_file: TokenFile = None,
    allow_plain_stores: AllowPlainStores = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    insecure: Insecure = False,
    connection_rate: ConnectionRate = None,
    connection_burst: ConnectionBurst = 16_384,  # as of `ServerLimits`, which --help has no time to import
    run_retention: RunRetention = 3600.0,  # likewise, of `CoordinatorLimits`
    limit: Limit = None,
    data_dir: DataDir = None,
    sync_full: SyncFull = False,
    etcd: Etcd = "",
    etcd_prefix: EtcdPrefix = "/arendezvous",
    etcd_user: EtcdUser = "",
    etcd_password_file: EtcdPasswordFile = "",
    etcd_cacert: EtcdCaCert = "",
    etcd_cert: EtcdCert = "",
    etcd_key: EtcdKey = "",
    verbose: Verbose = False,
) -> None:
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

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    wanted = Wanted(
        host=host,
        port=port,
        http_port=http_port,
        token_file=token_file,
        plain_stores=allow_plain_stores,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_ca=tls_ca,
        insecure=insecure,
        connection_rate=connection_rate,
        connection_burst=connection_burst,
        run_retention=run_retention,
        limits=limit or [],
        data_dir=data_dir,
        sync_full=sync_full,
        etcd=etcd,
        etcd_options={
            "etcd_prefix": etcd_prefix,
            "user": etcd_user or None,
            "password_file": etcd_password_file or None,
            "cacert": etcd_cacert or None,
            "cert": etcd_cert or None,
            "key": etcd_key or None,
        },
    )
    run_async(_serve, wanted, use_uvloop=True)


async def _serve(wanted: Wanted) -> None:
    import anyio

    raise_open_files()
    serving = _server_of(wanted)
    error: RendezvousError | None = None
    with cancelled_by_signals() as stop:
        async with serving as server:
            _tune_collector()
            with anyio.open_signal_receiver(signal.SIGHUP) as hangups:
                say(" ".join(["serving", *filter(None, [server.tcp_url, server.http_url])]))
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_reload, hangups, server)
                    error = await _failed(server)
                    tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    assert stop.signal is not None  # noqa: S101 - nothing else ends the block without an error
    say(f"stopped by {stop.signal.name}", err=True)


async def _failed(server: Server | FleetServer) -> RendezvousError:
    """Waits until the server cannot go on, and returns why; one that stands alone always can."""
    import anyio

    from arendezvous.server.serve import Server

    while isinstance(server, Server):
        await anyio.sleep_forever()
    return await server.failed()


async def _reload(hangups: AsyncIterator[signal.Signals], server: Server | FleetServer) -> None:
    async for _ in hangups:
        server.reload()


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
        "plain_stores": wanted.plain_stores,
        "limits": with_limits(limits, wanted.limits),
    }
    if not wanted.etcd:
        return serving(address, data_dir=wanted.data_dir, sync_full=wanted.sync_full, **options)
    if wanted.data_dir is not None:
        from arendezvous.errors import RendezvousSettingsError

        expected = "left out: with --etcd nothing is kept on this machine"
        raise RendezvousSettingsError.of("--data-dir", str(wanted.data_dir), expected)
    from arendezvous.directory.etcd import EtcdDirectory
    from arendezvous.etcd.settings import EtcdSettings
    from arendezvous.schemes import parse_endpoint
    from arendezvous.server.fleet import serve_fleet

    where = parse_endpoint(wanted.etcd, "etcd")
    directory = EtcdDirectory(**EtcdSettings.of(wanted.etcd_options).arguments(where))
    return serve_fleet(directory, address, **options)


def _authority_of(token_file: Path | None) -> Authority | None:
    """The tokens of the file; else the one in the environment; else none."""
    from arendezvous.server.access.authority import Authority

    path = token_file or os.environ.get("ARENDEZVOUS_TOKEN_FILE")
    token = os.environ.get("ARENDEZVOUS_TOKEN", "").strip()
    if token and not token_file:
        return Authority.of(token)
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


def open_files() -> tuple[int, int]:
    """Returns the soft and the hard limit; `resource.RLIM_INFINITY` stands for none."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_open_files() -> None:
    """Raises the soft limit to the hard one, as far as the system lets us."""
    soft, hard = open_files()
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems have a hard limit that they do not allow
            return
