"""The common parts of the commands that look at a server: arguments, connecting, and finding the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from arendezvous.cli.command import time_option
from arendezvous.errors import RendezvousSettingsError

if TYPE_CHECKING:
    from arendezvous.backends.port import RendezvousBackend
    from arendezvous.connecting import ServerConnection
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
    from dataclasses import replace

    from arendezvous.cli.credentials import given
    from arendezvous.connecting import looked_at
    from arendezvous.schemes import parse_endpoint, scheme_named

    scheme = scheme_named(parse_endpoint(url).scheme)
    return scheme, replace(looked_at(scheme, url, timeout, given.get()), run_id=run_id)


def connection(url: str, timeout: float) -> ServerConnection:
    """Makes what asks whoever keeps the runs, and steers them. Raises as `session` does."""
    from arendezvous.connecting import ServerConnection

    scheme, where = _shared(url, "", timeout)
    return ServerConnection(scheme, where)


def session(url: str, run_id: str, timeout: float) -> RendezvousBackend:
    """Makes the backend, not entered yet, through which a command looks at a run.

    Raises:
        RendezvousSettingsError: The URL is malformed, or has a scheme whose runs no command sees.
    """
    scheme, where = _shared(url, run_id, timeout)
    assert scheme.backend is not None  # noqa: S101 - it is shared
    return scheme.backend(where)


def _shared(url: str, run_id: str, timeout: float) -> tuple[Scheme, BackendSettings]:
    scheme, where = located(url, run_id, timeout)
    if scheme.backend is None or not scheme.is_shared:
        from arendezvous.schemes import urls_where

        expected = f"a URL that begins with {urls_where(lambda other: other.backend and other.is_shared)}"
        raise RendezvousSettingsError.of("URL", url, f"{expected}: commands see no runs of {scheme.name}://")
    return scheme, where
