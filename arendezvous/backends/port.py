"""The port: what a rendezvous needs from whatever keeps its state.

`RendezvousBackend` is a contract between the driver (`rendezvous/driver.py`) and the places where the law
runs. The conformance suite `arendezvous.testing.check_backend` holds any implementation to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio

from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.keyspace.grants import run_prefix
from arendezvous.law.barriers import Met
from arendezvous.law.operations import DECIDED, Arrive, Join, Operation, Record, Tick, Withdraw
from arendezvous.law.rosters import Member, MemberGone
from arendezvous.law.state import NodeView
from arendezvous.law.status import RunStatus
from arendezvous.net.reach import Reach

if TYPE_CHECKING:
    from arendezvous.stores.port import HostedStore, Store


class RendezvousBackend(ABC):
    """Access to one run, for one or more nodes.

    A backend is an asynchronous context manager; nothing but its attributes may be used outside of the block.
    Any task may enter the block, and any other leave it. Inside it, methods may be called by any number of
    tasks at once. Operations of one node are applied in the order in which `propose` was called.

    Errors, besides those that each method names:
        RendezvousConnectionError: The backend could not be reached for as long as it was configured to try.
            It may be called again.
        RuntimeError: It was used outside of its block.

    Notes to implementers: never let an error of another library escape; chain it to one of ours. A connection
    that breaks is to be restored without the caller's doing, and operations in flight are to be sent again,
    which the law allows. After a break, present a member's rank with `Resume` before anything else. What goes
    on in the background is started through a `Background`, which calls `fail`. No scope or task group may be
    held open between entering the block and leaving it.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the kind of backend, as in the registry."""

    @property
    def endpoint(self) -> str:
        """Tells people where the state is kept: a URL without secrets."""
        return f"{self.name}://"

    @property
    def store(self) -> Store | None:
        """A key-value store in the same place, shared by all runs; None where there is none.

        It is opened and closed by the backend.
        """
        return None

    @property
    def carries_what_nodes_bring(self) -> bool:
        """Whether rounds have roles, and what nodes bring; not where the state is shared with stock nodes."""
        return True

    def round_prefix(self, run_id: str, view: NodeView) -> str:
        """The prefix of the keys in `store` that belong to the round of `view` alone."""
        return f"{run_prefix(run_id)}/{view.incarnation}.{view.round}.{view.digest}"

    def awaits_bootstrap(self, view: NodeView) -> bool:
        """Whether members of the round of `view` wait for rank 0 to publish its store though nobody asked.

        The driver of rank 0 then publishes it before `next_rendezvous` returns.
        """
        return False

    def host_store(self, host: str) -> AbstractAsyncContextManager[HostedStore]:
        """Serves a store for the workers of a round, in this process, while the block runs.

        The driver of rank 0 does so in each round whose workers ask for it. The store is empty at first,
        belongs to that round alone, and speaks the protocol of torch's ``TCPStore``.

        Args:
            host: The address to listen on, where the other nodes reach this one.

        Raises:
            OSError: On entering: no port of `host` can be bound.
        """
        from arendezvous.server.store_server import serve_store  # for rank 0 alone, and only if it is asked

        return serve_store(host)

    @property
    def reach(self) -> Reach:
        """Whether the run is within reach; a node that leaves gives up soon if it is not.

        A backend that knows of its connections says so there; here it is never lost.
        """
        return Reach()

    def addresses(self) -> tuple[str, ...]:
        """Addresses of this machine at which other nodes may reach it, as far as the backend knows."""
        return ()

    @abstractmethod
    async def propose(self, operation: Operation) -> NodeView:
        """Has an operation applied to the run.

        Args:
            operation: What to do. `Join` and `Resume` bring a node into the run's sight. A join for what
                another process has, a name or a given rank, is answered by a view with the phase
                ``CLAIMING``, or later: it waits until that one is gone, or is refused once it is heard of.

        Returns:
            The view, after the operation, of the node that the operation names; for an operation that names
            none, of this backend's node.

        Raises:
            RendezvousError: The law does not allow the operation, with the law's own error; nothing changed.

        Cancellation: the call may be cancelled at any await; whether the operation was, or still will be,
        applied is then unknown. A later operation of the same node is applied after it.
        """

    async def join(self, operation: Join, timeout: float) -> NodeView | None:
        """Proposes a join, as `propose` does, with the same errors.

        A backend with timers for its requests can do without the cancel scope of this default, which is a
        good part of what a join costs a node.

        Args:
            operation: The join.
            timeout: Seconds to wait for the answer.

        Returns:
            The node's view; None if there was no answer in time: whether the join was, or still will be,
            applied is then unknown, as after a cancelled call.
        """
        with anyio.move_on_after(timeout):
            return await self.propose(operation)
        return None

    async def meet(self, operation: Arrive | Withdraw) -> Met:
        """Has a member come to a barrier and waits until that has passed, or has it wait there no more.

        Args:
            operation: What to do. A member that withdraws is answered at once.

        Returns:
            How the barrier stands: passed, unless the member has withdrawn, maybe by another call.

        Raises:
            RoundOverError: The barrier cannot pass any more.
            RendezvousStateError: Too many barriers are open; or this backend has none.
            RendezvousSettingsError: The value does not fit; the member has not come.

        Cancellation: the call may be cancelled at any await; the member may have come then, until it
        withdraws.
        """
        raise RendezvousStateError(
            f"{self.name}:// has no barriers, which stock nodes do not know: use tcp://, http:// or etcd://,"
            " or the barrier() of info.store",
            node=operation.node,
        )

    def states(self) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, bytes]]]:
        """Tells, while the block runs, what nodes say of their states: of each the name and the JSON.

        First come those that are known; later ones of a node that is read too slowly may be left out.

        Raises:
            RendezvousConnectionError: On entering, or from the iteration: the backend is out of reach. It may
                be entered again.
            RendezvousStateError: On entering: the backend knows no states.
        """
        raise RendezvousStateError(
            f"{self.name}:// knows no states of nodes, as stock nodes do not: use tcp://, http:// or etcd://"
        )

    @abstractmethod
    async def changed(self, node: str, since: int) -> NodeView:
        """Waits until `node` has a view whose revision is higher than `since`, and returns it.

        Revisions of one node's views, as this backend gives them out, never fall, not even when the backend
        was restarted. Only the latest view is kept: whoever waits seldom sees several changes as one. A node
        that is in no list gets a view with the phase `GONE`.

        Args:
            node: A node that this backend proposed an operation for.
            since: The revision seen last; -1 returns the present view at once if there is one.

        Cancellation: safe; nothing is lost.
        """

    @abstractmethod
    async def status(self) -> RunStatus:
        """Takes stock of the run; for an unknown run, a status without settings. Cancellation: safe."""

    @abstractmethod
    async def roster(self, incarnation: int, round_: int) -> tuple[Member, ...]:
        """Lists the members of a round as it was completed, in rank order. Cancellation: safe.

        A backend that does not keep them lists those that remain.

        Raises:
            RendezvousStateError: The next round is complete, or nothing is known of this one.
        """

    async def gone(self, incarnation: int, round_: int) -> tuple[MemberGone, ...]:
        """Tells who of a round has gone since it was completed, by rank; here nobody. Cancellation: safe.

        Raises:
            RendezvousStateError: As with `roster`.
        """
        return ()

    @abstractmethod
    def fail(self, error: RendezvousError) -> None:
        """Ends all waits with `error`, and has every later call raise it until the backend is left.

        Called when work in the background, be it the backend's own or its user's, cannot go on; whatever else
        is done there ends, too. Never waits.
        """

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Connects. Cancellation: safe; nothing is left open.

        Raises:
            RendezvousConnectionError: The backend could not be reached in time.
        """

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects; bounded in time. It does not make any node leave.

        Cancellation: safe; nothing is left open.
        """


def subject(operation: Operation) -> str:
    """The node that an operation names, or on whose behalf it is made; empty for the clock's own."""
    if isinstance(operation, DECIDED):
        return operation.by
    return "" if isinstance(operation, Tick | Record) else operation.node
