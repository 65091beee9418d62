"""Looks at the runs of a server, and steers them, from a program that is no node of any of them."""

from __future__ import annotations

import difflib
import getpass
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Final, Self, Unpack, overload

from arendezvous import guesses
from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import (
    RendezvousNotFoundError,
    RendezvousSettingsError,
    RendezvousStateError,
    RendezvousTypeError,
)
from arendezvous.law.checks import check_id
from arendezvous.law.operations import (
    Close,
    Drain,
    Hold,
    Operation,
    Pardon,
    Quarantine,
    Release,
    Reopen,
    Resize,
)
from arendezvous.law.status import RunStatus, is_unknown
from arendezvous.net.credentials import Credentials
from arendezvous.observing import RunNews, RunObserver, ServerBackend, ServerObserver, ask_for_runs
from arendezvous.rendezvous.option_groups import AccessOptions, EtcdOptions, TokenOptions
from arendezvous.rendezvous.options import Seconds, check_options, settings_of, takes_options, text
from arendezvous.rendezvous.options import seconds as as_seconds
from arendezvous.schemes import BackendSettings, Scheme, parse_endpoint, scheme_named, urls_where
from arendezvous.wire.native.messages import RunSummary

READ_TIMEOUT: Final = 5.0  # seconds; whoever looks on has no node that depends on it


class LookingOptions(AccessOptions, EtcdOptions, total=False):
    """Lists what a server, or etcd, is shown by whoever looks at its runs."""


