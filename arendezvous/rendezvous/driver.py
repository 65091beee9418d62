"""The driver: one node's way through joining, keeping alive, changes and leaving, over any backend."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, Unpack

import anyio
import msgspec

from arendezvous import errors
from arendezvous.backends.port import RendezvousBackend
from arendezvous.events import NodeState
from arendezvous.law.checks import MAX_NAME
from arendezvous.law.operations import NOTHING_KNOWN, Close, Drain, Join, KeepAlive, Leave, Progress
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase
from arendezvous.law.status import DepartedStatus, RunStatus, timeout_text
from arendezvous.law.words import because
from arendezvous.net.background import Background, finish, require_asyncio
from arendezvous.net.reach import GOODBYE_TIMEOUT, Reach
from arendezvous.rendezvous.bootstrap import RendezvousStoreInfo, RoundBootstrap
from arendezvous.rendezvous.change_stream import ChangeStream, LoopWatch, StatesAndChanges
from arendezvous.rendezvous.changes import Change, Outlook, ends_round, outlook
from arendezvous.rendezvous.handler import AsyncRendezvousHandler, HistoryEntry, RendezvousInfo
from arendezvous.rendezvous.history import NodeHistory
from arendezvous.rendezvous.joining import join_round, with_departures
from arendezvous.rendezvous.meeting import WITHDRAW_TIMEOUT, RoundMembers, Updates, said
from arendezvous.rendezvous.node import brought_by, check_carried, describe_node
from arendezvous.rendezvous.option_groups import CommonOptions, RendezvousTimeout, RunOptions
from arendezvous.rendezvous.options import cause_of, check_options, seconds, settings_of, text, whole
from arendezvous.rendezvous.round_end import MembersStore, RoundEnd
from arendezvous.rendezvous.rounds import Round, RoundLoop, Until, Watch
from arendezvous.rendezvous.settings import RendezvousSettings
from arendezvous.stores.port import PrefixStore, Store

logger = logging.getLogger(__name__)

CONNECT_GRACE: Final = 1.0  # seconds beyond the join time-out that connecting may take at most
SLICES: Final = 4  # of the time between two heartbeats: so soon a block of the event loop is noticed


class DynamicRendezvousHandler(AsyncRendezvousHandler):
    """One node's rendezvous over a backend.

    Args:
        settings: The settings.
        backend: Where the run is kept; entered and left with the handler.
        desc: The node; None makes up a name from the host's, the process id and a random suffix.
    """

    def __init__(
        self, settings: RendezvousSettings, backend: RendezvousBackend, desc: NodeDesc | None = None
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._desc = desc or describe_node()
        self._held = NOTHING_KNOWN
        self._round: NodeView | None = None
        self._joining = self._joined = False
        self._connecting_took = 0.0  # seconds
        self._workers_store = RoundBootstrap(backend.host_store)
        self._history = NodeHistory(settings.run_id, self._desc, backend.endpoint)
        self._background: Background | None = None
        self._in_vain = False  # whether the last goodbye was given up: the next one has no time to wait
        self._loop_watch = LoopWatch(settings.run.expiry)
        self._updates = Updates(backend, self._desc.name)
        self._round_end: RoundEnd | None = None

    @classmethod
    def from_backend(
        cls,
        run_id: str,
        backend: RendezvousBackend,
        min_nodes: int,
        max_nodes: int,
        local_addr: str | None = None,
        timeout: RendezvousTimeout | None = None,
        **options: Unpack[RunOptions],
    ) -> Self:
        """Makes a handler for one node of a run.

        Args:
            run_id: The run.
            backend: Where it is kept.
            min_nodes: A round never completes with fewer nodes.
            max_nodes: A round never has more nodes.
            local_addr: The address by which other nodes reach this one; None: found out from the connection.
            timeout: The time-outs; None: the defaults of `RendezvousTimeout`.
            options: What else all nodes of the run must agree on; see `RunOptions`.

        Raises:
            RendezvousSettingsError: A value is not allowed.
        """
        common = {"min_nodes": min_nodes, "max_nodes": max_nodes, "timeout": timeout}
        checked = check_options(settings_of(CommonOptions), common)
        checked |= check_options(settings_of(RunOptions), options)
        return cls(RendezvousSettings.of(run_id, checked), backend, describe_node(local_addr))

    @property
    def settings(self) -> RendezvousSettings:
        return self._settings

    @property
    def node(self) -> str:
        return self._desc.name

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        return self._history.entries

    @property
    def endpoint(self) -> str:
        return self._backend.endpoint

    def get_backend(self) -> str:
        return self._backend.name

    async def __aenter__(self) -> Self:
        """Connects to the backend, for no longer than to a round, and begins to keep the node alive."""
        require_asyncio("a rendezvous")
        timeout, began = self._settings.timeout.join, anyio.current_time()
        with anyio.move_on_after(timeout + CONNECT_GRACE) as scope:
            await self._backend.__aenter__()
        if scope.cancelled_caught:
            raise errors.RendezvousConnectionError(
                f"{self.endpoint} could not be reached within the join time-out of {timeout:g} s: check that"
                " a server listens there, and that the name and port are right",
                endpoint=self.endpoint,
                doing="connecting",
            )
        self._connecting_took = anyio.current_time() - began
        if not self._desc.addresses:
            candidates = dict.fromkeys((*self._backend.addresses(), self._desc.addr))
            self._desc = msgspec.structs.replace(self._desc, addresses=tuple(filter(None, candidates)))
        self._joined, self._background = False, Background(self.node, self._backend.fail)
        self._background.start(self._keep_alive)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the run and disconnects; takes no longer than the time-out for closing, 2 s if cancelled."""
        background, self._background = self._background, None
        if background is not None and background.origin.is_elsewhere:
            return  # the node is that of the process that forked this one
        try:
            await finish(self._close, background, error)
        finally:
            await self._backend.__aexit__(None, None, None)

    async def _close(self, background: Background | None, error: BaseException | None) -> None:
        try:
            if self._joined:
                cause, reason = _exit_cause(error)
                seconds = self._settings.timeout.close
                if cause is Cause.CANCELLED:  # whoever cancels does not wait for an answer
                    seconds = min(seconds, WITHDRAW_TIMEOUT)
                with anyio.move_on_after(seconds):
                    await self._withdraw(cause, reason)
                    self._history.note(f"left the run ({cause.value})", state=NodeState.SUCCEEDED)
            if background is not None:
                await background.close()
        finally:
            await self._end_round()

    async def next_rendezvous(
        self, *, role: str = "", slots: int = 1, data: Any = None, facts: Mapping[str, Any] | None = None
    ) -> RendezvousInfo:
        self._check_open()
        if self._joining:
            said = "is joining already, in another task; join from one task at a time"
            raise RuntimeError(f"{self.node} {said}")
        desc = brought_by(self._desc, self._settings.run, role, slots, data, facts)
        if not self._backend.carries_what_nodes_bring:
            check_carried(desc, self._backend.name)
        self._desc = desc
        self._history.joining()
        self._joining, ended = True, self._round
        self._loop_watch.forget()
        try:
            await self._end_round()
            view = await self._join(ended)
            if view.rank == 0 and self._backend.awaits_bootstrap(view):
                await self._bootstrap(view)
            await self._updates.repeat()
            await self._history.joined(view, partial(self._round_store, view))
        except BaseException as error:
            why = self._history.not_joined(error)[:MAX_NAME]
            reason = "".join(mark if mark.isprintable() else " " for mark in why)
            if self._joined:
                with anyio.move_on_after(WITHDRAW_TIMEOUT, shield=True):
                    await self._withdraw(Cause.CANCELLED, reason)
            raise
        finally:
            self._joining = False
        return self._info(view)

    async def _join(self, ended: NodeView | None) -> NodeView:
        """Joins and waits for a complete round after the one that `ended`; a spare waits without time-out."""
        timeout, took, self._connecting_took = self._settings.timeout.join, self._connecting_took, 0.0
        left = max(timeout - took, min(timeout, CONNECT_GRACE))  # one call of the user's may do both
        was_in, self._joined = self._joined, True
        join = Join(self._desc, self._settings.run, self._held, self._settings.reopen)
        try:
            view = await join_round(self._backend, join, left, self._history.note, was_in=was_in)
        except errors.RendezvousClosedError as closed:
            raise with_departures(closed, await self._departures(ended)) from closed
        if view is not None:
            self._held, self._round, self._in_vain = view.generation, view, False
            return view
        error = errors.RendezvousTimeoutError(
            f"no complete round within {timeout:g} s, and {self._backend.endpoint} does not answer",
            timeout=timeout,
        )
        with anyio.move_on_after(WITHDRAW_TIMEOUT, shield=True):
            with anyio.move_on_after(WITHDRAW_TIMEOUT / 2):
                status = await self._backend.status()
                said = timeout_text(status, self._desc, self._settings.min_nodes, timeout)
                error = errors.RendezvousTimeoutError(said, timeout=timeout, explanation=str(status))
            await self._withdraw(Cause.CANCELLED, f"no complete round within {timeout:g} s")
        raise error

    async def _departures(self, ended: NodeView | None) -> list[DepartedStatus]:
        """Lists who is gone of the round that `ended`, but for those that finished; in bounded time."""
        if ended is not None:
            with anyio.move_on_after(WITHDRAW_TIMEOUT, shield=True):
                judged = outlook(ended, await self._latest())
                names = {getattr(change, "node", "") for change in judged.departures}
                departed = (await self._backend.status()).departed
                return [gone for gone in departed if gone.node in names and gone.round == ended.round]
        return []

    def _info(self, view: NodeView) -> RendezvousInfo:
        end = self._round_end = RoundEnd(self._backend, view, lambda: self._round is view, self._background)
        members = RoundMembers(self._backend, view)
        return RendezvousInfo(
            run_id=self._settings.run_id,
            incarnation=view.incarnation,
            round=view.round,
            rank=view.rank,
            world_size=view.world_size,
            digest=view.digest,
            rank0_addresses=view.rank0,
            local_address=self._local_address,
            _open_store=lambda: self._round_store(view, end),
            _meet=members.meet,
            _roster=members.roster,
            _bootstrap=lambda: self._bootstrap(view),
            slots=self._desc.brought.slots,
            **({} if view.share is None else msgspec.structs.asdict(view.share)),
        )

    def _round_store(self, view: NodeView, end: RoundEnd | None = None) -> Store | None:
        if (store := self._backend.store) is None:
            return None
        prefix = self._backend.round_prefix(self._settings.run_id, view)
        return PrefixStore(prefix, store) if end is None else MembersStore(prefix, store, end)

    async def _bootstrap(self, view: NodeView) -> RendezvousStoreInfo:
        store = self._round_store(view)
        if store is None or self._round is not view:
            raise RuntimeError("the round is over" if store else "this backend has no store for its members")
        if view.rank > 0:
            return await RendezvousStoreInfo.build(view.rank, store, None)
        return await self._workers_store.publish(store, self._local_address)

    async def _end_round(self) -> None:
        self._round = None
        self._history.end_round()
        if self._round_end is not None:
            self._round_end.end()
        await self._workers_store.end()

    @property
    def _local_address(self) -> str:
        return (*self._desc.addresses, self._desc.addr)[0]

    async def outlook(self) -> Outlook:
        self._check_open()
        if self._round is None:
            return Outlook(0, departed=False, closed=await self.is_closed())
        return outlook(self._round, await self._latest())

    async def is_closed(self) -> bool:
        self._check_open()
        latest = await self._latest() if self._joined else None
        if latest is None or latest.phase is Phase.GONE:  # who is gone is told nothing any more
            return (await self._backend.status()).closed is not None
        return latest.closed is not None

    async def set_closed(self, reason: str = "") -> None:
        self._check_open()
        text("reason", reason)
        incarnation = None if self._round is None else self._round.incarnation
        await self._say_goodbye(Close(self.node, reason, incarnation, by_node=True))
        self._history.note(f"closed the run{because(reason)}", state=NodeState.SUCCEEDED)

    async def num_nodes_waiting(self) -> int:
        self._check_open()
        return (await self._latest()).waiting if self._joined else 0

    @property
    def reach(self) -> Reach:
        return self._backend.reach

    async def shutdown(self) -> bool:
        try:
            await self.leave("shut down")
        except errors.RendezvousError:
            logger.warning("%s: shutting down failed", self.node, exc_info=True)
            return False
        return True

    def changes(self, *, states: bool = False) -> AsyncIterator[Change]:
        changes, background = self._changes(), self._check_open()
        return StatesAndChanges(self._backend, changes, background) if states else changes

    def rounds(self, until: Until | None = None, **join: Any) -> AsyncIterator[Round]:
        return RoundLoop(self, join, self._watched, until or ends_round)

    def _watched(self, watch: Watch) -> None:
        self._check_open().start(watch, self._changes(goes_on=True))

    async def update(self, state: object) -> None:
        self._check_open()
        await self._updates.update(state)

    async def progress(self, step: int) -> None:
        self._check_open()
        await said(self._backend, Progress(self.node, whole("step", step)))

    def _changes(self, *, goes_on: bool = False) -> ChangeStream:
        self._check_open()
        if self._round is None:
            raise RuntimeError("there are no changes before next_rendezvous() has returned")
        begin = self._round
        is_current, note, blocked = lambda: self._round is begin, self._history.note, self._loop_watch.text
        return ChangeStream(self._backend, begin, is_current, note, blocked, goes_on=goes_on)

    async def leave(self, reason: str = "", *, cause: Cause = Cause.LEFT) -> None:
        self._check_open()
        operation = Leave(self.node, text("reason", reason), cause_of(cause))
        await self._end_round()
        await self._say_goodbye(operation)
        self._joined = False  # not before: a leave that fails is made up for when the block is left
        self._history.note(f"left the run{because(reason)}", state=NodeState.SUCCEEDED)

    async def drain(self, deadline: float | timedelta, reason: str = "", *, wait: bool = False) -> None:
        self._check_open()
        deadline, reason = seconds("deadline", deadline, zero=True), text("reason", reason)
        if not isinstance(wait, bool):
            raise errors.RendezvousTypeError.of("wait", wait, "True or False")
        nothing = f"{self.node} is no member of a complete round, so it has nothing to drain"
        if self._round is not None and (await self._latest()).phase is Phase.GONE:
            raise errors.RendezvousStateError(nothing)  # another process may have the name by now
        view = await self._backend.propose(Drain(self.node, deadline, reason))
        if view.phase is not Phase.MEMBER:
            raise errors.RendezvousStateError(nothing)
        self._history.note(f"draining, to be gone within {deadline:g} s{because(reason)}")
        while wait and view.phase is Phase.MEMBER:
            view = await self._backend.changed(self.node, view.revision)

    async def explain(self) -> RunStatus:
        self._check_open()
        return await self._backend.status()

    async def _latest(self) -> NodeView:
        return await self._backend.changed(self.node, -1)

    async def _say_goodbye(self, operation: Leave | Close) -> None:
        """Proposes the end of something; gives up soon if the run is out of reach, next time even sooner."""
        seconds, longest = GOODBYE_TIMEOUT, self._settings.timeout.close
        if self._in_vain:
            seconds, longest = 0.0, min(longest, GOODBYE_TIMEOUT)
        self._in_vain = True
        try:
            with self.reach.bounded(self.endpoint, seconds, longest):
                await self._backend.propose(operation)
        except errors.RendezvousError as error:
            self._in_vain = isinstance(error, errors.RendezvousConnectionError)
            raise
        self._in_vain = False

    async def _withdraw(self, cause: Cause, reason: str) -> None:
        """Leaves the run, whatever happened; if the backend cannot be told, the node will be expired."""
        self._joined = False
        self._round = None
        try:
            await self._say_goodbye(Leave(self.node, reason, cause))
        except errors.RendezvousConnectionError as error:
            logger.warning("%s could not say that it leaves, and will be expired: %s", self.node, error)
            self._history.note(f"could not leave the run: {error}", state=NodeState.FAILED)
        except errors.RendezvousError as error:  # it was answered: the node is not in the run
            self._history.note(f"was not in the run: {error}")

    async def _keep_alive(self) -> None:
        """Sends heartbeats, the first after a random part of the interval, so that nodes keep out of step."""
        interval = self._settings.keep_alive_interval
        await self._pause(interval * random.random())  # noqa: S311 - spreads, hides nothing
        while True:
            if self._joined:
                try:
                    with anyio.move_on_after(self._settings.timeout.heartbeat):
                        await self._backend.propose(KeepAlive(self.node))
                except errors.RendezvousError as error:
                    logger.warning("%s: heartbeat failed: %s", self.node, error)
                    self._history.note(f"heartbeat failed: {error}", state=NodeState.FAILED)
            await self._pause(interval)

    async def _pause(self, seconds: float) -> None:
        """Sleeps, and warns if the loop was blocked meanwhile for so long that the node may be evicted."""
        for _ in range(SLICES):
            if await self._loop_watch.sleep(seconds / SLICES) and self._joined:
                logger.warning(
                    "%s: %s; after %g s of silence it is taken for dead. Have a thread do what blocks"
                    " (asyncio.to_thread), or use arendezvous.sync, whose heartbeats come from a thread",
                    self.node, self._loop_watch.text(), self._settings.run.expiry,
                )  # fmt: skip

    def _check_open(self) -> Background:
        if self._background is None:
            raise RuntimeError("the rendezvous is used outside of its 'async with' block")
        self._background.origin.check()
        return self._background


def _exit_cause(error: BaseException | None) -> tuple[Cause, str]:
    """Tells why a node leaves whose block was left with `error`, and the reason in words."""
    if error is None:
        return Cause.LEFT, ""
    if isinstance(error, anyio.get_cancelled_exc_class()):
        return Cause.CANCELLED, "its task was cancelled"
    return Cause.FAILED, type(error).__name__
