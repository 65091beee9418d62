"""TLS at the TCP door: settings that follow their files, and handshakes that are counted and bounded."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

import anyio
import anyio.abc

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.tls import explain, file_stamp, load_authorities, load_identity, server_context
from arendezvous.server.access.admission import Admission
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.access.throttle import FailureThrottle
from arendezvous.server.binding import bind

logger = logging.getLogger(__name__)

_TOO_MANY_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
LOOK_INTERVAL: Final = 1.0  # seconds between two looks at whether the files have changed


class ServerTls:
    """The TLS settings of a server, the same at all of its doors. Versions before TLS 1.2 are refused.

    A certificate that is replaced is used from the next handshake on, and so are further authorities. One
    that is taken away from the file of the authorities is trusted until the server is started again.

    Args:
        cert: A file with the server's certificate, and those between it and the authority, in PEM.
        key: A file with the key of `cert`, not encrypted; empty: it is in the same file.
        ca: A file with the certificates of the authorities, one of which must have signed the certificate
            that every client then has to show (mutual TLS); empty: clients need none.

    Attributes:
        context: For asyncio and aiohttp.

    Raises:
        RendezvousSettingsError: A file cannot be read, or holds something else.
    """

    def __init__(self, cert: str, key: str = "", ca: str = "") -> None:
        self.cert = cert
        self.key = key
        self.ca = ca
        self.context = server_context(cert, key, ca)
        self.context.sni_callback = self._on_hello
        self._seen = self._stamps()
        self._looked = time.monotonic()

    def __repr__(self) -> str:
        return f"ServerTls(cert={self.cert!r}, key={self.key!r}, ca={self.ca!r})"

    @property
    def is_mutual(self) -> bool:
        """Whether clients have to show a certificate."""
        return bool(self.ca)

    def reload(self) -> bool:
        """Reads the files again; returns whether that went well. If not, the settings stay as they were."""
        seen = self._stamps()
        try:
            server_context(self.cert, self.key, self.ca)  # a trial, as a half loaded one would be of no use
            load_identity(self.context, self.cert, self.key)
            if self.ca:
                load_authorities(self.context, self.ca)
        except RendezvousSettingsError as error:
            logger.error("the TLS settings stay as they are: %s", error)  # noqa: TRY400 - it says it all
            return False
        self._seen = seen
        logger.info("the certificate in %s was read again", self.cert)
        return True

    def _on_hello(self, *_: object) -> None:
        """Brings the settings up to date, for the next handshake: OpenSSL calls this at the start of each."""
        now = time.monotonic()
        if now >= self._looked + LOOK_INTERVAL:
            self._looked = now
            if self._stamps() != self._seen:
                self.reload()

    def _stamps(self) -> list[tuple[int, ...]]:
        return [file_stamp(file) for file in (self.cert, self.key, self.ca) if file]


class TlsDoor:
    """Accepts connections, and hands each to its protocol once its handshake is done.

    Args:
        tls: The settings.
        admission: Counts connections, those in a handshake too.
        limits: What the server takes on.
        factory: Makes the protocol of a connection that has been counted, and that it has to take back.
        throttle: What is logged of whom; None: as much as for a server that has no other listener.

    Attributes:
        sockets: Where it listens.
    """

    def __init__(
        self,
        tls: ServerTls,
        admission: Admission,
        limits: ServerLimits,
        factory: Callable[[], asyncio.BaseProtocol],
        throttle: FailureThrottle | None = None,
    ) -> None:
        self._throttle = throttle or FailureThrottle()
        self.sockets: list[socket.socket] = []
        self._settings = tls
        self._admission = admission
        self._limits = limits
        self._factory = factory
        self._tasks: anyio.abc.TaskGroup | None = None

    async def open(self, host: str, port: int) -> None:
        """Listens; to be called in the task that will call `close`.

        Raises:
            RendezvousConnectionError: The address cannot be bound; its cause tells why.
        """
        self.sockets = await bind(host, port)
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        self._tasks = tasks
        for sock in self.sockets:
            tasks.start_soon(self._accept, sock)

    def is_serving(self) -> bool:
        """Whether it accepts connections."""
        return self._tasks is not None

    async def close(self) -> None:
        """Stops accepting, and breaks off all handshakes."""
        tasks, self._tasks = self._tasks, None
        try:
            if tasks is not None:
                tasks.cancel_scope.cancel()
                await tasks.__aexit__(None, None, None)
        finally:
            for sock in self.sockets:
                sock.close()

    async def _accept(self, listening: socket.socket) -> None:
        assert self._tasks is not None  # noqa: S101 - started in it
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno not in _TOO_MANY_FILES:
                    continue  # the peer has gone before it was accepted
                logger.error("%s: no connection can be accepted for a second", error)  # noqa: TRY400
                await anyio.sleep(1)
                continue
            peer = _name(sock)
            if self._admission.enter(peer):
                self._tasks.start_soon(self._shake_hands, sock, peer)
            else:
                sock.close()

    async def _shake_hands(self, sock: socket.socket, peer: str) -> None:
        """Hands the connection over; whoever does not get that far is told of in the log, and closed."""
        seconds = self._limits.handshake_timeout
        done = False
        try:
            with anyio.fail_after(seconds):
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._factory, sock, ssl=self._settings.context, ssl_handshake_timeout=2 * seconds
                )
            done = True
        except TimeoutError:
            self._throttle.dropped(peer, f"its TLS handshake was not done after {seconds:g} s")
        except OSError as error:
            self._throttle.dropped(peer, f"in the TLS handshake: {_words(error)}")
        finally:
            if not done:
                self._admission.leave()
                sock.close()


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS, and this port expects it; give the client tls_ca"
    return explain(error) or str(error) or "it broke off"


def _name(sock: socket.socket) -> str:
    try:
        peer = sock.getpeername()
    except OSError:
        return "a peer"
    return join_host_port(peer[0], peer[1])
