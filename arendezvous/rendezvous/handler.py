"""`AsyncRendezvousHandler`: the standard rendezvous API, awaited; and what it returns."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeAlias

import msgspec

from arendezvous import guesses
from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError
from arendezvous.law.rosters import Member
from arendezvous.law.rules import REDUCERS, Reducer
from arendezvous.law.state import Cause
from arendezvous.law.status import RunStatus
from arendezvous.net.reach import Reach
from arendezvous.rendezvous.bootstrap import RendezvousStoreInfo
from arendezvous.rendezvous.changes import Change, Outlook
from arendezvous.rendezvous.options import Seconds, choice
from arendezvous.rendezvous.settings import RendezvousSettings

if TYPE_CHECKING:
    from arendezvous.rendezvous.rounds import Round, Until
    from arendezvous.stores.port import Store

_FENCE: Final = "a fence, as info.fence has it, such as '11.10'"

Meet: TypeAlias = Callable[[str, str, object, Seconds | None], Awaitable[Any]]
"""Comes to a barrier: by its name, a reducer, a value and a time-out; see `RendezvousInfo.agree`."""


@dataclass(frozen=True, eq=False)
class RoundPlace(guesses.Guessable):
    """A member's place in its round, as plain data; see `RendezvousInfo`."""

    GUESSES = guesses.INFO

    run_id: str
    incarnation: int
    round: int
    rank: int
    world_size: int
    digest: str
    rank0_addresses: tuple[str, ...]
    local_address: str
    role: str = ""
    role_rank: int = -1
    role_size: int = -1
    slots: int = 1
    first_slot: int = -1
    total_slots: int = -1
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain = {
            "role_rank": self.rank, "role_size": self.world_size,
            "first_slot": self.rank, "total_slots": self.world_size,
        }  # fmt: skip
        vars(self).update((name, value) for name, value in plain.items() if getattr(self, name) < 0)

    @property
    def fence(self) -> str:
        """A short text that rises, compared as text, with every round of the run; see `is_stale`."""
        return fence_of(self.incarnation, self.round)


