"""The directory that an endpoint's address is: who binds it leads.

An address that cannot be bound here belongs to another machine, and one that is in use is served already. So
of two processes that start at once, the one that binds leads, and the other connects to it. A name that has
several addresses is served if any of them is.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import anyio

from arendezvous.directory.port import Directory, Leader, Listen, Office
from arendezvous.errors import RendezvousConnectionError
from arendezvous.net.addresses import is_loopback
from arendezvous.net.endpoint import join_host_port

logger = logging.getLogger(__name__)

RESOLVE_TIMEOUT: Final = 5.0
ASK_TIMEOUT: Final = 1.0
_ELSEWHERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class AddressDirectory(Directory):
    """Says that whoever listens at an address leads; with port 0 this process, on a free one.

    Args:
        host: Where the leader is, or will be.
        port: Its port.
        timeout: Seconds that finding out the address may take, if that is less than 5.
        everywhere: Whether to lead even at an address that is not of this machine (a service address, say),
            on all interfaces.
    """

    def __init__(
        self, host: str, port: int, *, timeout: float = RESOLVE_TIMEOUT, everywhere: bool = False
    ) -> None:
        self._host = host
        self._port = port
        self._timeout = min(RESOLVE_TIMEOUT, timeout)
        self._everywhere = everywhere

    @property
    def name(self) -> str:
        """The address as a URL."""
        return f"tcp://{join_host_port(self._host, self._port)}"

    async def leader(self) -> Leader | None:
        """Returns the address itself: who listens there is seen by connecting."""
        return Leader(self.name)

    async def changed(self, known: Leader | None) -> Leader | None:
        """See `Directory.changed`; the address stays the same."""
        present = await self.leader()
        if present == known:
            await anyio.sleep_forever()
        return present

    async def campaign(self, listen: Listen) -> Office | None:
        """See `Directory.campaign`.

        Raises:
            RendezvousConnectionError: The address is this machine's, but cannot be bound.
        """
        hosts = await self._resolve()
        if len(hosts) > 1 and self._port and await self._is_served(hosts):
            return None
        if self._everywhere:
            hosts.append("::" if socket.has_dualstack_ipv6() else "0.0.0.0")  # noqa: S104 - asked for
        for host in hosts:
            try:
                office = _Bound(await listen(host, self._port))
            except RendezvousConnectionError as error:
                number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
                if number == errno.EADDRINUSE:
                    return None
                if number not in _ELSEWHERE:
                    raise
            else:
                _warn_of_loopback(self._host, host)
                return office
        return None

    async def _resolve(self) -> list[str]:
        """The addresses that the host stands for; none if that cannot be found out in time."""
        with suppress(ValueError):
            return [str(ipaddress.ip_address(self._host))]  # no thread is needed to find that out
        found: list[str] = []
        try:
            with anyio.move_on_after(self._timeout):
                infos = await anyio.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                found = list(dict.fromkeys(info[4][0] for info in infos))
        except OSError as error:
            logger.info("%s: the name cannot be resolved: %s", self._host, error)
        return found

    async def _is_served(self, addresses: Sequence[str]) -> bool:
        """Tells whether any of these accepts connections; waits for none of them for long."""
        served = False

        async def ask(address: str) -> None:
            nonlocal served
            with suppress(OSError):
                async with await anyio.connect_tcp(address, self._port):
                    served = True
                    tasks.cancel_scope.cancel()

        with anyio.move_on_after(min(ASK_TIMEOUT, self._timeout)):
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


class _Bound(Office):
    """The office of who has bound an address, held until that is closed."""

    @property
    def is_held(self) -> bool:
        """The kernel lets nobody else bind it."""
        return True

    async def lost(self) -> None:
        """Waits for ever."""
        await anyio.sleep_forever()

    async def resign(self) -> None:
        """Does nothing: what listens is to be closed."""
