"""Who hosts the server of an endpoint: the node that the endpoint names, unless somebody does already.

Whether it is this node is settled by binding: an address that cannot be bound here belongs to another
machine, and one that is in use is served already. So of two processes that start at once, the one that binds
serves, and the other connects to it. A name that has several addresses is served if any of them is.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

import anyio

from arendezvous.errors import RendezvousConnectionError, RendezvousSettingsError
from arendezvous.net.addresses import is_loopback
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.server.access.authority import Authority
from arendezvous.server.serve import Server, serve
from arendezvous.server.tls import ServerTls

logger = logging.getLogger(__name__)

RESOLVE_TIMEOUT: Final = 5.0
ASK_TIMEOUT: Final = 1.0


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
    if is_host is False or not _may_serve(credentials, is_host):
        return None
    addresses = await _resolve(host, port, timeout)
    if len(addresses) > 1 and port and await _is_served(addresses, port, timeout):
        return None
    for address in addresses:
        try:
            server = await _serve(address, port, resources, credentials, follows=follows)
        except RendezvousConnectionError as error:
            number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            if number == errno.EADDRINUSE:
                return None
            if number not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
        else:
            _warn_of_loopback(host, address)
            return server
    if not is_host:
        return None
    try:
        everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - asked for
        return await _serve(everywhere, port, resources, credentials, follows=follows)
    except RendezvousConnectionError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
            return None
        raise


async def _is_served(addresses: Sequence[str], port: int, timeout: float) -> bool:
    """Whether any of these accepts connections; waits for none of them for long."""
    served = False

    async def ask(address: str) -> None:
        nonlocal served
        with suppress(OSError):
            async with await anyio.connect_tcp(address, port):
                served = True
                tasks.cancel_scope.cancel()

    with anyio.move_on_after(min(ASK_TIMEOUT, timeout)):
        async with anyio.create_task_group() as tasks:
            for address in addresses:
                tasks.start_soon(ask, address)
    return served


def _warn_of_loopback(host: str, address: str) -> None:
    """Warns if a name that others may know stands for loopback here, as Debian's /etc/hosts has it."""
    if is_loopback(address) and not is_loopback(host):
        logger.warning(
            "%s is %s on this machine, which no other machine can reach, and so it is served there: have the"
            " endpoint name an address that all nodes reach, or take %s out of /etc/hosts",
            host, address, address,
        )  # fmt: skip


def _may_serve(credentials: Credentials, is_host: bool | None) -> bool:
    if credentials.can_serve_tls:
        return True
    if is_host:
        expected = "a file with a certificate, as this node is to serve TLS (is_host is true)"
        raise RendezvousSettingsError.of("tls_cert", credentials.cert, expected)
    return False


async def _serve(
    address: str, port: int, resources: AsyncExitStack, credentials: Credentials, *, follows: bool
) -> Server:
    where = join_host_port(address, port)
    authority = Authority.of(credentials.token) if credentials.token else None
    files = (credentials.cert, credentials.key, credentials.ca)
    tls = ServerTls(*files, names=credentials.names) if credentials.cert else None
    server = await resources.enter_async_context(
        serve(where, insecure=True, embedded=True, follows=follows, authority=authority, tls=tls)
    )
    logger.info("serving %s in this process", server.tcp_url)
    return server


async def _resolve(host: str, port: int, timeout: float) -> list[str]:
    """The addresses that `host` stands for; none if that cannot be found out in time."""
    with suppress(ValueError):
        return [str(ipaddress.ip_address(host))]  # no thread is needed to find that out
    found: list[str] = []
    try:
        with anyio.move_on_after(min(RESOLVE_TIMEOUT, timeout)):
            infos = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(info[4][0] for info in infos))
    except OSError as error:
        logger.info("%s: the name cannot be resolved: %s", host, error)
    return found
