"""Looking at the runs of a server, and steering them, for synchronous programs; see `arendezvous.connect`."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self, Unpack

from arendezvous import connecting, guesses
from arendezvous.connecting import READ_TIMEOUT, LookingOptions
from arendezvous.connecting import ServerConnection as AsyncConnection
from arendezvous.law.events import LawEvent
from arendezvous.law.status import NodeStatus, RunStatus
from arendezvous.observing import Missed
from arendezvous.observing import RunObserver as AsyncRunObserver
from arendezvous.rendezvous.options import Seconds, takes_options
from arendezvous.sync.blocking import Blocking, blocking


class RunObserver(Blocking[AsyncRunObserver]):
    """Looks on at one run, blocking; see `arendezvous.RunObserver`."""

    GUESSES = guesses.OBSERVER

    def __enter__(self) -> Self:
        """Connects, and takes the first status; raises what the asynchronous observer raises."""
        self._run(self.asynchronous.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects."""
        self._run(self.asynchronous.__aexit__, kind, error, trace)

    @property
    def run_id(self) -> str:
        """The run."""
        return self.asynchronous.run_id

    @property
    def status(self) -> RunStatus:
        """The latest status."""
        return self.asynchronous.status

    @property
    def members(self) -> tuple[NodeStatus, ...]:
        """The members of the complete round that are here, by rank."""
        return self.asynchronous.members

    @property
    def outage(self) -> str:
        """Says why the server cannot be reached at present; empty if it can."""
        return self.asynchronous.outage

    def __iter__(self) -> Iterator[LawEvent | Missed]:
        """Iterates over what happens to the run; blocks until something does."""
        while True:
            yield self._run(self.asynchronous.__anext__)


class ServerConnection(Blocking[AsyncConnection]):
    """The runs of a server, seen and steered from outside, blocking; see `arendezvous.ServerConnection`."""

    GUESSES = guesses.CONNECTION

    def __enter__(self) -> Self:
        """Checks that the server can be reached, and lets us in."""
        self._run(self.asynchronous.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: no connection is kept."""

    def observe(self, run_id: str) -> RunObserver:
        """Looks on at a run, which need not exist yet."""
        return RunObserver(self.asynchronous.observe(run_id))

    runs = blocking(AsyncConnection.runs)
    """Lists the runs of the server that the token is good for."""
    status = blocking(AsyncConnection.status)
    """Tells all of a run."""
    close = blocking(AsyncConnection.close)
    """Closes a run: no further round will form, and all of its nodes are told."""
    reopen = blocking(AsyncConnection.reopen)
    """Opens a closed run anew, as its next incarnation."""
    drain = blocking(AsyncConnection.drain)
    """Announces that a member must leave within `deadline`."""
    resize = blocking(AsyncConnection.resize)
    """Changes how many nodes a round has; None: as the nodes agreed, again."""
    hold = blocking(AsyncConnection.hold)
    """Has no round complete, for so long or until `release`."""
    release = blocking(AsyncConnection.release)
    """Ends a hold."""
    quarantine = blocking(AsyncConnection.quarantine)
    """Keeps a node, or all nodes with one label, out of a run, for so long or until `pardon`."""
    pardon = blocking(AsyncConnection.pardon)
    """Lets a node, or the nodes with one label, in again."""


@takes_options(LookingOptions)
def connect(
    endpoint: str, *, by: str = "", read_timeout: Seconds = READ_TIMEOUT, **options: Unpack[LookingOptions]
) -> ServerConnection:
    """Makes a connection to a server, to look at its runs and to steer them; for a ``with`` statement.

    It takes what `arendezvous.connect` takes, and raises what that raises.
    """
    return ServerConnection(connecting.connect(endpoint, by=by, read_timeout=read_timeout, **options))


@takes_options(LookingOptions)
def observe(
    endpoint: str, *, run_id: str, read_timeout: Seconds = READ_TIMEOUT, **options: Unpack[LookingOptions]
) -> RunObserver:
    """Looks on at a run, without a rank or a vote in it; for a ``with`` statement.

    It takes what `arendezvous.observe` takes, but for all runs at once, and raises what that raises.
    """
    return RunObserver(connecting.observe(endpoint, run_id=run_id, read_timeout=read_timeout, **options))
