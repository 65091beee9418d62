"""A rendezvous whose state every node reads and rewrites, in the format that stock agents share.

Each operation reads the state, applies the law to it by this node's own clock, and writes it back by
compare-and-set; whoever loses gets what the winner wrote, waits for a random moment, and tries again. The
law is the same as anywhere else; `translation` says what is put right for the sake of stock peers. Whatever
is due by itself (an expiry, the end of a last call) is done by the first of our nodes to get to it.

What stock's format has no place for is refused and not pretended: draining, reopening, and restoring a round
that the store has lost.
"""

from __future__ import annotations

import functools
import logging
import math
import random
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import anyio
import msgspec

from arendezvous.backends.base import BackendBase
from arendezvous.backends.feed import ViewFeed
from arendezvous.backends.port import subject
from arendezvous.backends.shared_state import translation
from arendezvous.backends.shared_state.clock_report import ClockReport
from arendezvous.backends.shared_state.fenced_value import Fence, FencedKey, FencedValue, Listener
from arendezvous.backends.shared_state.observer import Observation, Observer
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.law.admission import holder_of
from arendezvous.law.machine import apply, next_wake, view
from arendezvous.law.operations import Claim, Close, Join, Operation, Resume
from arendezvous.law.rosters import Member
from arendezvous.law.state import Cause, Departure, NodeDesc, NodeView, Phase, RendezvousState, RunSettings
from arendezvous.law.status import RunStatus, run_status
from arendezvous.net.backoff import Backoff
from arendezvous.stores.port import Store
from arendezvous.wire.torch_state.state import StockState, decode_state, encode_state
from arendezvous.wire.torch_state.unpickling import StockDesc

logger = logging.getLogger(__name__)

JOINING_POLL: Final = 0.25  # seconds; stock looks once a second
MEMBER_POLL: Final = 0.9
PUSHED_POLL: Final = 5.0  # where the store pushes every change, as a safeguard alone
RIVALS: Final = Backoff(first=0.004, last=0.5, jitter=1.0)  # for those who write at the same moment
CLOSE_TIMEOUT: Final = 1.0
_ANYBODY: Final = RunSettings(1, 1)  # stands in where nobody has said what the settings are
_OUR_IDS: Final = 2**30  # stock counts its local ids from 0; ours are random and beyond


