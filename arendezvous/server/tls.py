"""TLS at the listeners: settings that follow their files, and handshakes that are counted and bounded."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

import anyio

from arendezvous.net.background import Background
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.forks import let_go_in_children
from arendezvous.net.tls import HANDSHAKE, TLS_NAMES, FreshContext, TlsFiles, TlsNames, explain
from arendezvous.net.typed import typed
from arendezvous.server.binding import bind
from arendezvous.server.context import ServerContext

logger = logging.getLogger(__name__)

_FIRST_BYTES: Final = 64 * 1024
_TOO_MANY_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ServerTls:
    """The TLS settings of a server, the same at all of its listeners. Versions before TLS 1.2 are refused.

    Files that are replaced are used from the next handshake on; an authority that was taken away is not
    trusted any more then. Files that are of no use leave the settings as they are.

    Args:
        cert: A file with the server's certificate, and those between it and the authority, in PEM.
        key: A file with the key of `cert`, not encrypted; empty: it is in the same file.
        ca: A file with the certificates of the authorities, one of which must have signed the certificate
            that every client then has to show (mutual TLS); empty: clients need none.
        names: What the user calls these files, for errors.

    Attributes:
        files: The files.
        context: For asyncio and aiohttp, which keep it; each handshake gets the settings of its moment.

    Raises:
        RendezvousSettingsError: A file cannot be read, or holds something else.
    """

    @typed
    def __init__(self, cert: str, key: str = "", ca: str = "", *, names: TlsNames = TLS_NAMES) -> None:
        self.files = TlsFiles(ca, cert, key, names)
        self._fresh = FreshContext(self.files, TlsFiles.server_context)
        self.context = self._fresh.get()
        self.context.sni_callback = self._on_hello

    def __repr__(self) -> str:
        return f"ServerTls(cert={self.files.cert!r}, key={self.files.key!r}, ca={self.files.ca!r})"

    @property
    def is_mutual(self) -> bool:
        """Whether clients have to show a certificate."""
        return bool(self.files.ca)

    def reload(self) -> bool:
        """Reads the files again; returns whether that went well. If not, the settings stay as they were."""
        return self._fresh.reload()

    def _on_hello(self, connection: ssl.SSLObject, *_: object) -> None:
        """Gives a handshake the settings of this moment: OpenSSL calls it at the start of each."""
        connection.context = self._fresh.get()


class TlsListener:
    """Accepts connections, and hands each to its protocol once its handshake is done.

    Attributes:
        sockets: Where it listens.
        _factory: Makes the protocol of a connection that has been counted, and that it has to take back.
    """

    def __init__(
        self, tls: ServerTls, context: ServerContext, factory: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self.sockets: list[socket.socket] = []
        self._settings = tls
        self._context = context
        self._throttle = context.shared.throttle
        self._factory = factory
        self._background: Background | None = None

    async def open(self, host: str, port: int) -> None:
        """Listens. Cancellation: safe; nothing is left open.

        Raises:
            RendezvousConnectionError: The address cannot be bound; its cause tells why.
        """
        self.sockets = await bind(host, port)
        name = f"the TLS listener at {join_host_port(host, port)}"
        # Should it fail, clients are refused that would wait in vain; the log tells why, and `is_serving`.
        self._background = Background(name, lambda _: self._stop_listening())
        for sock in self.sockets:
            self._background.start(self._accept, self._background, sock)

    def is_serving(self) -> bool:
        """Whether it accepts connections."""
        return self._background is not None and self._background.error is None

    async def close(self) -> None:
        """Stops accepting, and breaks off all handshakes."""
        background, self._background = self._background, None
        try:
            if background is not None:
                await background.close()
        finally:
            self._stop_listening()

    def _stop_listening(self) -> None:
        for sock in self.sockets:
            sock.close()

    async def _accept(self, background: Background, listening: socket.socket) -> None:
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
            if self._background is background and self._context.admission.enter(peer):
                background.start(self._shake_hands, sock, peer)
            else:
                sock.close()

    def _refuse(self, sock: socket.socket, peer: str, first: int) -> None:
        """Answers who begins no handshake; what has come is read, else the answer would be taken back."""
        why = (
            "in the TLS handshake: it does not speak TLS, and this port expects it: its user has to name the"
            " authority to trust"
        )
        self._throttle.dropped(peer, why)
        sock.recv(_FIRST_BYTES)
        sock.send(self._context.listeners.plain_answer(first))
        sock.shutdown(socket.SHUT_WR)

    async def _shake_hands(self, sock: socket.socket, peer: str) -> None:
        """Hands the connection over; whoever does not get that far is told of in the log, and closed."""
        seconds = self._context.limits.handshake_timeout
        done = False
        try:
            with anyio.fail_after(seconds):
                if (first := await _first_byte(sock)) not in (None, HANDSHAKE):
                    self._refuse(sock, peer, first)
                    return
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._factory, sock, ssl=self._settings.context, ssl_handshake_timeout=2 * seconds
                )
            done = True
        except TimeoutError:
            self._throttle.dropped(peer, f"its TLS handshake was not done after {seconds:g} s")
        except OSError as error:
            self._throttle.dropped(
                peer, f"in the TLS handshake: {explain(error) or str(error) or 'it broke off'}"
            )
        finally:
            if not done:
                self._context.admission.leave()
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