@dataclass(frozen=True, kw_only=True)
class RendezvousInfo(RoundPlace):
    """Tells a member of its round. It pickles, without what needs the process that joined: its store.

    All calls that wait raise `RendezvousConnectionError` if the backend could not be reached.

    Attributes:
        run_id: The run.
        incarnation: How often the run was opened.
        round: The number of the round.
        rank: This node's rank, from 0.
        world_size: How many nodes the round has.
        digest: A fingerprint of the member list; the same at all members.
        rank0_addresses: Where rank 0 may be reached, the best first.
        local_address: Where this node may be reached.
        role: This node's role; empty where the run has none.
        role_rank: Its rank within the role; without roles the same as `rank`.
        role_size: How many members have the role; without roles the same as `world_size`.
        slots: For how many processes this node has room.
        first_slot: How many slots the ranks before it have: what the ranks of its processes begin with.
        total_slots: How many slots all members have: how many processes there are in all.
        facts: What the members agreed on, by name.
    """

    _open_store: Callable[[], Store | None] = field(repr=False, compare=False)
    _roster: Callable[[], Awaitable[tuple[Member, ...]]] = field(repr=False, compare=False)
    _bootstrap: Callable[[], Awaitable[RendezvousStoreInfo]] = field(repr=False, compare=False)
    _meet: Meet = field(repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(RoundPlace)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = ("_open_store", "_roster", "_bootstrap", "_meet")
        vars(self).update(state | dict.fromkeys(names, _left_behind))

    @functools.cached_property
    def store(self) -> Store:
        """A key-value store that the members of this round share, and nobody else.

        Raises:
            RuntimeError: The backend has none.
        """
        store = self._open_store()
        if store is None:
            raise RuntimeError("this backend has no store for its members; use tcp or c10d")
        return store

    @guesses.to_be_called("await info.members()")
    async def members(self) -> tuple[Member, ...]:
        """Reads the roster of this round: its members as it was completed, in rank order.

        Whoever has gone since is marked; with stock nodes (c10d, etcd-v2) only those that remain are listed.

        Raises:
            RendezvousStateError: The next round is complete.

        Cancellation: safe.
        """
        return await self._roster()

    async def barrier(self, name: str, timeout: Seconds | None = None) -> None:
        """Waits until all members of the round have come to the barrier `name` that have not finished.

        A name can be used again: the members' n-th calls with it belong together. A call that has raised, or
        was cancelled, does not count, so that it can be made again.

        Args:
            name: Names the barrier: 1 to 256 printable characters.
            timeout: Seconds to wait; None waits for ever.

        Raises:
            RoundOverError: A member is lost, has failed or left or been evicted, or has gone on to the next
                round; or the round is over. The error says who, and why.
            RendezvousTimeoutError: Not all have come in time; the error names those that have not.
            RendezvousStateError: Members wait at 64 other barriers, or the backend shares its state with
                stock nodes (c10d, etcd-v2) or with nobody (static), and has no barriers.

        Cancellation: this member has not come then, unless all had come before that was known. The call takes
        two seconds at most to say so.
        """
        await self._meet(name, "", None, timeout)

    async def agree(
        self, name: str, value: Any, reducer: Reducer = "same", timeout: Seconds | None = None
    ) -> Any:
        """Waits as `barrier` does, and returns what the members' values come to: the same at all of them.

        Args:
            name: Names the barrier.
            value: For ``min``, ``max`` and ``sum`` a number, a whole one of at most 2**53, for ``all`` and
                ``any`` a bool, for ``same`` what JSON has, at most 1 KiB of it.
            reducer: What becomes of the values; with ``same`` they must not differ.
            timeout: Seconds to wait; None waits for ever.

        Raises:
            RendezvousStateError: At all members: the values differ, but should be the same; the error says
                who brought what.
            RendezvousSettingsError: The value does not fit the reducer, or that is not the one of those that
                have come; this member has not come.
            RendezvousError: As `barrier` does.

        Cancellation: as that of `barrier`.
        """
        return await self._meet(name, choice("reducer", reducer, REDUCERS), value, timeout)

    async def bootstrap_store_info(self) -> RendezvousStoreInfo:
        """Tells where the workers of this round find a store that speaks the protocol of torch's TCPStore.

        Rank 0 starts to serve it, in this process, until its round is over; every rank must call this, for
        only what is asked for is set up. The store is fresh in every round.

        Raises:
            StoreTimeoutError: Rank 0 has not called this within the time-out of the store.
            RuntimeError: The backend has no store, or the round is over.

        Cancellation: safe.
        """
        return await self._bootstrap()


def _left_behind(*_: object) -> NoReturn:
    raise RuntimeError(
        "this information on a round was pickled, and its store and its members are known to the process that"
        " joined alone: ask there, and pass on what they say"
    )


class HistoryEntry(msgspec.Struct, frozen=True, gc=False):
    """Something that happened to this node.

    Attributes:
        time: When, in seconds since 1970 by this machine's clock; to be shown, not compared across machines.
        what: What, in words.
        change: The change that it was, if it was one.
    """

    time: float
    what: str
    change: Change | None = None


class AsyncRendezvousHandler(guesses.Guessable, ABC):
    """One node's part in a run: the methods of torch's ``RendezvousHandler``, awaited, and ours.

    An asynchronous context manager: leaving the block, by any way, makes the node leave the run, of which the
    others are told at once, and does not close it. Any task may enter the block, under any scope or time-out,
    and any other leave it.

    All calls that wait raise `RendezvousConnectionError` if the backend could not be reached. If work in the
    background fails, which is a bug, all waits and later calls raise a `RendezvousError` that is chained to
    it, until the block is left.
    """

    GUESSES = guesses.HANDLER

    if not TYPE_CHECKING:  # type checkers say it themselves

        def __enter__(self) -> NoReturn:
            raise TypeError(
                "a rendezvous is opened by 'async with'; arendezvous.sync has one for 'with', which blocks"
            )

        def __exit__(self, *_: object) -> None:
            """Does nothing: nobody comes in."""

        def __await__(self) -> NoReturn:
            raise TypeError("a rendezvous is not awaited: write 'async with open_rendezvous(...) as rdzv:'")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: node {self.node!r} of run {self.get_run_id()!r} at {self.endpoint}>"

    @property
    @abstractmethod
    def settings(self) -> RendezvousSettings:
        """The settings of this handler."""

    @property
    def use_agent_store(self) -> bool:
        """Whether workers may use the store that the agents use; always, with our backends that have one."""
        return True

    @property
    @abstractmethod
    def node(self) -> str:
        """The name under which this node is known in the run."""

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """Tells where the run is kept, as a URL without secrets."""

    def get_run_id(self) -> str:
        """Returns the id of the run."""
        return self.settings.run_id

    @abstractmethod
    def get_backend(self) -> str:
        """Returns the name of the backend."""

    @abstractmethod
    async def next_rendezvous(
        self, *, role: str = "", slots: int = 1, data: Any = None, facts: Mapping[str, Any] | None = None
    ) -> RendezvousInfo:
        """Joins the next round and waits until it is complete.

        What a node brings counts for that round: each call says it anew.

        Args:
            role: Its role, where the run has roles.
            slots: For how many processes it has room; they add up to `RendezvousInfo.total_slots`.
            data: For the other members, who find it in the roster: JSON, or like it (dicts with texts as
                keys, lists, tuples, texts, numbers, bools, None), of at most 4 KiB.
            facts: A value for each fact on which the run agrees.

        Raises:
            RendezvousClosedError: The run is closed; the message also says which members of this node's last
                round are gone, and why.
            RendezvousTimeoutError: No round with this node came about within the join time-out.
            RendezvousGracefulExitError: This node is a spare of a run that was closed, or was drained: a node
                that drains waits here for its release, and does not come back. To take part again, open the
                rendezvous anew.
            RendezvousSettingsError: The run's nodes have other settings, or another node has the given rank;
                or what this node brings is not what the run takes.
            FactsDifferError: The nodes brought different values of a fact that must be the same; the message
                says who brought what. Nobody got a rank.
            RendezvousStateError: Another process has the node's name. Both are told only once that process
                has been heard of: until then it is waited for, and its place is taken once it is lost.
            RuntimeError: Another task of this node is joining already.

        Cancellation: the node is withdrawn from the run before the cancelled call returns, within one bounded
        round trip.
        """

    @abstractmethod
    async def is_closed(self) -> bool:
        """Tells whether the run is closed. Cancellation: safe."""

    @abstractmethod
    async def set_closed(self, reason: str = "") -> None:
        """Closes the run for everybody: there will be no further round in this incarnation.

        Cancellation: whether the run is closed is then unknown.
        """

    @abstractmethod
    async def num_nodes_waiting(self) -> int:
        """Tells how many nodes wait for the next round, as far as members are told; see `NodesWaiting`."""

    @abstractmethod
    async def outlook(self) -> Outlook:
        """Tells, in one look, whether this node has a reason to meet again. Cancellation: safe."""

    @property
    def reach(self) -> Reach:
        """Whether the run is within reach, as far as it is known."""
        return Reach()

    @abstractmethod
    async def shutdown(self) -> bool:
        """Leaves the run, without closing it, and returns whether that worked. Cancellation: safe."""

    @abstractmethod
    def changes(self, *, states: bool = False) -> AsyncIterator[Change]:
        """Iterates over what happens to the round that `next_rendezvous` returned last, from its completion.

        The iteration ends after `Evicted` and `Closed`, and when this node joins another round or leaves.
        Each call iterates over all changes. Cancellation: safe; nothing is lost.

        Args:
            states: Whether to tell, as `StateChanged`, what nodes say by `update`, too: of each node first
                the latest, and later ones as they come; of several in a short while perhaps the last alone.

        Raises:
            RendezvousStateError: From the iteration: the backend knows no `states`.
            RendezvousConnectionError: From the iteration, when the backend has been out of reach for the
                read time-out: this node may have been evicted meanwhile.
        """

    @abstractmethod
    def rounds(self, until: Until | None = None, **join: Any) -> AsyncIterator[Round]:
        """Iterates over rounds: joins the next one, by `next_rendezvous`, whenever one has ended.

        What is done in ``with round.scope:`` is cancelled when the round ends::

            async for round in rdzv.rounds():
                with round.scope:
                    await work(round.rank, round.world_size)

        If the work ends by itself, before the round has ended, the node leaves as finished, and the iteration
        ends; so does it when the run is closed, which ends no round, or the node is not needed any more.
        Whoever breaks the loop off stays a member.

        Args:
            until: Tells of a change whether it ends the round. None: those do after which members that work
                together have to meet again: one is lost, drains, or has left otherwise than as finished, this
                node was evicted, or nodes wait.
            join: What `next_rendezvous` takes; a dict among it is read anew at each join.

        Raises:
            RendezvousError: From the iteration: what `next_rendezvous` raises, but for
                `RendezvousClosedError` and `RendezvousGracefulExitError`.
        """

    @abstractmethod
    async def update(self, state: Any) -> None:
        """Says what this node's state is, to those who look on.

        These are `explain`, ``changes(states=True)`` and whoever watches from outside. The latest state
        counts, as long as the node is in the run; no more than a thousand a second are sent.

        Args:
            state: What JSON has, at most 1 KiB of it.

        Raises:
            RendezvousStateError: The node is not in the run, or the backend knows no states.
            RendezvousSettingsError: The state is too long, or nothing that JSON has.

        Cancellation: whether it has been said is then unknown.
        """

    @abstractmethod
    async def progress(self, step: int) -> None:
        """Says how far this node's work has come; a sign of life, too.

        With the option ``stall_timeout`` members are told by `NodeStalled` of one whose step has not risen
        for so long, once it has reported in the round. `explain` names the slowest.

        Args:
            step: A number that rises as long as the work goes on, from 0.

        Raises:
            RendezvousStateError: The node is not in the run, or the backend knows no progress.

        Cancellation: whether it has been said is then unknown.
        """

    @abstractmethod
    async def leave(self, reason: str = "", *, cause: Cause = Cause.LEFT) -> None:
        """Leaves the run now; the other members are told `reason` and `cause`, ``FINISHED`` for instance.

        Cancellation: whether the node has left is then unknown; leaving the block makes sure.
        """

    @abstractmethod
    async def drain(self, deadline: float | timedelta, reason: str = "", *, wait: bool = False) -> None:
        """Announces that this member will leave within `deadline` seconds; a spare is promoted at once.

        It stays a member until it is released: it leaves, the other members have met without it, or the
        deadline has passed. It does not take part in another round.

        Args:
            deadline: Seconds from now.
            reason: Why, for the others; may be empty.
            wait: Whether to return only once it is released.

        Raises:
            RendezvousStateError: It is no member of a complete round, or the backend shares its state with
                stock nodes (c10d, etcd-v2), whose format has no place for a drain: leave instead.

        Cancellation: whether the drain was announced is then unknown; while it waits, it has been.
        """

    @abstractmethod
    async def explain(self) -> RunStatus:
        """Tells who is in, who is missing, who was dropped and why; as data, and in words by ``str()``."""

    @property
    @abstractmethod
    def history(self) -> tuple[HistoryEntry, ...]:
        """The latest things that happened to this node, the oldest first."""

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Connects to the backend. Cancellation: safe; nothing is left open.

        Raises:
            RendezvousConnectionError: It could not be reached.
            RuntimeError: There is no running event loop of asyncio.
        """

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the run and disconnects, in bounded time.

        Cancellation: the node leaves all the same; the call raises once it has.
        """


def fence_of(incarnation: int, round_: int) -> str:
    """Makes the fence of a round: its incarnation and number, each as hexadecimal digits behind their count.

    So whatever can compare texts can compare fences: a database, an object store.
    """
    return ".".join(f"{len(digits):x}{digits}" for digits in (f"{incarnation:x}", f"{round_:x}"))


def is_stale(fence: str, *, than: str) -> bool:
    """Tells whether `fence` is that of an earlier round than the fence `than`, of the same run.

    Whoever guards something that only the present round may change keeps the highest fence that it has seen,
    and refuses who comes with one that is stale.

    Raises:
        RendezvousSettingsError: One of them is no fence.
    """
    return _checked("fence", fence) < _checked("than", than)


def _checked(name: str, fence: str) -> str:
    if not isinstance(fence, str):
        raise RendezvousTypeError.of(name, fence, _FENCE)
    parts = fence.split(".")
    try:
        numbers = [int(part[1:], 16) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != len(("incarnation", "round")) or fence_of(*numbers) != fence:
        raise RendezvousSettingsError.of(name, fence, _FENCE)
    return fence