class CompareAndSetBackend(BackendBase):
    """A run in any store that has compare-and-set.

    Args:
        fenced: Where the state is.
        run_id: The run.
        store: The store to hand to members; None: there is none. It is not opened and closed here.
        wall: The wall clock whose stamps stock peers read; None: this machine's.
    """

    name = "c10d"
    carries_what_nodes_bring = False  # stock's format has no place for it

    def __init__(
        self,
        fenced: FencedValue,
        run_id: str,
        *,
        store: Store | None = None,
        wall: Callable[[], datetime] | None = None,
    ) -> None:
        super().__init__()
        self._fenced = fenced
        self._run_id = run_id
        self._shared_store = store
        self._wall = wall or functools.partial(datetime.now, UTC)
        self._seen = Observer()
        self._fence: Fence | None = None
        self._in_doubt: Fence | None = None  # what a write that nobody waits for any more may still replace
        self._learned = 0  # how often there was something new in the store
        self._stale = True  # whether what was learned has not been told yet
        self._looked_at = 0.0
        self._due = math.inf
        self._settings: RunSettings | None = None
        self._own: dict[str, StockDesc] = {}
        self._told: dict[str, tuple[object, ...]] = {}
        self._clocks = ClockReport(run_id, self.endpoint)
        self._turn = anyio.Lock()
        self._listener = Listener(fenced)

    @classmethod
    def over(cls, store: Store, run_id: str) -> CompareAndSetBackend:
        """Makes a backend of an open store, which the caller closes, with the keys of stock's ``c10d``."""
        return CompareAndSetBackend(FencedKey(store, run_id), run_id, store=store)

    @property
    def store(self) -> Store | None:
        return self._shared_store

    def round_prefix(self, run_id: str, view: NodeView) -> str:
        """The prefix of the keys of one round in `store`: that of stock, so that its members share them."""
        return f"torch.rendezvous.{run_id}.{view.round}"

    def awaits_bootstrap(self, view: NodeView) -> bool:
        """Whether members of this round wait for rank 0 to publish its store though nobody asked it to.

        Stock members do, in their ``next_rendezvous``.
        """
        state = self._seen.state
        if not state.complete or state.round != view.round:
            return False
        return any(self._seen.sights[node].is_stock for node in state.participants)

    async def _open(self) -> None:
        await self._look()
        background = self._check_open()
        background.start(self._watch)
        background.start(self._listener.run)

    async def _close(self) -> None:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            try:
                await self._fenced.close()
            except RendezvousError as failure:
                logger.info("%s: an announcement is left behind: %s", self.endpoint, failure)

    async def propose(self, operation: Operation) -> NodeView:
        """Writes what an operation changes; see `RendezvousBackend.propose` for what it means.

        Raises:
            RendezvousStateError: Also if stock's format cannot express the operation, another process that is
                alive has the node's name, or the state is corrupt or of another version.

        Cancellation: at any await; whether the operation was applied is then unknown.
        """
        self._check_open()
        translation.check_expressible(operation)
        before: tuple[NodeDesc, float] | None = None
        while True:
            async with self._turn:
                try:
                    return await self._propose(operation)
                except RendezvousError:
                    holder = self._holder(operation) if isinstance(operation, Join) else None
                    if holder is None or (holder.desc, holder.beat) != (before or (holder.desc, holder.beat)):
                        raise  # nobody is to be waited for; or not any more, as he has been heard of
                    before = (holder.desc, holder.beat)
            await anyio.sleep(min(JOINING_POLL, self._expiry / 6))

    async def _propose(self, operation: Operation) -> NodeView:
        node = subject(operation)
        if isinstance(operation, Join):
            desc, self._settings = operation.desc, operation.settings
            if node not in self._own:  # stock knows it by a number that nobody else has
                number = _OUR_IDS + secrets.randbits(30)
                self._own[node] = StockDesc(desc.addr or node, desc.pid, number)
            self._feeds.setdefault(node, ViewFeed())
        await self._carry_out(operation)
        self._refresh()
        self._listener.nudge()
        latest = self._feeds[node].latest if node in self._feeds else None
        return latest or self._view(self._law(), node, anyio.current_time())

    async def status(self) -> RunStatus:
        """Takes stock of the run; without settings if only stock nodes are in it. Cancellation: safe."""
        self._check_open()
        await self._look()
        if not self._seen.exists:
            return RunStatus(self._run_id)
        known, skews = self._known_settings, self._seen.skewed(self._expiry)
        status = run_status(self._run_id, self._law(), anyio.current_time(), skews)
        return msgspec.structs.replace(status, settings=known)

    async def roster(self, incarnation: int, round_: int) -> tuple[Member, ...]:
        self._check_open()
        await self._look()
        state = self._seen.state
        if not state.complete or (incarnation, round_) != (1, state.round):
            said = f"round {round_} of run {self._run_id!r} is over; its members cannot be listed any more"
            raise RendezvousStateError(said)
        ranked = sorted(state.participants.items(), key=lambda item: item[1])
        return tuple(Member.of(self._seen.sights[node].desc, rank) for node, rank in ranked)

    def _holder(self, join: Join) -> Observation | None:
        """Finds who has what a newcomer asks for, and has not been silent for too long, as far as seen."""
        law, now = self._law(), anyio.current_time()
        translation.advance(law, now)
        stranger = self._is_stranger(join.node, law)
        if join.node in law.nodes and not stranger:
            return None
        holder = holder_of(law, Claim(join) if stranger else join, now)
        return None if holder is None else self._seen.sights[self._seen.keys[holder]]

    def _is_stranger(self, node: str, law: RendezvousState) -> bool:
        """Whether another process has the name of `node`."""
        return node in law.nodes and self._seen.keys.get(node) != self._own.get(node)

    def _view(self, law: RendezvousState, node: str, now: float) -> NodeView:
        """Takes the view of a node, as far as it is of this backend."""
        if not self._is_stranger(node, law):
            return view(law, node, now)
        gone = Departure(Cause.SUPERSEDED, "another process has its name", law.round, now)
        return NodeView(node, law.revision, 1, law.round, Phase.GONE, closed=law.closed, gone=gone, now=now)

    async def _carry_out(self, operation: Operation | None) -> None:
        """Applies an operation, or just what is due; returns once it is in the store. Needs the turn.

        A write that was cancelled, or whose answer was lost, may still be on its way. So even if there is
        nothing to say, something is written then: the one that is late loses.
        """
        fresh = anyio.current_time() - self._looked_at > self._expiry / 3
        if fresh:  # somebody may have been heard of since
            await self._look()
        pauses = RIVALS.start()
        while True:
            problem: RendezvousError | None = None
            state: StockState | None = None
            try:
                state = self._next_state(operation)
            except RendezvousError as error:
                problem = error
            if state is not None:
                if await self._write(state):
                    break
                await pauses.sleep()
                await self._look()  # others went on meanwhile; what was read before would lose again
            elif not fresh:
                await self._look()
            elif problem is not None:
                raise problem
            else:
                break
            fresh = True

    def _next_state(self, operation: Operation | None) -> StockState | None:
        """Decides what the state should become; None: what it is."""
        now, law = anyio.current_time(), self._law()
        known = self._known_settings is not None
        news = known and translation.advance(law, now)
        if operation is not None and self._is_for(operation, law):
            node = subject(operation)
            news = any(translation.matters(event, node) for event in apply(law, operation, now)) or news
        overtake = self._in_doubt is not None and self._in_doubt == self._fence
        state = translation.from_law(law, self._seen, self._own, now, self._wall(), pulse=news or overtake)
        if not known:
            state.annex = msgspec.structs.replace(state.annex, settings=None)
        return None if state == self._seen.state and not overtake else state

    async def _write(self, state: StockState) -> bool:
        assert self._fence is not None  # noqa: S101 - the state was read before it is written
        replaced, learned = self._seen.state.annex.pulse, self._learned
        self._in_doubt = self._fence
        won, text, fence = await self._fenced.set(encode_state(state), self._fence)
        if fence != self._in_doubt:
            self._in_doubt = None
        if learned == self._learned:
            self._learn(text, fence)
        else:  # it was read meanwhile, before or after this was written
            await self._look()
        if won and state.annex.pulse != replaced:
            await self._fenced.announce(replaced)
        return won

    @property
    def _known_settings(self) -> RunSettings | None:
        return self._seen.settings() or self._settings

    def _law(self) -> RendezvousState:
        return translation.to_law(self._seen, self._known_settings or _ANYBODY)

    def _is_for(self, operation: Operation, law: RendezvousState) -> bool:
        """Whether an operation is about the run or a node of this backend; a stranger has nothing to say."""
        if isinstance(operation, Close):
            return True
        node = subject(operation)
        if self._is_stranger(node, law):
            if isinstance(operation, Join):
                said = f"the node name {node!r} is in use in run {self._run_id!r}"
                raise RendezvousStateError(f"{said}; give every node its own name", node=node)
            return False
        if isinstance(operation, Resume) and node not in law.nodes:
            said = f"{node} is not in run {self._run_id!r} any more, and stock's format cannot bring a round"
            raise RendezvousStateError(f"{said} back: join again", node=node)
        return True

    async def _look(self) -> None:
        """Reads the state, and takes it in if it is new."""
        while True:
            learned = self._learned
            text, fence = await self._fenced.get()
            if learned == self._learned:
                break
        self._learn(text, fence)
        for feed in self._feeds.values():
            feed.recover()
        if self._stale:
            self._refresh()

    def _learn(self, text: bytes, fence: Fence) -> None:
        now = anyio.current_time()
        gap, self._looked_at = now - self._looked_at, now
        if gap > self._expiry / 2:  # this process was frozen, or the store away: that proves nobody dead
            self._seen.forgive(gap)
            self._stale = True
        if fence != self._fence:
            state = _decode(text)
            settings = self._known_settings or _ANYBODY
            dropped = self._seen.observe(state, now, self._wall(), settings, self._own.values())
            self._fence = fence
            self._learned += 1
            self._stale = True
            self._clocks.look(self._seen, self._expiry, self._own, dropped)

    def _refresh(self) -> None:
        """Tells our nodes what is new to them, and finds out when the law has something to do."""
        self._stale = False
        now, law = anyio.current_time(), self._law()
        for node, feed in self._feeds.items():
            seen = self._view(law, node, now)
            news = translation.what_is_news(seen, law)
            if feed.latest is None or self._told.get(node) != news:
                self._told[node] = news
                feed.push(seen)
        self._due = math.inf
        if not law.nodes.keys().isdisjoint(self._own) and self._known_settings is not None:
            due = now if translation.advance(law, now) else next_wake(law)
            spread = min(0.25, self._expiry / 20, 0.002 * len(law.nodes))
            if due is not None:  # not all of ours at the same moment
                self._due = due + spread * random.random()  # noqa: S311 - spreads, hides nothing
        if self._fence is not None:
            self._listener.turn_to(self._fenced.topic(self._fence, self._seen.state.annex.pulse))

    @property
    def _expiry(self) -> float:
        return (self._known_settings or _ANYBODY).expiry

    async def _watch(self) -> None:
        """Looks whenever there may be news, and does what is due."""
        while True:
            if await self._listener.heard(self._pause()):
                burst = min(0.1, 0.0005 * len(self._seen.sights))  # many changes at once are read as one
                await anyio.sleep(burst * random.random())  # noqa: S311 - spreads, hides nothing
            try:
                await self._look()
                if self._due <= anyio.current_time():
                    async with self._turn:
                        await self._carry_out(None)
                        self._refresh()
            except RendezvousError as error:
                logger.info("%s: %s", self.endpoint, error)
                self._end_waits(error)

    def _pause(self) -> float:
        """Seconds until the next look if nothing is pushed."""
        if not self._feeds:
            return math.inf
        views = [feed.latest for feed in self._feeds.values() if feed.latest is not None]
        idle = all(view.phase in (Phase.MEMBER, Phase.GONE) for view in views)
        poll = MEMBER_POLL if idle else max(JOINING_POLL, min(MEMBER_POLL, 0.005 * len(self._seen.sights)))
        if self._fenced.sees_everything:
            poll = PUSHED_POLL
        poll = min(poll, self._expiry / 6) * random.uniform(0.8, 1.0)  # noqa: S311 - spreads, hides nothing
        return max(0.001, min(poll, self._due - anyio.current_time()))


@functools.lru_cache(maxsize=4)
def _decode(text: bytes) -> StockState | None:
    """Reads a state once for all backends of this process; none of them changes what was read."""
    return decode_state(text)
