"""The handler that torchrun gets, and the stores of its rounds; see `arendezvous.torch`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial, wraps
from typing import Annotated, Any, Concatenate, Final, ParamSpec, Self, TypedDict, TypeVar, TypeVarTuple

from torch.distributed import (  # type: ignore[attr-defined]  # torch does not list what it exports
    DistNetworkError,
    DistStoreError,
    QueueEmptyError,
    Store,
    TCPStore,
)
from torch.distributed.elastic import rendezvous as stock
from torch.distributed.elastic.agent.server.api import _TERMINAL_STATE_SYNC_ID  # of the exit barrier's keys

from arendezvous import errors
from arendezvous.law.state import Cause
from arendezvous.law.words import counted
from arendezvous.opening import create_handler as create_async_handler
from arendezvous.opening import read_options
from arendezvous.rendezvous.changes import NodeLeft
from arendezvous.rendezvous.options import Option, settings_of
from arendezvous.rendezvous.parameters import RendezvousParameters
from arendezvous.rendezvous.round_end import MembersStore
from arendezvous.schemes import parse_endpoint, scheme_named
from arendezvous.sync.handler import RendezvousHandler as SyncHandler
from arendezvous.sync.handler import RendezvousInfo as SyncInfo
from arendezvous.sync.store import Store as SyncStore
from arendezvous.torch.signals import leave_on_signals

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Args = TypeVarTuple("Args")

STORE_TIMEOUT: Final = timedelta(seconds=300)
EXIT_LOOK: Final = 5.0  # seconds between two looks from the exit barrier whether the store still knows of it

_ERRORS: Final[Mapping[type[errors.RendezvousError], type[Exception]]] = {
    errors.RendezvousClosedError: stock.RendezvousClosedError,
    errors.RendezvousTimeoutError: stock.RendezvousTimeoutError,
    errors.RendezvousConnectionError: stock.RendezvousConnectionError,
    errors.RendezvousStateError: stock.RendezvousStateError,
    errors.RendezvousGracefulExitError: stock.RendezvousGracefulExitError,
    errors.RendezvousError: stock.RendezvousError,
}
_STORE_ERRORS: Final[Mapping[type[errors.RendezvousError], type[Exception]]] = {
    errors.RendezvousConnectionError: DistNetworkError,
    errors.StoreQueueEmptyError: QueueEmptyError,
    errors.StoreError: DistStoreError,
}


@contextmanager
def _translated(table: Mapping[type[errors.RendezvousError], type[Exception]] = _ERRORS) -> Iterator[None]:
    """Raises torch's errors in place of ours, with our message, chained to ours; the first in a table."""
    try:
        yield
    except errors.RendezvousError as error:
        for ours, theirs in table.items():
            if isinstance(error, ours):
                raise theirs(error.message) from error
        raise


