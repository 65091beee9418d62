"""Looking at the runs of a server, and steering them, for synchronous programs; see `arendezvous.connect`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import ClassVar, Self, TypeVar, TypeVarTuple, Unpack

from arendezvous import connecting, guesses
from arendezvous.connecting import READ_TIMEOUT, LookingOptions
from arendezvous.law.events import LawEvent
from arendezvous.law.status import NodeStatus, RunStatus
from arendezvous.observing import Missed
from arendezvous.observing import RunObserver as AsyncRunObserver
from arendezvous.rendezvous.options import Seconds, takes_options
from arendezvous.sync.loop_thread import loop_thread
from arendezvous.wire.native.messages import RunSummary

T = TypeVar("T")
Args = TypeVarTuple("Args")


class RunObserver(guesses.Guessable):
    """Looks on at one run, blocking; see `arendezvous.RunObserver`.

    Args:
        observer: An asynchronous observer that has not been entered yet.
    """

    GUESSES: ClassVar[Mapping[str, str]] = guesses.OBSERVER

    def __init__(self, observer: AsyncRunObserver) -> None:
        self.asynchronous = observer
        self._loop = loop_thread()

    def __repr__(self) -> str:
        return repr(self.asynchronous)

    def __enter__(self) -> Self:
        """Connects, and takes the first status; raises what the asynchronous observer raises."""
        self._loop.run(self, self.asynchronous.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects."""
        self._loop.run(self, self.asynchronous.__aexit__, kind, error, trace)

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
            yield self._loop.run(self, self.asynchronous.__anext__)


class ServerConnection(guesses.Guessable):
    """The runs of a server, seen and steered from outside, blocking; see `arendezvous.ServerConnection`.

    Args:
        connection: The asynchronous connection.
    """

    GUESSES: ClassVar[Mapping[str, str]] = guesses.CONNECTION

    def __init__(self, connection: connecting.ServerConnection) -> None:
        self.asynchronous = connection
        self._loop = loop_thread()

    def __repr__(self) -> str:
        return repr(self.asynchronous)

    def __enter__(self) -> Self:
        """Checks that the server can be reached, and lets us in."""
        self._run(self.asynchronous.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: no connection is kept."""

    def _run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        return self._loop.run(self, function, *args)

    def runs(self) -> Sequence[RunSummary]:
        """Lists the runs of the server that the token is good for."""
        return self._run(self.asynchronous.runs)

    def status(self, run_id: str) -> RunStatus:
        """Tells all of a run."""
        return self._run(self.asynchronous.status, run_id)

    def observe(self, run_id: str) -> RunObserver:
        """Looks on at a run, which need not exist yet."""
        return RunObserver(self.asynchronous.observe(run_id))

    def close(self, run_id: str, reason: str = "") -> RunStatus:
        """Closes a run: no further round will form, and all of its nodes are told."""
        return self._run(self.asynchronous.close, run_id, reason)

    def reopen(self, run_id: str) -> RunStatus:
        """Opens a closed run anew, as its next incarnation."""
        return self._run(self.asynchronous.reopen, run_id)

    def drain(self, run_id: str, node: str, deadline: Seconds = 30.0, reason: str = "") -> RunStatus:
        """Announces that a member must leave within `deadline`."""
        return self._run(self.asynchronous.drain, run_id, node, deadline, reason)

    def resize(
        self,
        run_id: str,
        min_nodes: int | None,
        max_nodes: int | None = None,
        *,
        role: str = "",
        reason: str = "",
    ) -> RunStatus:
        """Changes how many nodes a round has; None: as the nodes agreed, again."""
        call = partial(self.asynchronous.resize, run_id, min_nodes, max_nodes, role=role, reason=reason)
        return self._run(call)

    def hold(self, run_id: str, reason: str = "", seconds: Seconds | None = None) -> RunStatus:
        """Has no round complete, for so long or until `release`."""
        return self._run(self.asynchronous.hold, run_id, reason, seconds)

    def release(self, run_id: str) -> RunStatus:
        """Ends a hold."""
        return self._run(self.asynchronous.release, run_id)

    def quarantine(
        self,
        run_id: str,
        node: str = "",
        *,
        label: str = "",
        seconds: Seconds | None = None,
        reason: str = "",
    ) -> RunStatus:
        """Keeps a node, or all nodes with one label, out of a run, for so long or until `pardon`."""
        call = partial(
            self.asynchronous.quarantine, run_id, node, label=label, seconds=seconds, reason=reason
        )
        return self._run(call)

    def pardon(self, run_id: str, node: str = "", *, label: str = "") -> RunStatus:
        """Lets a node, or the nodes with one label, in again."""
        return self._run(partial(self.asynchronous.pardon, run_id, node, label=label))


@takes_options(LookingOptions)
def connect(
    endpoint: str, *, by: str = "", read_timeout: Seconds = READ_TIMEOUT, **options: Unpack[LookingOptions]
) -> ServerConnection:
    """Makes a connection to a server, to look at its runs and to steer them; for a ``with`` statement.

    It takes what `arendezvous.connect` takes, and raises what that raises.

    Args:
        endpoint: The server, or the cluster, as a URL.
        by: Who decides, for those who are told of it; empty: user and host.
        read_timeout: Seconds, or a `timedelta`, that connecting, or an answer, may take.
        options: See below.
    """
    return ServerConnection(connecting.connect(endpoint, by=by, read_timeout=read_timeout, **options))


@takes_options(LookingOptions)
def observe(
    endpoint: str, *, run_id: str, read_timeout: Seconds = READ_TIMEOUT, **options: Unpack[LookingOptions]
) -> RunObserver:
    """Looks on at a run, without a rank or a vote in it; for a ``with`` statement.

    It takes what `arendezvous.observe` takes, and raises what that raises.

    Args:
        endpoint: The server, or the cluster, as a URL.
        run_id: The run; it need not exist yet.
        read_timeout: Seconds, or a `timedelta`, that connecting may take.
        options: See below.
    """
    return RunObserver(connecting.observe(endpoint, run_id=run_id, read_timeout=read_timeout, **options))
