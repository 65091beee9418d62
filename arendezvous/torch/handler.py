"""The handler that torchrun gets, and the stores of its rounds; see `arendezvous.torch`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Final, TypedDict

from torch.distributed import (  # type: ignore[attr-defined]  # torch does not list what it exports
    DistNetworkError,
    DistStoreError,
    PrefixStore,
    QueueEmptyError,
    Store,
    TCPStore,
)
from torch.distributed.elastic import rendezvous as stock

from arendezvous import errors
from arendezvous.law.state import Cause
from arendezvous.law.words import counted
from arendezvous.opening import create_handler as create_async_handler
from arendezvous.opening import read_options
from arendezvous.rendezvous.options import Option, settings_of
from arendezvous.rendezvous.parameters import RendezvousParameters
from arendezvous.schemes import parse_endpoint, scheme_named
from arendezvous.sync.handler import RendezvousHandler as SyncHandler
from arendezvous.sync.handler import RendezvousInfo as SyncInfo
from arendezvous.sync.store import Store as SyncStore
from arendezvous.torch.signals import leave_on_signals
from arendezvous.torch.store_bridge import StoreBridge

logger = logging.getLogger(__name__)

STORE_TIMEOUT: Final = timedelta(seconds=300)

_ERRORS: Final[Mapping[type[errors.RendezvousError], type[Exception]]] = {
    errors.RendezvousClosedError: stock.RendezvousClosedError,
    errors.RendezvousTimeoutError: stock.RendezvousTimeoutError,
    errors.RendezvousConnectionError: stock.RendezvousConnectionError,
    errors.RendezvousStateError: stock.RendezvousStateError,
    errors.RendezvousGracefulExitError: stock.RendezvousGracefulExitError,
}


class RoundStore(PrefixStore):
    """The store of one round, for the agents.

    In torch 2.13 two methods keep the interpreter's lock while they wait for the server, which may run in
    this very process and would never answer; these are asked through our own client.

    Args:
        ours: The round's store, by our client.
        client: Torch's client of the same server.
    """

    def __init__(self, ours: SyncStore, client: TCPStore) -> None:
        super().__init__(ours.prefix, client)
        self._ours = ours

    def list_keys(self) -> list[str]:
        """Lists the keys of the round."""
        return self._ours.list_keys()

    def queue_len(self, key: str) -> int:
        """Counts the values in a queue."""
        return self._ours.queue_len(key)


class TorchStore(StoreBridge, Store):
    """A ``torch.distributed.Store`` that keeps its keys in one of ours, in etcd for example.

    It has all operations, and a time-out of its own. Behind a ``PrefixStore`` of torch 2.13, queues and
    ``list_keys`` do not work, because that asks no store that is written in Python for them. Keep a reference
    to it for as long as torch uses it: torch's C++ code keeps none.

    Args:
        ours: A blocking store, such as the ``store`` of an `arendezvous.sync.handler.RendezvousInfo`.
        timeout: How long operations wait for other nodes.
    """

    def __init__(self, ours: SyncStore, timeout: timedelta = STORE_TIMEOUT) -> None:
        StoreBridge.__init__(self, ours)
        Store.__init__(self)
        self.set_timeout(timeout)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except errors.RendezvousConnectionError as error:
            raise DistNetworkError(error.message) from error
        except errors.StoreQueueEmptyError as error:
            raise QueueEmptyError(error.message) from error
        except errors.StoreError as error:
            raise DistStoreError(error.message) from error


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
        self._client: TCPStore | None = None
        self._server: TCPStore | None = None
        self._info: SyncInfo | None = None
        self._is_mixed = handler.get_backend() in ("c10d", "etcd-v2")  # stock agents may be members
        self._spare = False
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
        """Joins the next round and waits until it is complete.

        Raises:
            RendezvousClosedError: The run is closed; the message says by whom, when and why.
            RendezvousTimeoutError: Not enough nodes came; the message names who did.
            RendezvousConnectionError: The server could not be reached.
            RendezvousGracefulExitError: This node was a spare, and is not needed.
        """
        with _translated():
            self._info = None
            self._server = None
            self._handled = sys.exc_info()[1]
            try:
                info = self._handler.next_rendezvous()
            except errors.RendezvousGracefulExitError:
                self._spare = True
                raise
            store = self._store_of(info)
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
        """Tells how many nodes wait for the next round; at least one if a member of this round is gone.

        A member that left because its workers succeeded does not count. In a closed run there is nothing to
        wait for, and none counts.
        """
        with _translated():
            outlook = self._handler.outlook()
        if outlook.closed:
            return 0
        return max(outlook.waiting, 1 if outlook.departed and self._restart_on_node_loss else 0)

    def shutdown(self) -> bool:
        """Leaves the run; returns whether the others were told.

        After success the run is closed, so that a late agent is told so instead of waiting for nobody. A
        spare closes nothing. An agent that fails for good closes the run only if the others are too few to
        go on without it.

        Raises:
            SystemExit: With status 0, in the agent of a spare: torch 2.13 trips over having no result.
        """
        failure = sys.exc_info()[1]
        if failure is self._handled:
            failure = None
        try:
            if self._spare and isinstance(failure, AttributeError):
                logger.info("this node was a spare, and is not needed any more")
                raise SystemExit(0)
            if self._info is not None:
                self._say_goodbye(failure)
            return self._handler.shutdown()
        except errors.RendezvousError as error:
            logger.warning("leaving run %r failed: %s", self.get_run_id(), error)
            return False
        finally:
            self._handler.close()
            self._info = None
            self._server = None
            self._client = None
            self._handled = None

    def _say_goodbye(self, failure: BaseException | None) -> None:
        if failure is None:
            self._handler.set_closed("finished: its work succeeded")
            self._handler.leave("its workers succeeded", cause=Cause.FINISHED)
            return
        reason = f"its workers failed: {type(failure).__name__}"
        others = sum(1 for node in self._handler.explain().nodes if node.drain_left is None) - 1
        if others < self._min_nodes:
            self._handler.set_closed(
                f"{reason}, which leaves {counted(others, 'node')} of at least {self._min_nodes}"
            )
        self._handler.leave(reason, cause=Cause.FAILED)

    def _store_of(self, info: SyncInfo) -> Store:
        """The store of the round, with the prefix that all members use: where it can, torch's own client."""
        where = self._handler.tcp_store_address
        if where is None:
            return TorchStore(info.store)
        if self._client is None:
            self._client = TCPStore(*where, is_master=False, wait_for_workers=False, timeout=STORE_TIMEOUT)
        return RoundStore(info.store, self._client)

    def _publish(self, info: SyncInfo, store: Store) -> stock.RendezvousStoreInfo:
        """Tells all members where the workers' store is; rank 0 hosts it, and binds its port before that."""
        if self._is_mixed:
            found = info.bootstrap_store_info()
            return stock.RendezvousStoreInfo(found.master_addr, found.master_port)
        address = info.local_address
        port: int | None = None
        if info.rank == 0 and self.use_agent_store:
            self._server = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT)
            port = self._server.port
        return stock.RendezvousStoreInfo.build(info.rank, store, local_addr=address, server_port=port)


@contextmanager
def _translated() -> Iterator[None]:
    """Raises torch's errors in place of ours, with our message, chained to ours."""
    try:
        yield
    except errors.RendezvousError as error:
        for ours, theirs in _ERRORS.items():
            if isinstance(error, ours):
                raise theirs(error.message) from error
        raise stock.RendezvousError(error.message) from error


class AgentOptions(TypedDict, total=False):
    """What agents take besides the options of the scheme."""

    restart_on_node_loss: Annotated[
        bool | None,
        Option("Whether an agent restarts its workers when a peer is gone.", default=True),
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
    ours = RendezvousParameters(
        entry.name,
        endpoint,
        params.run_id,
        params.min_nodes,
        params.max_nodes,
        params.local_addr,
        **params.config,
    )
    given = read_options(ours, {**entry.settings, **agents})
    ours.config = {name: value for name, value in params.config.items() if name not in agents}
    handler = SyncHandler(create_async_handler(ours))
    leave_on_signals(handler)
    return RendezvousHandler(
        handler,
        params.backend,
        params.min_nodes,
        restart_on_node_loss=given.get("restart_on_node_loss") is not False,
    )
