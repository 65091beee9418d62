"""Watching a run at our server from outside, its status first, then all that happens; or all runs of it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeAlias, TypeVar

import anyio
import anyio.abc

from arendezvous.backends.feed import RUNS_INTERVAL, RunsItem
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.law.events import NodeUpdated
from arendezvous.law.status import RunStatus
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials, connect, why
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.servers import Locator, MovedError
from arendezvous.wire.native import messages as wire

KEEP_ALIVE: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

News: TypeAlias = RunStatus | wire.Happened
N = TypeVar("N")
W = TypeVar("W", bound="ServerNews[Any]")


class ServerNews(AsyncIterator[N], Generic[N]):
    """The news from one server, over a connection of its own. The iteration ends with an error alone."""

    def __init__(self, stream: anyio.abc.ByteStream, endpoint: str, credentials: Credentials) -> None:
        self._stream = stream
        self._endpoint = endpoint
        self._credentials = credentials
        self._parser = wire.FrameParser(wire.MAX_REPLY)
        self._news: deque[N] = deque()
        self._silent = True
        self._failure: RendezvousError | None = None

    async def __anext__(self) -> N:
        """Waits for news. Cancellation: safe; nothing is lost.

        Raises:
            RendezvousConnectionError: The connection is lost; what happens meanwhile will not be known.
        """
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        await self._wait()
        return self._news.popleft()

    async def _wait(self) -> None:
        while not self._news:
            await self._receive()

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, OSError) as error:
            raise self._lost(error) from error
        self._silent = False
        try:
            for frame in self._parser.feed(data):
                message = wire.decode_server(frame)
                if isinstance(message, wire.Failed):
                    raise MovedError.of(message) or wire.error_of(message)
                self._take(message)
        except wire.FrameError as error:
            raise self._lost(error) from error

    def _take(self, message: wire.ServerMessage) -> None:
        raise NotImplementedError

    async def begin(self, run_id: str, servers: Locator) -> None:
        """Says hello, asks for the news, and waits for the first; called once. Raises `MovedError`."""
        try:
            await self._begin(
                wire.Hello(
                    wire.VERSION,
                    run_id,
                    token=self._credentials.token,
                    lost=servers.lost_url,
                    without=servers.without,
                )
            )
        except RendezvousError as error:  # for whoever asks for the news
            self._failure = error

    async def _begin(self, hello: wire.Hello) -> None:
        raise NotImplementedError

    async def _write(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, OSError) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> RendezvousConnectionError:
        if isinstance(error, anyio.EndOfStream):
            said = "the server closed it"
        elif isinstance(error, wire.FrameError):
            said = f"it does not speak our protocol: {error}"
        else:
            said = why(error, self._credentials)
        if self._silent:
            said += "; it may be no arendezvous server, try: arendezvous doctor"
        lost = f"the connection to {self._endpoint} is lost: {said}"
        return RendezvousConnectionError(lost, endpoint=self._endpoint, doing="watching")


class RunWatch(ServerNews[News]):
    """The news of one run: first its status, then what happens; and a status whenever `ask_status` asked.

    It takes no part in the run.
    """

    def _take(self, message: wire.ServerMessage) -> None:
        if isinstance(message, wire.Status):
            self._news.append(message.status)
        elif isinstance(message, wire.Happened):
            self._news.append(message)

    async def _begin(self, hello: wire.Hello) -> None:
        await self._write(wire.PREFACE + wire.encode(hello) + wire.encode(wire.WatchRun(1)))
        await self._wait()

    async def ask_status(self) -> None:
        """Asks for a fresh status, which will be among the news. Raises as iterating does.

        Cancellation: whether it was asked for is then unknown.
        """
        await self._write(wire.encode(wire.GetStatus(1)))


class RunsWatch(ServerNews[RunsItem]):
    """The news of all runs: all of them first, then one that has changed, or the id of one that is forgotten.

    A server of version 1 does not tell of them, and is asked for all again and again.
    """

    _version = 0  # of the protocol, as the server speaks it; 0: that is not known yet

    async def __anext__(self) -> RunsItem:
        if not self._news and self._failure is None and self._version < wire.VERSION:
            await anyio.sleep(RUNS_INTERVAL)
            await self._write(wire.encode(wire.GetRuns(1)))
        return await super().__anext__()

    def _take(self, message: wire.ServerMessage) -> None:
        if isinstance(message, wire.Welcome):
            self._version = message.version
        elif isinstance(message, wire.Runs):
            self._news.append(message.runs)
        elif isinstance(message, wire.RunsChanged):
            self._news.extend(message.runs)
            self._news.extend(message.forgotten)

    async def _begin(self, hello: wire.Hello) -> None:
        await self._write(wire.PREFACE + wire.encode(hello))
        while not self._version:
            await self._receive()
        await self._write(
            wire.encode(wire.WatchRuns(1) if self._version >= wire.VERSION else wire.GetRuns(1))
        )
        await self._wait()


async def states_in(news: AsyncIterator[News]) -> AsyncIterator[tuple[str, bytes]]:
    """Picks what nodes say of their states out of the news of a run."""
    async for one in news:
        if isinstance(one, RunStatus):
            for node in one.nodes:
                if node.state:
                    yield node.desc.name, node.state
        else:
            for event in one.events:
                if isinstance(event, NodeUpdated):
                    yield event.node, event.state


@asynccontextmanager
async def watch_server(
    servers: Locator,
    kind: type[W],
    run_id: str = "",
    *,
    timeout: float = 5.0,
    credentials: Credentials = NO_CREDENTIALS,
) -> AsyncIterator[W]:
    """Watches a run, or all runs, while the block runs.

    Args:
        servers: All servers that stand in for each other.
        kind: Of the news.
        run_id: The run, for a `RunWatch`; it need not exist yet.
        timeout: Seconds that connecting may take.
        credentials: The token that is shown to the server, and the TLS settings.

    Raises:
        RendezvousConnectionError: None of the servers could be reached within `timeout`.
    """
    try:
        with anyio.fail_after(timeout):
            stream, news = await _begin(servers, kind, run_id, credentials)
    except RendezvousError:
        raise
    except (OSError, TimeoutError, anyio.BrokenResourceError) as error:
        said = why(error, credentials) or f"no answer within {timeout:g} s"
        raise RendezvousConnectionError(
            f"tcp://{servers} could not be reached: {said}; check that a server listens there, and that the "
            "name and port are right",
            endpoint=f"tcp://{servers}",
            doing="connecting",
        ) from error
    async with stream:
        yield news


async def _begin(
    servers: Locator, kind: type[W], run_id: str, credentials: Credentials
) -> tuple[anyio.abc.ByteStream, W]:
    """Connects to the server that leads, and has it send the news."""
    left = servers.attempts
    while True:
        left -= 1
        place = await servers.locate()
        try:
            stream = await connect(*place, credentials)
        except (OSError, anyio.BrokenResourceError):
            servers.failed(place)
            if left <= 0:
                raise
            continue
        _keep_alive(stream.extra(anyio.abc.SocketAttribute.raw_socket))  # noqa: S610 - not Django's extra()
        news = kind(stream, f"tcp://{join_host_port(*place)}", credentials)
        try:
            await news.begin(run_id, servers)
        except MovedError as moved:
            servers.moved(moved)
            await stream.aclose()
            left = max(left, 1)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        else:
            servers.welcomed()
            return stream, news


def _keep_alive(sock: socket.socket) -> None:
    """Has the kernel find out if the server vanishes without a word, while nothing happens for long."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
