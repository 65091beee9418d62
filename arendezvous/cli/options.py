"""What the commands that look at a server have in common: arguments, connecting, and finding the run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Final, NoReturn, TypeAlias, cast

import typer

from arendezvous.cli.exits import NotFoundError
from arendezvous.errors import RendezvousSettingsError

if TYPE_CHECKING:
    from arendezvous.backends.http.backend import HttpBackend
    from arendezvous.backends.port import RendezvousBackend
    from arendezvous.backends.tcp.session import SessionBackend
    from arendezvous.law.status import RunStatus

HTTP: Final = ("http", "https")
Url: TypeAlias = Annotated[
    str, typer.Argument(metavar="URL", help="The server, or the cluster: tcp://host:29400, etcd://h1,h2,h3.")
]
RunId: TypeAlias = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
Timeout: TypeAlias = Annotated[
    float, typer.Option(min=0.1, max=3600, help="Seconds to try to reach the server.")
]
Reason: TypeAlias = Annotated[str, typer.Option(help="Why; all nodes are told.")]


def tcp_address(url: str) -> tuple[str, int]:
    """Returns host and port of a ``tcp://`` URL.

    Raises:
        RendezvousSettingsError: It is malformed, or has another scheme.
    """
    from arendezvous.cli.places import STORES
    from arendezvous.net.endpoint import parse_endpoint

    endpoint = parse_endpoint(url)
    if endpoint.scheme in STORES:
        expected = (
            "a URL that begins with tcp://; in a store, 'status' with a RUN_ID and 'explain' show a run"
        )
        raise RendezvousSettingsError.of("URL", url, expected)
    if endpoint.scheme != "tcp":
        raise RendezvousSettingsError.of("URL", url, "a URL that begins with tcp://")
    return endpoint.host, endpoint.port


def session(url: str, run_id: str, timeout: float) -> RendezvousBackend:
    """Makes the backend, not entered yet, through which a command looks at a run.

    Raises:
        RendezvousSettingsError: The URL is malformed, or has a scheme that no command knows.
    """
    from arendezvous.cli.places import STORES, backend_at
    from arendezvous.net.endpoint import parse_endpoint

    endpoint = parse_endpoint(url)
    if endpoint.scheme in STORES:
        return backend_at(endpoint, run_id, timeout)
    return server_session(url, run_id, timeout)


def server_session(url: str, run_id: str, timeout: float) -> SessionBackend | HttpBackend:
    """Like `session`, at a server of ours alone, and perhaps for no run.

    Raises:
        RendezvousSettingsError: The URL is malformed, or is of another scheme than ``tcp`` and ``http(s)``.
    """
    from arendezvous.backends.tcp.session import SessionBackend
    from arendezvous.cli.credentials import given
    from arendezvous.net.endpoint import parse_endpoint

    endpoint = parse_endpoint(url)
    if endpoint.scheme in HTTP:
        from arendezvous.backends.http.backend import HttpBackend

        tls = endpoint.scheme == "https"
        where = (endpoint.host, endpoint.port, run_id)
        return HttpBackend(*where, tls=tls, read_timeout=timeout, credentials=given.get())
    host, port = tcp_address(url)
    return SessionBackend(host, port, run_id, read_timeout=timeout, credentials=given.get())


async def known_run(backend: RendezvousBackend, run_id: str) -> RunStatus:
    """Takes stock of the run.

    Raises:
        NotFoundError: The server does not know it.
    """
    from arendezvous.cli.places import STORES

    status = await backend.status()
    if status.settings is None and not status.nodes and status.closed is None:
        if backend.name in STORES:
            raise NotFoundError(f"there is no run {run_id!r} at {backend.endpoint}: nobody has joined it yet")
        known = [run.run_id for run in await cast("SessionBackend | HttpBackend", backend).runs()]
        _no_such(f"run {run_id!r} at {backend.endpoint}", run_id, known)
    return status


def known_node(status: RunStatus, node: str) -> None:
    """Checks that `node` is in the run.

    Raises:
        NotFoundError: It is not.
    """
    names = [known.desc.name for known in status.nodes]
    if node not in names:
        _no_such(f"node {node!r} in run {status.run_id!r}", node, names)


def operator() -> str:
    """Who gives this command, for people: user and host."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _no_such(what: str, wanted: str, known: Iterable[str]) -> NoReturn:
    import difflib

    names = list(known)
    near = difflib.get_close_matches(wanted, names, 1)
    hint = f"; did you mean {near[0]}?" if near else "."
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise NotFoundError(f"there is no {what}{hint} Known: {', '.join(names[:8]) or 'none'}{more}")
