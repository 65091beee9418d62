"""The connections of one `TcpStore`: one for what answers at once, others for waits; opened again if lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any, TypeVar

import anyio

from arendezvous.errors import RendezvousConnectionError, RendezvousError, StoreError
from arendezvous.keyspace import messages
from arendezvous.keyspace.keyspace import leading_integer, not_a_number
from arendezvous.net.backoff import DEFAULT_BACKOFF
from arendezvous.net.credentials import Credentials
from arendezvous.net.forks import Origin
from arendezvous.net.reach import Reach
from arendezvous.net.servers import Locator
from arendezvous.stores.arguments import key_from_bytes
from arendezvous.stores.tcp.connection import ConnectionGone, Dialer, StoreConnection
from arendezvous.stores.timeouts import describe

_READS = (
    messages.Get, messages.MultiGet, messages.Check, messages.NumKeys, messages.QueueLen, messages.ListKeys,
    messages.Wait,
)  # fmt: skip
_MAX_IDLE = 16
_MAX_OPENERS = 32

T = TypeVar("T")


class ConnectionPool:
    """Opens connections to one server when they are needed, and asks on them; see `TcpStore`."""

    def __init__(self, servers: Locator, read_timeout: float, credentials: Credentials) -> None:
        self._dialer = Dialer(servers, read_timeout, credentials)
        self._endpoint = str(servers)
        self._read_timeout = read_timeout
        self._main: StoreConnection | None = None
        self._links: set[StoreConnection] = set()
        self._idle: list[StoreConnection] = []
        self._shared: dict[bytes, _SharedWait] = {}
        self._opening_main = anyio.Lock()
        self._openers = anyio.Semaphore(_MAX_OPENERS)
        self._trouble: Exception | None = None
        self.reach = Reach()
        self._closed = False
        self._origin = Origin("this store")

    async def connect(self, seconds: float | None) -> None:
        """Opens the main connection, also after `close`; tries for so many seconds, or for ever with None."""
        self._closed = False
        await self._main_link("connect", seconds)

    async def close(self) -> None:
        """Closes all connections; whoever waits on one gets `StoreError`."""
        self._closed = True
        links, self._links = self._links, set()
        for link in links:
            link.close()
        with anyio.move_on_after(1, shield=True):
            for link in links:
                await link.wait_closed()

    async def ask(self, request: messages.StoreRequest, *, for_: messages.StoreRequest | None = None) -> Any:
        """Returns the reply to a request; None if it has no reply, and the server has it.

        Args:
            request: What to ask. What changes something is never asked twice.
            for_: What errors shall name, where `request` only prepares it; it must be a read too.

        Raises:
            RendezvousConnectionError: There was no answer.
            StoreError: The request is over the limits, was refused, or the store is closed.
        """
        named, link = for_ or request, self._main
        if link is not None and not link.lost:
            try:
                return await link.ask(request)
            except ConnectionGone as lost:
                await self._judge(named, lost)
        doing = _doing(named)

        async def attempt() -> Any:
            return await (await self._main_link(doing, None)).ask(request)

        async with self._bounded(doing, self._read_timeout):
            return await self._persist(named, attempt)

    async def pop(self, request: messages.QueuePop) -> messages.Popped:
        """As `ask`; a value that comes when the caller has been cancelled goes back to its queue."""
        link = await self._main_link(_doing(request), self._read_timeout)
        return await self._pop_on(link, request)

    async def look(self, read: messages.Get | messages.MultiGet) -> tuple[bool, Any]:
        """Returns whether all keys exist, and the reply to `read`, both of one moment. Raises as `ask` does.

        The protocol reads an absent key as an empty value, so that one needs both.
        """
        check = messages.Check([read.key] if isinstance(read, messages.Get) else read.keys)
        doing = _doing(read)

        async def attempt() -> tuple[bool, Any]:
            link = await self._main_link(doing, None)
            ready, reply = link.ask(check), link.ask(read)
            return (await ready).ready, await reply

        async with self._bounded(doing, self._read_timeout):
            return await self._persist(read, attempt)

    async def wait(self, request: messages.Wait) -> None:
        """Returns when the wait is over; if it is cancelled, the server is told so. Raises as `ask` does."""

        async def attempt() -> None:
            async with self._borrowed(request) as link:
                await link.ask(request)

        await self._persist(request, attempt)

    async def barrier(self, request: messages.Barrier, seconds: float | None) -> bool:
        """Returns whether the barrier was full in time; raises as `wait` does, but never asks twice.

        The `seconds` begin once the request is on its way, so that it is counted however few they are; None
        waits for ever.
        """

        async def attempt() -> bool:
            async with self._borrowed(request) as link:
                with anyio.move_on_after(seconds):
                    await link.ask(request)
                    return True
            return False

        return await self._persist(request, attempt)

    async def wait_shared(self, key: bytes) -> None:
        """Returns when `key` has been written, or had been just before the call: look again.

        All who wait for one key in this way share one connection. Raises as `wait` does, as a `Get`.
        """
        request = messages.Get(key)

        async def attempt() -> None:
            with self._joined(key) as shared:
                future = await self._shared_wait(shared, request)
                await asyncio.wait([future])
                future.result()

        await self._persist(request, attempt)

    async def _shared_wait(self, shared: _SharedWait, request: messages.Get) -> asyncio.Future[Any]:
        """The wait that all who wait for the key of `request` share; begins it if need be."""
        async with self._bounded(_doing(request), self._read_timeout), shared.opening:
            future = shared.future
            if future is None or future.done():
                if shared.link is not None:
                    self._give_back(shared.link)
                shared.link = await self._borrow(request)
                future = shared.future = shared.link.ask(messages.Wait([request.key]))
            return future

    async def wait_and_pop(self, queue: bytes) -> bytes:
        """Waits for a value in `queue` and takes it. Raises as `wait` does.

        While a key of the name of the queue exists, a wait is over at once; then this asks again and again,
        with growing pauses, since the protocol has no other way.
        """
        pauses, wait, request = DEFAULT_BACKOFF.start(), messages.Wait([queue]), messages.QueuePop(queue)

        async def attempt() -> bytes | None:
            async with self._borrowed(request) as link:
                await link.ask(wait)
                return (await self._pop_on(link, request)).value

        while (value := await self._persist(wait, attempt)) is None:
            await pauses.sleep()
        return value

    async def _persist(self, request: messages.StoreRequest, attempt: Callable[[], Awaitable[T]]) -> T:
        """Makes attempts until one does not end with its connection, if `request` may be sent again."""
        pauses = DEFAULT_BACKOFF.start()
        while True:
            try:
                return await attempt()
            except ConnectionGone as lost:
                await self._judge(request, lost)
            await pauses.sleep()

    async def _pop_on(self, link: StoreConnection, request: messages.QueuePop) -> messages.Popped:
        reply: asyncio.Future[messages.Popped] = link.ask(request)
        try:
            return await reply
        except ConnectionGone as lost:
            await self._judge(request, lost)
            raise
        except asyncio.CancelledError:
            # The reply may have come in the same tick as the cancellation.
            if reply.done() and not reply.cancelled() and reply.exception() is None:
                value = reply.result().value
                if value is not None:
                    link.put_back(request.key, value)
            raise

    async def _judge(self, request: messages.StoreRequest, lost: ConnectionGone) -> None:
        """Returns if `request`, which was in flight when the connection was lost, may be sent again."""
        self._require_open()
        doing = _doing(request)
        if lost.silent:
            raise self._unreachable(doing, self._read_timeout, lost) from lost
        if isinstance(request, _READS):
            return
        if isinstance(request, (messages.Add, messages.Barrier)):
            await self._look_for_refusal(request.key, lost)
        raise RendezvousConnectionError(
            f"{doing} at {self._endpoint}: {lost}; it may have been carried out or not, so it was not sent"
            " again: look at the key, then decide. A server that goes on says in its log why it hung up, for"
            " want of errors in this protocol: a full store, for example",
            endpoint=self._endpoint,
            doing=doing,
        ) from lost

    async def _look_for_refusal(self, key: bytes, lost: ConnectionGone) -> None:
        """Finds out whether the server broke off because the value is no number: it cannot say so."""
        try:
            ready, reply = await self.look(messages.Get(key))
        except RendezvousConnectionError:
            return
        value = reply.value or b""
        if ready and leading_integer(value) is None:
            raise not_a_number(key.removeprefix(b"/"), value) from lost

    async def _main_link(self, doing: str, seconds: float | None) -> StoreConnection:
        self._origin.check()
        link = self._main
        if link is not None and not link.lost:
            return link
        async with self._bounded(doing, seconds), self._opening_main:
            if self._main is None or self._main.lost:
                self._main = await self._open()
            return self._main

    async def _borrow(self, request: messages.StoreRequest) -> StoreConnection:
        self._origin.check()
        while self._idle:
            link = self._idle.pop()
            if not link.lost:
                return link
        async with self._bounded(_doing(request), self._read_timeout):
            return await self._open()

    async def _open(self) -> StoreConnection:
        pauses = DEFAULT_BACKOFF.start()
        while True:
            self._require_open()
            try:
                async with self._openers:
                    link = await self._dialer.open()
            except RendezvousError:  # an OSError, too, but one that trying again does not mend
                raise
            except (OSError, ConnectionGone) as error:
                self._trouble = error
                self.reach.lose()
                if isinstance(error, ConnectionGone) and error.final:
                    said, where = f"{self._endpoint}: {error}", self._endpoint
                    raise RendezvousConnectionError(said, endpoint=where, doing="connecting") from error
            else:
                self.reach.find()
                self._links = {other for other in self._links if not other.lost} | {link}
                if self._closed:
                    link.close()
                    self._require_open()
                return link
            await pauses.sleep()

    @asynccontextmanager
    async def _borrowed(self, request: messages.StoreRequest) -> AsyncIterator[StoreConnection]:
        link = await self._borrow(request)
        try:
            yield link
        finally:
            self._give_back(link)

    @contextmanager
    def _joined(self, key: bytes) -> Iterator[_SharedWait]:
        shared = self._shared.setdefault(key, _SharedWait())
        shared.users += 1
        try:
            yield shared
        finally:
            shared.users -= 1
            if not shared.users:
                del self._shared[key]
                if shared.link is not None:
                    self._give_back(shared.link)

    def _give_back(self, link: StoreConnection) -> None:
        if link.lost:
            return
        if link.busy:
            link.release(lambda: self._give_back(link))
        elif len(self._idle) < _MAX_IDLE:
            self._idle.append(link)
        else:
            link.close()

    @asynccontextmanager
    async def _bounded(self, doing: str, seconds: float | None) -> AsyncIterator[None]:
        with anyio.move_on_after(seconds) as scope:
            yield
        if scope.cancelled_caught:
            raise self._unreachable(doing, seconds, self._trouble) from self._trouble

    def _unreachable(
        self, doing: str, seconds: float | None, why: Exception | None
    ) -> RendezvousConnectionError:
        return RendezvousConnectionError(
            f"{doing} at {self._endpoint} failed after {seconds} s: {why or 'no answer'}; is the store server"
            " running, and is this its address?",
            endpoint=self._endpoint,
            doing=doing,
        )

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("the store has been closed: open another one")


class _SharedWait:
    """One wait on the wire for all who want it."""

    def __init__(self) -> None:
        self.opening = anyio.Lock()
        self.link: StoreConnection | None = None
        self.future: asyncio.Future[Any] | None = None
        self.users = 0


def _doing(request: Any) -> str:
    """Says what a request does, in the words of its sender: `get of 'leader'`."""
    keys = getattr(request, "keys", None) or [key for key, _ in getattr(request, "items", ())]
    keys = keys or [key for key in [getattr(request, "key", None)] if key is not None]
    words = [key_from_bytes(key.removeprefix(b"/")) for key in keys[:5]]
    return describe(_name(type(request).__name__), words)


@cache
def _name(message: str) -> str:
    """The operation that sends it: `compare_set` for `CompareSet`."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", message).lower()
