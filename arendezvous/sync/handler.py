"""A blocking rendezvous handler over the asynchronous one; see `arendezvous.sync`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.lowlevel

from arendezvous import guesses, opening, registry
from arendezvous.rendezvous.changes import Change
from arendezvous.rendezvous.handler import AsyncRendezvousHandler, HistoryEntry, RoundPlace
from arendezvous.rendezvous.handler import RendezvousInfo as AsyncRendezvousInfo
from arendezvous.rendezvous.option_groups import RendezvousOptions
from arendezvous.rendezvous.options import Seconds, seconds, takes_options
from arendezvous.rendezvous.parameters import RendezvousParameters
from arendezvous.rendezvous.rounds import Round as AsyncRound
from arendezvous.rendezvous.rounds import Until
from arendezvous.rendezvous.settings import RendezvousSettings
from arendezvous.stores.port import Store as AsyncStore
from arendezvous.sync.blocking import Blocking, blocking
from arendezvous.sync.loop_thread import LoopThread, loop_thread
from arendezvous.sync.store import Store

T = TypeVar("T")
Args = TypeVarTuple("Args")


class RendezvousInfo(Blocking[AsyncRendezvousInfo], RoundPlace):
    """Tells a member of its round, with the attributes, and the methods, of `arendezvous.RendezvousInfo`."""

    def __init__(self, info: AsyncRendezvousInfo, loop: LoopThread) -> None:
        vars(self).update(info.__getstate__(), asynchronous=info, loop=loop)

    @functools.cached_property
    def store(self) -> Store:
        """The blocking store of the round; raises `RuntimeError` if there is none, or its loop has ended."""
        return Store(self._run(self._opened_store), self.loop)

    async def _opened_store(self) -> AsyncStore:
        return self.asynchronous.store

    members = guesses.to_be_called("info.members()")(blocking(AsyncRendezvousInfo.members))
    """Reads the roster of this round; see `arendezvous.RendezvousInfo.members`."""
    barrier = blocking(AsyncRendezvousInfo.barrier)
    """Waits until all members have come to a barrier; see `arendezvous.RendezvousInfo.barrier`."""
    agree = blocking(AsyncRendezvousInfo.agree)
    """Agrees with all members on one value; see `arendezvous.RendezvousInfo.agree`."""
    bootstrap_store_info = blocking(AsyncRendezvousInfo.bootstrap_store_info)
    """Tells where the workers of this round find a store; every rank must call it."""


class Round(RendezvousInfo):
    """One round, and what ends it; see `arendezvous.Round`.

    Attributes:
        info: The information on it alone.
    """

    info: RendezvousInfo
    asynchronous: AsyncRound

    def __init__(self, round_: AsyncRound, loop: LoopThread) -> None:
        super().__init__(round_, loop)
        vars(self).update(info=RendezvousInfo(round_.info, loop))

    @property
    def changes(self) -> tuple[Change, ...]:
        """Lists what has happened to it so far; the last of it ended the round, if it has ended."""
        return tuple(self.asynchronous.changes)

    def over(self, timeout: Seconds | None = 0) -> bool:
        """Tells whether a change has ended the round: then stop what is done in it, and join the next.

        It waits for that for `timeout` seconds; None: for ever.
        """
        if self.asynchronous.has_ended or timeout == 0:
            return self.asynchronous.has_ended
        patience = None if timeout is None else seconds("timeout", timeout, zero=True)

        async def wait() -> None:
            with anyio.move_on_after(patience):
                await self.asynchronous.over()

        self._run(wait)
        return self.asynchronous.has_ended


class RendezvousHandler(Blocking[AsyncRendezvousHandler]):
    """One node's part in a run: the standard methods, blocking.

    It connects when it is first used, or as a context manager on entering. It leaves the run on `close`,
    which leaving the block does, and at the latest when the process ends; not, however, in a child that was
    made by `os.fork` and ends by `os._exit`. Any number of threads may use it at the same time: it is opened
    once, and closed after it was opened. A call that was interrupted has ended before the next one begins.
    All calls that wait raise `RendezvousConnectionError` if the backend could not be reached.

    Attributes:
        asynchronous: The asynchronous handler, at first not entered; its methods are to be awaited in the
            loop, see `while_in_reach`.
        loop: The loop in which it is open, or was; the present one of this process before that.

    Its fields:
        _is_open: Written in the loop, so that it is true even if the caller was interrupted.
        _turn: Orders opening and closing, in the loop that is named; None before the handler was used.
    """

    GUESSES = guesses.HANDLER

    def __init__(self, asynchronous: AsyncRendezvousHandler) -> None:
        super().__init__(asynchronous)
        self._is_open = False
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def __enter__(self) -> Self:
        """Connects; raises `RendezvousConnectionError` if the backend could not be reached."""
        try:
            self._run(anyio.lowlevel.checkpoint)
        except BaseException:
            self.close()  # it may be open all the same, if this thread was interrupted
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the run, and tells the others if it was because of an error."""
        self._close(error)

    @property
    def settings(self) -> RendezvousSettings:
        """The settings of this handler."""
        return self.asynchronous.settings

    @property
    def use_agent_store(self) -> bool:
        """Whether workers may use the store that the agents use."""
        return self.asynchronous.use_agent_store

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        """The latest things that happened to this node, the oldest first."""
        return self.asynchronous.history

    @property
    def node(self) -> str:
        """The name under which this node is known in the run."""
        return self.asynchronous.node

    @property
    def endpoint(self) -> str:
        """Tells where the run is kept, as a URL without secrets."""
        return self.asynchronous.endpoint

    def get_backend(self) -> str:
        """Returns the name of the backend."""
        return self.asynchronous.get_backend()

    def get_run_id(self) -> str:
        """Returns the id of the run."""
        return self.asynchronous.get_run_id()

    def next_rendezvous(
        self, *, role: str = "", slots: int = 1, data: Any = None, facts: Mapping[str, Any] | None = None
    ) -> RendezvousInfo:
        """Joins the next round and waits until it is complete, as the asynchronous one does.

        An interrupt withdraws the node from the run before it goes on.
        """
        join = functools.partial(
            self.asynchronous.next_rendezvous, role=role, slots=slots, data=data, facts=facts
        )
        return RendezvousInfo(self._run(join), self.loop)

    is_closed = blocking(AsyncRendezvousHandler.is_closed)
    """Tells whether the run is closed."""
    set_closed = blocking(AsyncRendezvousHandler.set_closed)
    """Closes the run for everybody."""
    num_nodes_waiting = blocking(AsyncRendezvousHandler.num_nodes_waiting)
    """Tells how many nodes wait for the next round, as far as members are told."""
    outlook = blocking(AsyncRendezvousHandler.outlook)
    """Tells, in one look, whether this node has a reason to meet again."""
    update = blocking(AsyncRendezvousHandler.update)
    """Says what this node's state is, to those who look on."""
    progress = blocking(AsyncRendezvousHandler.progress)
    """Says how far this node's work has come; a sign of life, too."""
    leave = blocking(AsyncRendezvousHandler.leave)
    """Leaves the run now; the other members are told `reason` and `cause`."""
    drain = blocking(AsyncRendezvousHandler.drain)
    """Announces that this member will leave within `deadline` seconds; `wait`: returns once it may go."""
    explain = blocking(AsyncRendezvousHandler.explain)
    """Tells who is in, who is missing, who was dropped and why."""

    def changes(self, *, states: bool = False) -> Iterator[Change]:
        """Iterates over what happens to the current round; blocks until something does."""
        return self._each(lambda: self.asynchronous.changes(states=states))

    def rounds(self, until: Until | None = None, **join: Any) -> Iterator[Round]:
        """Iterates over rounds; see `arendezvous.AsyncRendezvousHandler.rounds`.

        Nothing interrupts a program that blocks: it looks from time to time, by `Round.over`, whether the
        round has ended, and leaves its body then. If the body ends before that, the work is done, and the
        node leaves as finished::

            for round in rdzv.rounds():
                while not round.over() and step < steps:
                    step = work(round.rank, round.world_size, step)
        """
        return (Round(one, self.loop) for one in self._each(lambda: self.asynchronous.rounds(until, **join)))

    def _each(self, begin: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        async def begun() -> AsyncIterator[T]:
            return begin()

        items = self._run(begun)
        while True:
            try:
                yield self.loop.run(self, items.__anext__)
            except StopAsyncIteration:
                return

    async def leave_in_loop(self, reason: str) -> None:
        """Leaves the run, if it is in it; to be awaited in the loop that all handlers share."""
        if self._is_open and not self.loop.has_ended:
            await self.asynchronous.leave(reason)

    def while_in_reach(self, function: Callable[[], Awaitable[T]]) -> T:
        """Calls `function` in the loop; raises `RendezvousConnectionError` after two seconds out of reach."""

        async def bounded() -> T:
            with self.asynchronous.reach.bounded(self.endpoint):
                return await function()

        return self._run(bounded)

    def shutdown(self) -> bool:
        """Leaves the run without closing it, and disconnects; returns whether the run was told."""
        return not self._is_open or self.loop.run(self, self._shut_down)

    def close(self) -> None:
        """Leaves the run and disconnects, in bounded time; may be called again, and from any thread."""
        self._close(None)

    def _close(self, error: BaseException | None) -> None:
        if self._turn is not None and not self.loop.has_ended:
            self.loop.run(self, self._close_in_turn, error)

    def _run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Opens the handler if it is not open, and calls `function` in its loop."""
        if not self._is_open and self.loop.has_failed:
            self.loop = loop_thread()
        return self.loop.run(self, self._use_in_turn, functools.partial(function, *args))

    async def _use_in_turn(self, function: Callable[[], Awaitable[T]]) -> T:
        if not self._is_open:
            async with self._in_turn():
                if not self._is_open:
                    await self.asynchronous.__aenter__()
                    self._is_open = True
                    self.loop.at_exit(self, functools.partial(self._close_in_turn, None))
        return await function()

    async def _shut_down(self) -> bool:
        try:
            return not self._is_open or await self.asynchronous.shutdown()
        finally:
            await self._close_in_turn(None)

    async def _close_in_turn(self, error: BaseException | None) -> None:
        """Closes the handler if it is open. Cancellation: it is closed all the same."""
        with anyio.CancelScope(shield=True):
            async with self._in_turn():
                if self._is_open:
                    self._is_open = False
                    self.loop.at_exit(self, None)
                    await self.asynchronous.__aexit__(None if error is None else type(error), error, None)

    def _in_turn(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            self._turn = loop, asyncio.Lock()
        return self._turn[1]


@takes_options(RendezvousOptions)
def open_rendezvous(endpoint: str, *, run_id: str, **options: Unpack[RendezvousOptions]) -> RendezvousHandler:
    """Opens a rendezvous for one node of a run; to be used in a ``with`` statement.

    It takes what `arendezvous.open_rendezvous` takes, and raises what that raises. The handler connects when
    the block is entered, or when it is first used without one.
    """
    return RendezvousHandler(opening.open_rendezvous(endpoint, run_id=run_id, **options))


def get_rendezvous_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Makes a handler, not connected yet, for the backend that `params` names.

    Raises:
        RendezvousSettingsError: The backend is unknown, or a parameter is not allowed.
        TypeError: A plug-in has made a handler that is no `arendezvous.AsyncRendezvousHandler`.
    """
    handler = registry.get_rendezvous_handler(params)
    if not isinstance(handler, AsyncRendezvousHandler):
        raise TypeError(
            f"{type(handler).__name__}, made for {params.backend!r}, is no AsyncRendezvousHandler"
        )
    return RendezvousHandler(handler)
