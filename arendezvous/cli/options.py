"""The common parts of the commands that look at a server: arguments, connecting, and finding the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from arendezvous.cli.command import time_option
from arendezvous.cli.exits import NotFoundError
from arendezvous.errors import RendezvousSettingsError

if TYPE_CHECKING:
    from arendezvous.backends.port import RendezvousBackend
    from arendezvous.law.status import RunStatus
    from arendezvous.schemes import BackendSettings, Scheme

Url: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="The server, or the cluster: tcp://host:29400, etcd://h1,h2,h3; or put it into ARENDEZVOUS_URL.",
    ),
]
RunId: TypeAlias = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
Timeout: TypeAlias = Annotated[float, time_option(0.1, 3600, "How long to try to reach the server.")]
Reason: TypeAlias = Annotated[str, typer.Option(metavar="TEXT", help="Why; all nodes are told.")]


def located(url: str, run_id: str, timeout: float) -> tuple[Scheme, BackendSettings]:
    """Returns the entry of the URL's scheme, and what a backend there is made from, by the command's options.

    Raises:
        RendezvousSettingsError: The URL is malformed, or has an unknown scheme.
    """
    from arendezvous.cli.credentials import given
    from arendezvous.schemes import BackendSettings, parse_endpoint, scheme_named

    endpoint = parse_endpoint(url)
    scheme = scheme_named(endpoint.scheme)
    where = BackendSettings(
        endpoint=endpoint,
        run_id=run_id,
        read_timeout=timeout,
        join_timeout=timeout,
        credentials=given.get(),
        options=scheme.filled({"is_host": False}),
    )
    return scheme, where


def session(url: str, run_id: str, timeout: float) -> RendezvousBackend:
    """Makes the backend, not entered yet, through which a command looks at a run.

    Raises:
        RendezvousSettingsError: The URL is malformed, or has a scheme whose runs no command sees.
    """
    scheme, where = located(url, run_id, timeout)
    if scheme.backend is None or not scheme.is_shared:
        from arendezvous.schemes import urls_where

        expected = f"a URL that begins with {urls_where(lambda other: other.backend and other.is_shared)}"
        raise RendezvousSettingsError.of("URL", url, f"{expected}: commands see no runs of {scheme.name}://")
    return scheme.backend(where)


def without_server(url: str, has: Callable[[Scheme], object]) -> RendezvousSettingsError:
    """Builds the error for a command that needs a server, at a URL where there is none.

    Args:
        url: The URL.
        has: Tells whether a scheme would do.
    """
    from arendezvous.schemes import urls_where

    expected = f"a URL that begins with {urls_where(has)}"
    advice = "in a store, 'status' with a RUN_ID and 'explain' show a run"
    return RendezvousSettingsError.of("URL", url, f"{expected}; {advice}")


async def known_run(backend: RendezvousBackend, run_id: str) -> RunStatus:
    """Takes stock of the run.

    Raises:
        NotFoundError: Nobody there knows it.
    """
    from arendezvous.law.status import is_unknown
    from arendezvous.schemes import ServerBackend

    status = await backend.status()
    if not is_unknown(status):
        return status
    if not isinstance(backend, ServerBackend):
        raise NotFoundError(f"there is no run {run_id!r} at {backend.endpoint}: nobody has joined it yet")
    known = [run.run_id for run in await backend.runs()]
    if run_id in known:  # somebody has come meanwhile, as after a restart of the server
        return await backend.status()
    raise _no_such(f"run {run_id!r} at {backend.endpoint}", run_id, known)


def known_node(status: RunStatus, node: str) -> None:
    """Checks that `node` is in the run.

    Raises:
        NotFoundError: It is not.
    """
    names = [known.desc.name for known in status.nodes]
    if node not in names:
        raise _no_such(f"node {node!r} in run {status.run_id!r}", node, names)


def operator() -> str:
    """Names the one who gives this command, for people: user and host."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _no_such(what: str, wanted: str, known: Iterable[str]) -> NotFoundError:
    import difflib

    names = list(known)
    near = difflib.get_close_matches(wanted, names, 1)
    hint = f"; did you mean {near[0]}?" if near else "."
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return NotFoundError(f"there is no {what}{hint} Known: {', '.join(names[:8]) or 'none'}{more}")