def _as_torchs(method: Callable[Concatenate[SyncStore, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Makes a method of `TorchStore` of one of ours."""

    @wraps(method)
    def call(self: _StoreBridge, /, *args: P.args, **kwargs: P.kwargs) -> T:
        ours: Callable[P, T] = getattr(self._ours, method.__name__)
        with _translated(_STORE_ERRORS):
            return ours(*args, **kwargs)

    return call


class _StoreBridge:
    """Half a ``torch.distributed.Store``: its operations, by means of ours.

    It stands before torch's class among the bases, which has methods of the same names.
    """

    timeout: timedelta
    _ours: SyncStore

    def _seconds(self, timeout: timedelta | None = None) -> float:
        return (self.timeout if timeout is None else timeout).total_seconds()

    set = _as_torchs(SyncStore.set)
    compare_set = _as_torchs(SyncStore.compare_set)
    add = _as_torchs(SyncStore.add)
    check = _as_torchs(SyncStore.check)
    delete_key = deleteKey = _as_torchs(SyncStore.delete_key)  # torch's C++ code has names of its own
    num_keys = getNumKeys = _as_torchs(SyncStore.num_keys)
    append = _as_torchs(SyncStore.append)
    multi_set = _as_torchs(SyncStore.multi_set)
    queue_push = _as_torchs(SyncStore.queue_push)
    queue_len = _as_torchs(SyncStore.queue_len)
    list_keys = _as_torchs(SyncStore.list_keys)

    def get(self, key: str) -> bytes:
        """Returns the value of a key; waits until there is one."""
        with _translated(_STORE_ERRORS):
            return self._ours.get(key, timeout=self._seconds())

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Waits until all keys exist."""
        with _translated(_STORE_ERRORS):
            self._ours.wait(keys, self._seconds(timeout))

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Returns the values of several keys; waits until all exist."""
        with _translated(_STORE_ERRORS):
            return self._ours.multi_get(keys, timeout=self._seconds())

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        """Takes the value at the front of a queue; waits for one if `block`."""
        with _translated(_STORE_ERRORS):
            return self._ours.queue_pop(key, block, timeout=self._seconds())

    def barrier(self, key: str, world_size: int, timeout: timedelta | None = None) -> None:
        """Waits until `world_size` callers have arrived."""
        with _translated(_STORE_ERRORS):
            self._ours.barrier(key, world_size, self._seconds(timeout))

    def has_extended_api(self) -> bool:
        """Tells that there are ``append``, ``multi_get`` and ``multi_set``."""
        return True

    def clone(self) -> Self:
        """Returns the store itself: any number of threads may use it at the same time."""
        return self


class TorchStore(_StoreBridge, Store):
    """A ``torch.distributed.Store`` that keeps its keys in one of ours, in etcd for example.

    It has all operations, and a time-out of its own. Behind a ``PrefixStore`` of torch 2.13, queues and
    ``list_keys`` do not work, because that asks no store that is written in Python for them. Keep a reference
    to it for as long as torch uses it: torch's C++ code keeps none, and calls it from any thread.

    Args:
        ours: A blocking store, such as the ``store`` of an `arendezvous.sync.RendezvousInfo`.
        timeout: How long operations wait for other nodes.
    """

    def __init__(self, ours: SyncStore, timeout: timedelta = STORE_TIMEOUT) -> None:
        Store.__init__(self)
        self._ours = ours
        self.set_timeout(timeout)


class _AgentStore(SyncStore):
    """The store of one round, by our own client: it outlives its connection, as torch's does not."""

    def __init__(self, info: SyncInfo, handler: SyncHandler) -> None:
        store = info.asynchronous.store
        if isinstance(store, MembersStore):
            store.outlive = True  # agents look by themselves who is gone, as they do with torch's store
        super().__init__(store, handler.loop)
        self._handler = handler
        self.hurries = False

    def _run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        if self.hurries:
            return self._handler.while_in_reach(partial(function, *args))
        return super()._run(function, *args)


class _RoundStore(TorchStore):
    """The store of one round, for its agents.

    When an agent's workers have succeeded, it waits for the others in the exit barrier. There is nothing left
    to wait for once the store has been out of reach for two seconds: whoever served it has ended, or will end
    the same way. A server that was started again has forgotten who had come, so they come again; and when all
    who are still in the run have come, nobody else will.

    Its fields:
        _store: The store below; hurries from the exit barrier on.
        _size: How many agents come to the exit barrier.
        _counter: The key that counts them; empty before this agent is there.
        _mark: The key by which this agent knows whether the store remembers it.
        _gone: Whether the store was given up in the exit barrier.
    """

    def __init__(self, info: SyncInfo, handler: SyncHandler) -> None:
        self._store = _AgentStore(info, handler)
        self._handler = handler
        self._size = info.world_size
        self._counter = ""
        self._mark = f"arendezvous/exit/{info.rank}"
        self._gone = False
        super().__init__(self._store)

    def add(self, key: str, amount: int) -> int:
        if not key.startswith(_TERMINAL_STATE_SYNC_ID):
            return super().add(key, amount)
        self._counter, self._store.hurries = key, True
        return self._unless_gone(0, self._arrive)

    def set(self, key: str, value: bytes | str) -> None:
        self._unless_gone(None, super().set, key, value)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        if self._counter:
            self._unless_gone(None, self._wait_for_all, keys, self._seconds(timeout))
        else:
            super().wait(keys, timeout)

    def _arrive(self) -> int:
        super().set(self._mark, "1")
        return super().add(self._counter, 1)

    def _wait_for_all(self, keys: Sequence[str], seconds: float) -> None:
        looks = 0  # in a row that found everybody here; one may be too early after a restart of the server
        while looks < 2:
            try:
                super().wait(keys, timedelta(seconds=min(seconds, EXIT_LOOK)))
            except DistStoreError:
                seconds -= EXIT_LOOK
                if seconds <= 0:
                    raise
            else:
                return
            if not self.check([self._mark]) and self._arrive() == self._size:
                super().set(keys[0], "1")
            status = self._handler.while_in_reach(self._handler.asynchronous.explain)
            looks = looks + 1 if super().add(self._counter, 0) >= len(status.nodes) else 0
        logger.info("all agents that are still in the run have finished")

    def _unless_gone(self, otherwise: T, operation: Callable[[*Args], T], *args: *Args) -> T:
        try:
            return otherwise if self._gone else operation(*args)
        except (DistNetworkError, errors.RendezvousConnectionError) as error:
            if not self._counter:
                raise
            logger.warning("not waiting for the other agents any more, as the store is gone: %s", error)
            self._gone = True
            return otherwise


class RendezvousHandler(stock.RendezvousHandler):
    """One agent's part in a run.

    Args:
        handler: The blocking handler underneath.
        backend: The name under which torch knows this handler.
        min_nodes: A round never completes with fewer nodes.
        restart_on_node_loss: Whether the death or departure of a peer shows as a waiting node, so that the
            agent restarts its workers instead of leaving them to hang in a collective.
    """

    def __init__(
        self, handler: SyncHandler, backend: str, min_nodes: int, *, restart_on_node_loss: bool = True
    ) -> None:
        self._handler = handler
        self._backend = backend
        self._min_nodes = min_nodes
        self._restart_on_node_loss = restart_on_node_loss
        self._server: TCPStore | None = None
        self._info: SyncInfo | None = None
        self._is_mixed = handler.get_backend() in ("c10d", "etcd-v2")  # stock agents may be members
        self._released = False
        self._handled: BaseException | None = None  # what our caller's caller was handling before it joined

    def get_backend(self) -> str:
        """Returns the name of the backend, as torch's registry has it."""
        return self._backend

    def get_run_id(self) -> str:
        """Returns the id of the run."""
        return self._handler.get_run_id()

    @property
    def use_agent_store(self) -> bool:
        """Whether workers use the store that rank 0's agent hosts; torch's own switch turns it off."""
        return self._is_mixed or os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"

    def next_rendezvous(self) -> stock.RendezvousInfo:
        """Joins the next round and waits until it is complete; the errors are torch's, with our messages.

        Raises:
            RendezvousClosedError: The run is closed; the message says by whom, when and why.
            RendezvousTimeoutError: Not enough nodes came; the message names who did.
            RendezvousConnectionError: The server could not be reached.
            RendezvousGracefulExitError: This node was a spare, and is not needed; or it was drained.
            RendezvousStateError: A peer has failed for good, and those that are left are too few; the message
                says who, and why.
        """
        with _translated():
            self._check_peers()
            self._info = self._server = None
            self._handled = sys.exc_info()[1]
            try:
                info = self._handler.next_rendezvous()
            except errors.RendezvousGracefulExitError:
                self._released = True
                raise
            store = _RoundStore(info, self._handler)
            bootstrap = self._publish(info, store)
            self._info = info
        return stock.RendezvousInfo(store, info.rank, info.world_size, bootstrap)

    def is_closed(self) -> bool:
        """Tells whether the run is closed."""
        with _translated():
            return self._handler.is_closed()

    def set_closed(self) -> None:
        """Closes the run for everybody."""
        with _translated():
            self._handler.set_closed("closed by the agent")

    def num_nodes_waiting(self) -> int:
        """Tells how many nodes wait for the next round; at least one if the agent is to stop its workers.

        That is so if a member of this round is gone, but for one that left as its workers succeeded; and if
        this node is drained. `next_rendezvous` then tells the agent how to go on: in another round, or not at
        all, if the run is closed or this node is released. Else, in a closed run, none counts.
        """
        with _translated():
            outlook = self._handler.outlook()
        stop = outlook.draining or (outlook.departed and self._restart_on_node_loss)
        return max(0 if outlook.closed else outlook.waiting, int(stop))

    def shutdown(self) -> bool:
        """Leaves the run; returns whether the others were told.

        After success the run is closed, so that a late agent is told so instead of waiting for nobody. A
        spare, or a node that was drained, closes nothing, and neither does an agent that fails for good: it
        never knows that nobody starts the job again under the same id, and a closed run would refuse that.
        The others hear that it failed, and end by themselves if they are too few. Stock agents hear nothing,
        so where there may be some the run is closed then. All this takes two seconds at most where the run is
        out of reach.

        Raises:
            SystemExit: With status 0, in the agent of such a node: torch 2.13 trips over having no result.
        """
        failure = sys.exc_info()[1]
        failure = None if failure is self._handled else failure
        try:
            if self._released and isinstance(failure, AttributeError):
                logger.info("this node is not needed any more")
                raise SystemExit(0)
            if self._info is not None:
                self._say_goodbye(failure)
            return self._handler.shutdown()
        except errors.RendezvousError as error:
            logger.warning("leaving run %r failed: %s", self.get_run_id(), error)
            return False
        finally:
            self._handler.close()
            self._info = self._server = self._handled = None

    def _say_goodbye(self, failure: BaseException | None) -> None:
        if failure is None:
            self._handler.set_closed("finished: its work succeeded")
            self._handler.leave("its workers succeeded", cause=Cause.FINISHED)
            return
        reason = f"its workers failed: {type(failure).__name__}"
        if self._is_mixed:
            status = self._handler.while_in_reach(self._handler.asynchronous.explain)
            others = sum(1 for node in status.nodes if node.drain_left is None) - 1
            if others < self._min_nodes:
                left = f"leaves {counted(others, 'node')} of at least {self._min_nodes}"
                self._handler.set_closed(f"{reason}, which {left}")
        self._handler.leave(reason, cause=Cause.FAILED)

    def _check_peers(self) -> None:
        """Raises our error if a member of the last round failed for good, and too few are left without it."""
        if self._info is None or self._is_mixed:
            return
        outlook = self._handler.outlook()
        left = (change for change in outlook.departures if isinstance(change, NodeLeft))
        failed = [str(change) for change in left if change.cause is Cause.FAILED]
        if failed and not outlook.closed and outlook.remaining < self._min_nodes:
            raise errors.RendezvousStateError(
                f"{'; '.join(failed)}: a round needs {self._min_nodes} nodes, and at most {outlook.remaining}"
                " are left; start the job again, under the same id if you like"
            )

    def _publish(self, info: SyncInfo, store: Store) -> stock.RendezvousStoreInfo:
        """Tells all members where the workers' store is; rank 0 hosts it, and binds its port before that."""
        if self._is_mixed:
            found = info.bootstrap_store_info()
            return stock.RendezvousStoreInfo(found.master_addr, found.master_port)
        address, port = info.local_address, None
        if info.rank == 0 and self.use_agent_store:
            self._server = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT)
            port = self._server.port
        return stock.RendezvousStoreInfo.build(info.rank, store, local_addr=address, server_port=port)


class AgentOptions(TypedDict, total=False):
    """Names what agents take besides the options of the scheme."""

    restart_on_node_loss: Annotated[
        bool | None, Option("Whether an agent restarts its workers when a peer is gone.", default=True)
    ]


def create_handler(params: stock.RendezvousParameters, scheme: str = "") -> RendezvousHandler:
    """Makes the handler for torchrun.

    Args:
        params: What torchrun was given: ``--rdzv-backend``, ``--rdzv-endpoint`` (empty: ``localhost``),
            ``--rdzv-conf`` and so on. The options are those of `AgentOptions` and of
            `arendezvous.opening.create_handler`.
        scheme: The backend of ours that it stands for; empty: the endpoint's, if it is a URL, or ``tcp``.

    Raises:
        RendezvousSettingsError: A parameter, or the name of an option, is not allowed; a ``ValueError``.
    """
    endpoint = params.endpoint or "localhost"
    where = parse_endpoint(endpoint, scheme or (None if "://" in endpoint else "tcp"))
    entry, agents = scheme_named(where.scheme), settings_of(AgentOptions)
    sizes = params.min_nodes, params.max_nodes
    ours = RendezvousParameters(
        entry.name, endpoint, params.run_id, *sizes, params.local_addr, **params.config
    )
    given = read_options(ours, {**entry.settings, **agents})
    ours.config = {name: value for name, value in params.config.items() if name not in agents}
    handler = SyncHandler(create_async_handler(ours))
    leave_on_signals(handler)
    restart = given.get("restart_on_node_loss") is not False
    return RendezvousHandler(handler, params.backend, params.min_nodes, restart_on_node_loss=restart)