class ServerConnection(guesses.Guessable):
    """The runs of one server, or of those that stand in for each other, seen and steered from outside.

    Each call is a connection of its own, so that a server that was restarted, or another that leads now, is
    found by the next one. All of them may be made by any number of tasks at once.

    Args:
        scheme: The entry of the URL's scheme.
        where: Where the server is; its `run_id` does not count.
        by: Who decides, for those who are told of it; empty: user and host.

    Errors of all calls, besides those that they name:
        RendezvousConnectionError: The server could not be reached within the read time-out.
        RendezvousPermissionError: The token is missing or wrong, or not good for this.
        RendezvousNotFoundError: There is no such run, or no such node in it.

    Cancellation of whatever changes something: whether it was done is then unknown; to do it again is
    harmless.
    """

    GUESSES = guesses.CONNECTION

    def __init__(self, scheme: Scheme, where: BackendSettings, by: str = "") -> None:
        self._scheme = scheme
        self._where = where
        self._by = by or operator()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._where.endpoint} as {self._by!r}>"

    async def __aenter__(self) -> Self:
        """Checks that the server can be reached, and lets us in. Cancellation: safe."""
        async with self._session(""):
            return self

    async def __aexit__(self, *_: object) -> None:
        """Does nothing: no connection is kept."""

    @property
    def by(self) -> str:
        """Names who decides, for those who are told of it."""
        return self._by

    async def runs(self) -> Sequence[RunSummary]:
        """Lists the runs of the server that the token is good for. Cancellation: safe."""
        async with self._session("") as backend:
            if not isinstance(backend, ServerBackend):
                raise no_server(self._scheme)
            return await backend.runs()

    async def status(self, run_id: str) -> RunStatus:
        """Tells all of a run: who is in, who is missing, who was dropped and why. Cancellation: safe."""
        async with self._session(run_id) as backend:
            return await known_run(backend, run_id)

    def observe(self, run_id: str) -> RunObserver:
        """Looks on at a run; see `arendezvous.observe`. The run need not exist yet."""
        check_id("run_id", text("run_id", run_id))
        return RunObserver(run_id, news_of(self._scheme, replace(self._where, run_id=run_id)))

    def observe_runs(self) -> ServerObserver:
        """Looks on at all runs; see `arendezvous.observe`."""
        if not self._scheme.is_server:
            raise no_server(self._scheme)
        watch = self._scheme.watch_runs or partial(ask_for_runs, self._scheme)
        return ServerObserver(self._scheme.name, partial(watch, self._where))

    async def close(self, run_id: str, reason: str = "") -> RunStatus:
        """Closes a run: no further round will form, and all of its nodes are told.

        To close one that is closed changes nothing.

        Args:
            run_id: The run.
            reason: Why, for the nodes; may be empty.
        """
        text("reason", reason)
        return await self._decide(run_id, lambda run: Close(self._by, reason, run.incarnation))

    async def reopen(self, run_id: str) -> RunStatus:
        """Opens a closed run anew, as its next incarnation; nodes that are still in it are dropped.

        Raises:
            RendezvousStateError: The run is not closed.
        """

        def reopening(run: RunStatus) -> Reopen:
            if run.closed is None:
                raise RendezvousStateError(f"run {run_id!r} is not closed, so it cannot be reopened")
            return Reopen(run.incarnation, self._by)

        return await self._decide(run_id, reopening)

    async def drain(self, run_id: str, node: str, deadline: Seconds = 30.0, reason: str = "") -> RunStatus:
        """Announces that a member must leave; the others meet without it, and a spare is called up first.

        Args:
            run_id: The run.
            node: The node; one that is no member of a complete round is removed at once.
            deadline: Seconds after which it is removed at the latest.
            reason: Why, for the nodes; may be empty.
        """
        drain = Drain(node, as_seconds("deadline", deadline, zero=True), text("reason", reason))

        def draining(run: RunStatus) -> Drain:
            names = [known.desc.name for known in run.nodes]
            if node not in names:
                raise _no_such(f"node {node!r} in run {run_id!r}", node, names)
            return drain

        return await self._decide(run_id, draining)

    async def resize(
        self,
        run_id: str,
        min_nodes: int | None,
        max_nodes: int | None = None,
        *,
        role: str = "",
        reason: str = "",
    ) -> RunStatus:
        """Changes how many nodes a round has, whatever the nodes agreed on.

        If a complete round has more than it may have then, its members are told, and meet again.

        Args:
            run_id: The run.
            min_nodes: A round never completes with fewer; None: as the nodes agreed, again.
            max_nodes: A round never has more; None: as many as `min_nodes`.
            role: Of this role; empty in a run without roles.
            reason: Why, for the nodes; may be empty.

        Raises:
            RendezvousSettingsError: No run can have these numbers, or the run has no such role.
        """
        least = min_nodes or 0
        if min_nodes is not None and min_nodes < (0 if role else 1):
            raise RendezvousSettingsError.of("min_nodes", min_nodes, "at least 1, or None")
        most = least if max_nodes is None or min_nodes is None else max_nodes
        resize = Resize(least, most, text("role", role), self._by, text("reason", reason))
        return await self._decide(run_id, resize)

    async def hold(self, run_id: str, reason: str = "", seconds: Seconds | None = None) -> RunStatus:
        """Has no round complete until the run is released; a round that is complete is not touched.

        Args:
            run_id: The run.
            reason: Why, for whoever asks what it waits for; may be empty.
            seconds: For how long; None: until `release`.
        """
        time = None if seconds is None else as_seconds("seconds", seconds)
        return await self._decide(run_id, Hold(self._by, text("reason", reason), time))

    async def release(self, run_id: str) -> RunStatus:
        """Ends a hold: a round that is due completes. If the run is not held nothing happens."""
        return await self._decide(run_id, Release(self._by))

    async def quarantine(
        self,
        run_id: str,
        node: str = "",
        *,
        label: str = "",
        seconds: Seconds | None = None,
        reason: str = "",
    ) -> RunStatus:
        """Keeps a node, or all nodes with one label, out of a run; who is in it departs at once.

        Args:
            run_id: The run.
            node: The node; it need not be in the run.
            label: The label, in place of a node.
            seconds: For how long; None: until `pardon`.
            reason: Why, for the nodes; may be empty.

        Raises:
            RendezvousStateError: Too many nodes and labels are quarantined already.
        """
        time = None if seconds is None else as_seconds("seconds", seconds)
        order = Quarantine(*_target(node, label), time, self._by, text("reason", reason))
        return await self._decide(run_id, order)

    async def pardon(self, run_id: str, node: str = "", *, label: str = "") -> RunStatus:
        """Lets a node, or the nodes with one label, in again; the node's strikes are forgotten, too.

        Args:
            run_id: The run.
            node: The node.
            label: The label, in place of a node.
        """
        return await self._decide(run_id, Pardon(*_target(node, label), self._by))

    async def _decide(self, run_id: str, what: Operation | Callable[[RunStatus], Operation]) -> RunStatus:
        """Has something done to a run that there is; returns what it looks like then."""
        async with self._session(run_id) as backend:
            run = await known_run(backend, run_id)
            await backend.propose(what(run) if callable(what) else what)
            return await backend.status()

    def _session(self, run_id: str) -> RendezvousBackend:
        scheme = self._scheme
        if scheme.backend is None:
            raise no_server(scheme)
        return scheme.backend(replace(self._where, run_id=run_id))


@takes_options(LookingOptions)
def connect(
    endpoint: str, *, by: str = "", read_timeout: Seconds = READ_TIMEOUT, **options: Unpack[LookingOptions]
) -> ServerConnection:
    """Makes a connection to a server, to look at its runs and to steer them without being a node of any.

    To be used in an ``async with`` statement, which raises `RendezvousConnectionError` if the server cannot
    be reached.

    Args:
        endpoint: The server, or the cluster, as a URL: ``tcp://host:29400``, ``http://h1,h2``, ``etcd://h1``.
        by: Who decides, for those who are told of it; empty: user and host.
        read_timeout: Seconds, or a `timedelta`, that connecting, or an answer, may take.
        options: See below.

    Raises:
        RendezvousSettingsError: The URL, or an option, is not allowed; or there is no server at such a URL.
        RendezvousTypeError: A value is of another type than the option's, or there is no option of that name.
    """
    return ServerConnection(*looking(endpoint, read_timeout, options), text("by", by))


@overload
def observe(
    endpoint: str, *, run_id: str, read_timeout: Seconds = ..., **options: Unpack[LookingOptions]
) -> RunObserver: ...


@overload
def observe(
    endpoint: str, *, run_id: None = ..., read_timeout: Seconds = ..., **options: Unpack[LookingOptions]
) -> ServerObserver: ...


