"""Listens at one address of a server, with or without TLS, whatever is spoken there."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from abc import ABC, abstractmethod
from functools import partial
from typing import Final

import anyio

from arendezvous.net.background import Background
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.forks import let_go_in_children
from arendezvous.net.tls import HANDSHAKE, explain
from arendezvous.server.binding import bind, listen, stop_listening
from arendezvous.server.context import ServerContext
from arendezvous.server.tls import ServerTls

logger = logging.getLogger(__name__)

_FIRST_BYTES: Final = 64 * 1024
_TOO_MANY_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ServerListener(ABC):
    """Accepts connections at one address; those with TLS are counted, and bounded, from their handshakes on.

    Its fields:
        _server: Accepts connections without TLS; None: it does not listen so.
        _sockets: Where it listens for TLS.
        _background: Accepts there, and shakes hands; None: it does not listen so.
    """

    def __init__(self, context: ServerContext, name: str) -> None:
        self.context = context
        self._name = name
        self._server: asyncio.Server | None = None
        self._sockets: list[socket.socket] = []
        self._background: Background | None = None

    async def start(self, host: str, port: int, tls: ServerTls | None = None) -> tuple[str, int]:
        """Listens on `host` and `port` (0 picks one) and returns the address; without `tls` in the clear.

        Raises:
            RendezvousConnectionError: The address cannot be bound; its cause tells why.
        """
        if tls is None:
            self._server = await listen(self._connection, host, port)
            bound = self._server.sockets[0].getsockname()
        else:
            self._sockets = await bind(host, port)
            bound = self._sockets[0].getsockname()
            name = f"the TLS listener at {join_host_port(host, port)}"
            # Should it fail, clients are refused that would wait in vain; the log and `_is_serving` tell.
            self._background = Background(name, lambda _: self._close_sockets())
            for sock in self._sockets:
                self._background.start(self._accept, self._background, tls, sock)
        self.context.admission.listeners[self._name] = self._is_serving
        self.context.listeners.ports[self._name] = bound[1]
        return bound[0], bound[1]

    async def stop(self) -> None:
        """Stops accepting, and breaks off all connections; what a peer has not read by then is lost."""
        background, self._background = self._background, None
        try:
            if background is not None:
                await background.close()
            if self._server is not None:
                await stop_listening(self._server)
        finally:
            self._close_sockets()
            await self._end()
        await asyncio.sleep(0)  # lets the transports tell their protocols

    @abstractmethod
    def _connection(self, *, counted: bool = False) -> asyncio.BaseProtocol:
        """Makes the protocol of a connection, which may have been counted already; it takes that back."""

    @abstractmethod
    async def _end(self) -> None:
        """Breaks off all connections."""

    def _is_serving(self) -> bool:
        if self._server is not None:
            return self._server.is_serving()
        return self._background is not None and self._background.error is None

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()

    async def _accept(self, background: Background, tls: ServerTls, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno not in _TOO_MANY_FILES:
                    continue  # the peer has gone before it was accepted
                logger.error("%s: no connection can be accepted for a second", error)  # noqa: TRY400
                await anyio.sleep(1)
                continue
            let_go_in_children(sock)
            peer = join_host_port(address[0], address[1])
            if self._background is background and self.context.admission.enter(peer):
                background.start(self._shake_hands, tls, sock, peer)
            else:
                sock.close()

    def _refuse(self, sock: socket.socket, peer: str, first: int) -> None:
        """Answers who begins no handshake; what has come is read, else the answer would be taken back."""
        why = (
            "in the TLS handshake: it does not speak TLS, and this port expects it: its user has to name the"
            " authority to trust"
        )
        self.context.shared.throttle.dropped(peer, why)
        sock.recv(_FIRST_BYTES)
        sock.send(self.context.listeners.plain_answer(first))
        sock.shutdown(socket.SHUT_WR)

    async def _shake_hands(self, tls: ServerTls, sock: socket.socket, peer: str) -> None:
        """Hands the connection over; whoever does not get that far is told of in the log, and closed."""
        seconds = self.context.limits.handshake_timeout
        done = False
        try:
            with anyio.fail_after(seconds):
                if (first := await _first_byte(sock)) not in (None, HANDSHAKE):
                    self._refuse(sock, peer, first)
                    return
                await asyncio.get_running_loop().connect_accepted_socket(
                    partial(self._connection, counted=True),
                    sock,
                    ssl=tls.context,
                    ssl_handshake_timeout=2 * seconds,
                )
            done = True
        except TimeoutError:
            self.context.shared.throttle.dropped(peer, f"its TLS handshake was not done after {seconds:g} s")
        except OSError as error:
            self.context.shared.throttle.dropped(
                peer, f"in the TLS handshake: {explain(error) or str(error) or 'it broke off'}"
            )
        finally:
            if not done:
                self.context.admission.leave()
                sock.close()


async def _first_byte(sock: socket.socket) -> int | None:
    """Waits for the first byte, and leaves it where it is; returns None if there is none to come."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)
    data = sock.recv(1, socket.MSG_PEEK)
    return data[0] if data else None
