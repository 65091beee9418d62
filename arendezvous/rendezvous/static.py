"""``static://``: every node is given its rank, rank 0 serves the store, and there is one round only.

It means what ``static`` means in torch: rank 0 waits until as many nodes have come as there are ranks, nobody
learns of a death, and the run cannot be closed. All nodes must be of this kind.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import timedelta
from typing import Any, Final, Self, TypeAlias

import anyio
import msgspec

from arendezvous import errors
from arendezvous.law.rosters import Member
from arendezvous.law.state import Cause, NodeDesc
from arendezvous.law.status import RunStatus
from arendezvous.net.background import require_asyncio
from arendezvous.net.endpoint import Endpoint, join_host_port
from arendezvous.rendezvous.bootstrap import RendezvousStoreInfo
from arendezvous.rendezvous.changes import Change, Outlook
from arendezvous.rendezvous.handler import AsyncRendezvousHandler, HistoryEntry, RendezvousInfo
from arendezvous.rendezvous.history import HISTORY
from arendezvous.rendezvous.node import brought_by, check_carried
from arendezvous.rendezvous.options import cause_of, text
from arendezvous.rendezvous.rounds import Round, Until
from arendezvous.rendezvous.settings import RendezvousSettings
from arendezvous.stores.port import HostedStore, PrefixStore, Store
from arendezvous.stores.tcp.store import TcpStore
from arendezvous.wire.foreign import decode_foreign, json_decoder

_decode_node: Final = json_decoder(NodeDesc)

HostStore: TypeAlias = Callable[[str, int], AbstractAsyncContextManager[HostedStore]]


class StaticRendezvousHandler(AsyncRendezvousHandler):
    """One node of a static run.

    Args:
        endpoint: Where rank 0 serves the store.
        settings: `min_nodes` and `max_nodes` are the world size; ``timeout.join`` is for rank 0, too.
        desc: The node, with its rank.
        host_store: Serves a store, in the protocol of torch's TCPStore, at an address and port.
    """

    def __init__(
        self, endpoint: Endpoint, settings: RendezvousSettings, desc: NodeDesc, host_store: HostStore
    ) -> None:
        size = settings.max_nodes
        if settings.min_nodes != size:
            expected = f"the same as max_nodes, {size}: a static run has one world size"
            raise errors.RendezvousSettingsError.of("min_nodes", settings.min_nodes, expected)
        if desc.rank is None or not 0 <= desc.rank < size:
            expected = f"a rank from 0 to {size - 1}, one for each node (torchrun: --node-rank)"
            raise errors.RendezvousSettingsError.of("rank", desc.rank, expected)
        self._rank = desc.rank
        self._where = endpoint
        self._port = endpoint.port
        self._settings = settings
        self._desc = desc
        self._host_store = host_store
        self._store: Store | None = None
        self._info: RendezvousInfo | None = None
        self._left = anyio.Event()
        self._resources = AsyncExitStack()
        self._history: deque[HistoryEntry] = deque(maxlen=HISTORY)

    @property
    def settings(self) -> RendezvousSettings:
        return self._settings

    @property
    def node(self) -> str:
        return self._desc.name

    @property
    def endpoint(self) -> str:
        return f"static://{join_host_port(self._where.host, self._port)}"

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        return tuple(self._history)

    def get_backend(self) -> str:
        return "static"

    async def __aenter__(self) -> Self:
        """Serves the store, as rank 0, and connects to it, within the join time-out."""
        require_asyncio("a rendezvous")
        try:
            if self._rank == 0:
                self._port = await self._serve()
            client = TcpStore(self._where.host, self._port, timeout=self._settings.timeout.join)
            store = await self._resources.enter_async_context(client)
            self._store = PrefixStore(self._settings.run_id, store)
        except BaseException:
            await self._resources.aclose()
            raise
        self._left = anyio.Event()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnects; with rank 0 the store is gone."""
        self._left.set()
        self._store = self._info = None
        await self._resources.aclose()

    async def next_rendezvous(
        self, *, role: str = "", slots: int = 1, data: Any = None, facts: Mapping[str, Any] | None = None
    ) -> RendezvousInfo:
        """Comes to the one round, for which rank 0 waits; a second call returns the same."""
        if (store := self._store) is None:
            raise RuntimeError("the rendezvous is used outside of its 'async with' block")
        check_carried(brought_by(self._desc, self._settings.run, role, slots, data, facts), "static")
        if self._info is None:
            self._note(f"joining run {self._settings.run_id!r} as rank {self._rank}")
            await store.set(f"node/{self._rank}", msgspec.json.encode(self._desc))
            if self._rank == 0:
                await self._wait_for_all(store)
            self._info = self._make_info(store)
            self._note(f"rank {self._rank} of {self._settings.max_nodes}")
        return self._info

    async def is_closed(self) -> bool:
        return False

    async def set_closed(self, reason: str = "") -> None:
        """Does nothing, as in torch; the run ends with its nodes."""
        text("reason", reason)
        self._note("a static run cannot be closed")

    async def num_nodes_waiting(self) -> int:
        return 0

    async def outlook(self) -> Outlook:
        return Outlook(0, departed=False, closed=False)

    async def shutdown(self) -> bool:
        await self.leave()
        return True

    async def changes(self, *, states: bool = False) -> AsyncIterator[Change]:
        """Waits until this node leaves; nothing happens to a static round, and nobody is told of states."""
        if states:
            raise _not_static("changes(states=True)")
        await self._left.wait()
        for change in list[Change]():  # none: it makes this an iterator
            yield change

    def rounds(self, until: Until | None = None, **join: Any) -> AsyncIterator[Round]:
        raise _not_static("rounds()")

    async def update(self, state: Any) -> None:
        raise _not_static("update()")

    async def progress(self, step: int) -> None:
        raise _not_static("progress()")

    async def leave(self, reason: str = "", *, cause: Cause = Cause.LEFT) -> None:
        """Ends this node's part; nobody is told."""
        text("reason", reason)
        cause_of(cause)
        self._note(f"left the run{f': {reason}' if reason else ''}")
        self._left.set()

    async def drain(self, deadline: float | timedelta, reason: str = "", *, wait: bool = False) -> None:
        raise errors.RendezvousStateError(
            "a static run cannot meet again without this node; use tcp://, for instance"
        )

    async def explain(self) -> RunStatus:
        """Tells the settings and whether this node is in the round; nobody keeps more."""
        complete = self._info is not None
        size = self._settings.max_nodes if complete else 0
        return RunStatus(self._settings.run_id, self._settings.run, complete=complete, world_size=size)

    async def _serve(self) -> int:
        async def serve(host: str) -> int:
            serving = self._host_store(host, self._where.port)
            return (await self._resources.enter_async_context(serving)).port

        try:
            try:
                return await serve(self._where.host)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
            everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - it is before a NAT
            return await serve(everywhere)
        except OSError as error:
            text = f"rank 0 cannot serve {self.endpoint}: {error.strerror}; was rank 0 given twice?"
            raise errors.RendezvousConnectionError(text, endpoint=self.endpoint, doing="listening") from error

    async def _wait_for_all(self, store: Store) -> None:
        keys = [f"node/{rank}" for rank in range(self._settings.max_nodes)]
        seconds = self._settings.timeout.join
        try:
            await store.wait(keys, seconds)
        except errors.StoreTimeoutError as error:
            missing = [str(rank) for rank, key in enumerate(keys) if not await store.check([key])]
            text = f"not all nodes came within {seconds:g} s; missing are the ranks {', '.join(missing)}"
            raise errors.RendezvousTimeoutError(text, timeout=seconds) from error

    def _make_info(self, store: Store) -> RendezvousInfo:
        size = self._settings.max_nodes

        def refused(said: str) -> errors.RendezvousStateError:
            return errors.RendezvousStateError(
                f"the store of {self.endpoint} holds what describes no node: {said}"
            )

        known: list[Member] = []

        async def roster() -> tuple[Member, ...]:
            if not known:  # they are asked for once: rank 0 may be gone later
                found = await store.multi_get([f"node/{rank}" for rank in range(size)])
                descs = [decode_foreign(_decode_node, one, refused) for one in found]
                known[:] = map(Member.of, descs, range(size))
            return tuple(known)

        async def bootstrap() -> RendezvousStoreInfo:
            return RendezvousStoreInfo(self._where.host, self._port)

        async def meet(*_: object) -> None:
            raise _not_static("barrier() and agree()")

        return RendezvousInfo(
            run_id=self._settings.run_id,
            incarnation=1,
            round=0,
            rank=self._rank,
            world_size=size,
            digest="",
            rank0_addresses=(self._where.host,),
            local_address=self._desc.addr,
            _open_store=lambda: PrefixStore("users", store),
            _roster=roster,
            _bootstrap=bootstrap,
            _meet=meet,
        )

    def _note(self, what: str) -> None:
        self._history.append(HistoryEntry(time.time(), what))


def _not_static(what: str) -> errors.RendezvousStateError:
    return errors.RendezvousStateError(
        f"{what}: nobody keeps a static run, so its nodes hear of each other by info.store alone; use"
        " tcp://, for instance"
    )