@takes_options(LookingOptions)
def observe(
    endpoint: str,
    *,
    run_id: str | None = None,
    read_timeout: Seconds = READ_TIMEOUT,
    **options: Unpack[LookingOptions],
) -> RunObserver | ServerObserver:
    """Looks on at a run, without a rank or a vote in it; a token that only reads is enough.

    To be used in an ``async with`` statement, which raises `RendezvousConnectionError` if the server cannot
    be reached. See `RunObserver`, and for all runs `ServerObserver`.

    Args:
        endpoint: The server, or the cluster, as a URL: ``tcp://host:29400``, ``http://h1,h2``, ``etcd://h1``.
        run_id: The run, which need not exist yet; None: all runs.
        read_timeout: Seconds, or a `timedelta`, that connecting may take.
        options: See below.

    Raises:
        RendezvousSettingsError: As `connect` does; or nobody at such a URL could tell of a run.
        RendezvousTypeError: As `connect` does.
    """
    server = ServerConnection(*looking(endpoint, read_timeout, options))
    return server.observe_runs() if run_id is None else server.observe(run_id)


def news_of(scheme: Scheme, where: BackendSettings) -> Callable[[], AbstractAsyncContextManager[RunNews]]:
    """Returns what watches a run, if anybody at such a URL can tell of one."""
    if scheme.watch is None:
        raise without_server(f"{scheme.name}://", lambda other: other.watch)
    return partial(scheme.watch, where)


def looking(
    endpoint: str, read_timeout: Seconds, options: Mapping[str, Any]
) -> tuple[Scheme, BackendSettings]:
    """Finds out from a URL, and what a user wrote, whom to ask, and what to show there; see `connect`."""
    where = parse_endpoint(endpoint)
    scheme = scheme_named(where.scheme)
    if scheme.backend is None or not scheme.is_server:
        raise without_server(endpoint, lambda other: other.is_server)
    groups = [group for group in (AccessOptions, TokenOptions, EtcdOptions) if group in scheme.options]
    known = settings_of(*groups)
    for name, value in options.items():
        if name not in known and value is not None:
            expected = f"left out for {scheme.name}://, which takes {', '.join(known) or 'no options'}"
            kind = RendezvousSettingsError if name in settings_of(LookingOptions) else RendezvousTypeError
            raise kind(f"{name} must be {expected}", name=name, expected=expected)
    given = check_options(known, {name: value for name, value in options.items() if name in known})
    return scheme, looked_at(scheme, endpoint, as_seconds("read_timeout", read_timeout), **given)


def looked_at(
    scheme: Scheme, endpoint: str, timeout: float, credentials: Credentials | None = None, **given: Any
) -> BackendSettings:
    """Makes what a backend is made from by which nobody takes part in a run."""
    return BackendSettings(
        endpoint=parse_endpoint(endpoint),
        run_id="",
        read_timeout=timeout,
        join_timeout=timeout,
        credentials=scheme.credentials(given) if credentials is None else credentials,
        options=scheme.filled({**given, "is_host": False}),
    )


def without_server(url: str, has: Callable[[Scheme], object]) -> RendezvousSettingsError:
    """Builds the error for a URL where nobody could be asked; `has` tells which other schemes would do."""
    expected = f"a URL that begins with {urls_where(has)}"
    advice = "in a store, 'status' with a RUN_ID and 'explain' show a run"
    return RendezvousSettingsError.of("URL", url, f"{expected}; {advice}")


def no_server(scheme: Scheme) -> RendezvousSettingsError:
    """Builds the error for a scheme whose backends are none of a server."""
    return without_server(f"{scheme.name}://", lambda other: other.is_server)


async def known_run(backend: RendezvousBackend, run_id: str) -> RunStatus:
    """Takes stock of the run, which somebody there must know."""
    status = await backend.status()
    if not is_unknown(status):
        return status
    if not isinstance(backend, ServerBackend):
        message = f"there is no run {run_id!r} at {backend.endpoint}: nobody has joined it yet"
        raise RendezvousNotFoundError(message)
    known = [run.run_id for run in await backend.runs()]
    if run_id in known:  # somebody has come meanwhile, as after a restart of the server
        return await backend.status()
    raise _no_such(f"run {run_id!r} at {backend.endpoint}", run_id, known)


def operator() -> str:
    """Names the one who runs this process, for people: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _target(node: str, label: str) -> tuple[str, bool]:
    """Tells whom an order is for, a node or all with a label, and whether it is the latter."""
    if bool(text("node", node)) is bool(text("label", label)):
        raise RendezvousSettingsError.of("node", node, "the name of a node, or left out for a label")
    return (label, True) if label else (node, False)


def _no_such(what: str, wanted: str, known: Iterable[str]) -> RendezvousNotFoundError:
    names = list(known)
    near = difflib.get_close_matches(wanted, names, 1)
    hint = f"; did you mean {near[0]}?" if near else "."
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return RendezvousNotFoundError(f"there is no {what}{hint} Known: {', '.join(names[:8]) or 'none'}{more}")
