"""Watching a run at our server from outside: its status first, then all that happens to it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self, TypeAlias

import anyio
import anyio.abc

from arendezvous.errors import RendezvousConnectionError
from arendezvous.law.status import RunStatus
from arendezvous.net.connect import connect, why
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.wire.native.messages import (
    MAX_REPLY,
    PREFACE,
    VERSION,
    ClientMessage,
    Failed,
    FrameError,
    FrameParser,
    GetStatus,
    Happened,
    Hello,
    ServerMessage,
    Status,
    Watch,
    decode_server,
    encode,
    error_of,
)

KEEP_ALIVE: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

News: TypeAlias = RunStatus | Happened


class RunWatch(AsyncIterator[News]):
    """The news of one run: first its status, then what happens; and a status whenever `ask_status` asked.

    It takes no part in the run. The iteration ends with an error alone.
    """

    def __init__(self, stream: anyio.abc.ByteStream, endpoint: str, credentials: Credentials) -> None:
        self._stream = stream
        self._endpoint = endpoint
        self._credentials = credentials
        self._parser = FrameParser(MAX_REPLY)
        self._news: deque[News] = deque()
        self._silent = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> News:
        """Waits for news. Cancellation: safe; nothing is lost.

        Raises:
            RendezvousConnectionError: The connection is lost; what happens meanwhile will not be known.
        """
        while not self._news:
            try:
                data = await self._stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, OSError) as error:
                raise self._lost(error) from error
            self._silent = False
            try:
                for frame in self._parser.feed(data):
                    self._take(decode_server(frame))
            except FrameError as error:
                raise self._lost(error) from error
        return self._news.popleft()

    def _take(self, message: ServerMessage) -> None:
        if isinstance(message, Failed):
            raise error_of(message)
        if isinstance(message, Status):
            self._news.append(message.status)
        elif isinstance(message, Happened):
            self._news.append(message)

    async def ask_status(self) -> None:
        """Asks for a fresh status, which will be among the news.

        Raises:
            RendezvousConnectionError: The connection is lost.

        Cancellation: whether it was asked for is then unknown.
        """
        await self._write(encode(GetStatus(1)))

    async def begin(self, run_id: str) -> None:
        """Says hello and asks to watch `run_id`; called once, by `watch_run`."""
        messages: tuple[ClientMessage, ...] = (
            Hello(VERSION, run_id, token=self._credentials.token),
            Watch(1),
        )
        await self._write(PREFACE + b"".join(map(encode, messages)))

    async def _write(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, OSError) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> RendezvousConnectionError:
        if isinstance(error, anyio.EndOfStream):
            said = "the server closed it"
        elif isinstance(error, FrameError):
            said = f"it does not speak our protocol: {error}"
        else:
            said = why(error, self._credentials)
        if self._silent:
            said += "; it may be no arendezvous server, try: arendezvous doctor"
        return RendezvousConnectionError(
            f"the connection to {self._endpoint} is lost: {said}", endpoint=self._endpoint, doing="watching"
        )


@asynccontextmanager
async def watch_run(
    host: str, port: int, run_id: str, *, timeout: float = 5.0, credentials: Credentials = NO_CREDENTIALS
) -> AsyncIterator[RunWatch]:
    """Watches a run while the block runs.

    Args:
        host: Where the server is.
        port: Its port.
        run_id: The run; it need not exist yet.
        timeout: Seconds that connecting may take.
        credentials: The token that is shown to the server, and the TLS settings.

    Raises:
        RendezvousConnectionError: The server could not be reached within `timeout`.
    """
    endpoint = f"tcp://{join_host_port(host, port)}"
    try:
        with anyio.fail_after(timeout):
            stream = await connect(host, port, credentials)
    except (OSError, TimeoutError, anyio.BrokenResourceError) as error:
        said = why(error, credentials) or f"no answer within {timeout:g} s"
        raise RendezvousConnectionError(
            f"{endpoint} could not be reached: {said}; check that a server listens there, and that the name "
            "and port are right",
            endpoint=endpoint,
            doing="connecting",
        ) from error
    async with stream:
        _keep_alive(stream.extra(anyio.abc.SocketAttribute.raw_socket))  # noqa: S610 - not Django's extra()
        watch = RunWatch(stream, endpoint, credentials)
        await watch.begin(run_id)
        yield watch


def _keep_alive(sock: socket.socket) -> None:
    """Has the kernel find out if the server vanishes without a word, while nothing happens for long."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
