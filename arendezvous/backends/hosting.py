"""Decides who hosts the server of an endpoint: the node that it names, unless somebody does already.

It serves in a thread of its own, so that a node that blocks its event loop keeps no other node waiting.
Whether it is this node is settled by binding, see `arendezvous.directory.address`.
"""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from arendezvous.coordinator.journal import Journal
from arendezvous.directory.address import AddressDirectory
from arendezvous.directory.port import Leader
from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.own_thread import may_use_threads
from arendezvous.server.access.authority import Authority
from arendezvous.server.serve import Server, serve
from arendezvous.server.tls import ServerTls

logger = logging.getLogger(__name__)


async def host_server(
    host: str,
    port: int,
    resources: AsyncExitStack,
    *,
    is_host: bool | None,
    timeout: float,
    credentials: Credentials = NO_CREDENTIALS,
    follows: bool = False,
) -> Server | None:
    """Serves ``host:port`` in this process if nobody does and it is this node's to serve.

    Args:
        host: Where the server is, or will be.
        port: Its port.
        resources: Ends the server when it is closed.
        is_host: False never serves; True serves even at an address that is not of this machine (a service
            address, say), on all interfaces; None serves if the address is one of this machine.
        timeout: Seconds that finding out the address may take, if that is less than 5.
        credentials: The server asks for their token, and speaks TLS with their certificate, if there are any;
            whoever has TLS settings without a certificate does not serve.
        follows: This process knows that there was a server before.

    Returns:
        The server; None if it is somebody else's to serve.

    Raises:
        RendezvousConnectionError: The address is this machine's, but cannot be bound.
        RendezvousSettingsError: `is_host` is True, and there is no certificate to serve TLS with.
    """
    if is_host is False or not may_serve(credentials, is_host):
        return None
    hosted: list[Server] = []

    async def listen(address: str, port: int) -> Leader:
        serving = embedded_server(address, port, credentials, follows=follows, thread=may_use_threads())
        hosted.append(await resources.enter_async_context(serving))
        logger.info("serving %s in this process", hosted[0].tcp_url)
        return Leader(hosted[0].tcp_url)

    async with AddressDirectory(host, port, timeout=timeout, everywhere=bool(is_host)) as directory:
        await directory.campaign(listen)
    return hosted[0] if hosted else None


def may_serve(credentials: Credentials, is_host: bool | None) -> bool:
    """Tells whether one can serve by these credentials, which takes a certificate for TLS.

    Raises `RendezvousSettingsError` if not, and `is_host` says that it is to.
    """
    if credentials.can_serve_tls:
        return True
    if is_host:
        expected = "a file with a certificate, as this node is to serve TLS (is_host is true)"
        raise RendezvousSettingsError.of("tls_cert", credentials.cert, expected)
    return False


def embedded_server(
    address: str,
    port: int,
    credentials: Credentials,
    *,
    follows: bool,
    thread: bool,
    journal: Journal | None = None,
) -> AbstractAsyncContextManager[Server]:
    """Makes the server of a node, not entered yet: it asks for what the node itself shows; see `serve`."""
    files = (credentials.cert, credentials.key, credentials.ca)
    return serve(
        join_host_port(address, port),
        insecure=True,
        embedded=True,
        follows=follows,
        authority=Authority.of(credentials.token) if credentials.token else None,
        tls=ServerTls(*files, names=credentials.names) if credentials.cert else None,
        thread=thread,
        journal=journal,
    )
