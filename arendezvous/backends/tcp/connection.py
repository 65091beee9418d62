"""The client's side of a native session's connection: requests by id, and views that are pushed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from arendezvous.net.forks import let_go_in_children
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.net.tls import ALERT, TlsNames, explain
from arendezvous.wire.http.names import HTTP, SPEAKS_HTTP
from arendezvous.wire.native.messages import MAX_REPLY, FrameError, FrameParser, ServerMessage, decode_server

_HINTS: Final = {
    False: "; if that is a plain TCPStore, use c10d://, and if it expects TLS, give {names.ca}",
    True: "; it may ask for a certificate of this end: give {names.cert} and {names.key}",
}


class ClientConnection(SharedBufferProtocol):
    """One connection to our server, from being made to being lost.

    Args:
        receive: Called with every message.
        lost: Called once, when the connection is lost, with the reason in words.
        send_timeout: Seconds that the kernel may try to deliver a byte before it gives up.
        names: What the user calls the options of TLS, for advice.

    Attributes:
        lost: Why the connection was lost; empty as long as it is there.
        is_misdirected: Whether the other side has shown that it speaks another protocol.
    """

    def __init__(
        self,
        receive: Callable[[ServerMessage], None],
        lost: Callable[[ClientConnection, str], None],
        send_timeout: float,
        names: TlsNames,
    ) -> None:
        self._receive = receive
        self._lost = lost
        self._send_timeout = send_timeout
        self._names = names
        self._parser = FrameParser(MAX_REPLY)
        self._transport: asyncio.Transport | None = None
        self._failure = ""
        self._silent = True
        self._is_secure = False
        self.lost = ""
        self.is_misdirected = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sets the socket up for a peer that vanishes without a word; TCP_NODELAY is the loop's default."""
        self._transport = cast(asyncio.Transport, transport)
        let_go_in_children(transport)
        self._is_secure = transport.get_extra_info("sslcontext") is not None
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = min(int(self._send_timeout * 1000), 2**31 - 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def data_received(self, data: bytes) -> None:
        """Hands on every message that is complete."""
        if self._silent and (data[0] == ALERT or data.startswith(HTTP)):
            self.is_misdirected = True
            what = f"answers with TLS: give {self._names.ca}"
            self.abort(f"it {SPEAKS_HTTP if data.startswith(HTTP) else what}")
            return
        self._silent = False
        try:
            for frame in self._parser.feed(data):
                self._receive(decode_server(frame))
        except FrameError as error:
            self.abort(f"it does not speak our protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Says why."""
        self._transport = None
        words = explain(exc, self._names) if exc is not None else ""
        reason = words or (str(exc) if exc is not None else "the server closed the connection")
        if self._silent and not words:
            reason += _HINTS[self._is_secure].format(names=self._names)
        self.lost = self._failure or reason
        self._lost(self, self.lost)

    def write(self, data: bytes) -> None:
        """Sends `data`, unless the connection is lost."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self, reason: str) -> None:
        """Gives the connection up, for `reason`."""
        self._failure = reason
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Closes the connection once all is sent."""
        if self._transport is not None:
            self._transport.close()

    def local_address(self) -> str:
        """This end's address; empty if there is none any more."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if isinstance(name, tuple) else ""
