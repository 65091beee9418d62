"""Binding an address, the same way for every listener."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from arendezvous.errors import RendezvousConnectionError
from arendezvous.net.background import finish
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.forks import let_go_in_children

BACKLOG: Final = 4096  # connections that wait to be accepted
_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_CLOSED_HERE: Final = ("04", "05", "06", "0B")  # FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSING


async def listen(factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> asyncio.Server:
    """Listens on `host` and `port` (0 picks one); on ``::`` for IPv4 as well. Cancellation: safe.

    Raises `RendezvousConnectionError` if the address cannot be bound; its cause tells why.
    """
    try:
        return await accepting(factory, host, port)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error


async def accepting(factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> asyncio.Server:
    """Listens as `listen` does; raises `OSError` as it is."""
    options: dict[str, Any] = {"host": host, "port": port}
    if host == "::":  # asyncio would keep IPv4 out of it
        sock = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
        options = {"sock": sock}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, backlog=BACKLOG, start_serving=False, **options)
    let_go_in_children(server)
    try:
        await server.start_serving()
    except BaseException:  # were it cancelled in `create_server`, nobody could close it
        await finish(stop_listening, server)
        raise
    return server


async def stop_listening(server: asyncio.Server) -> None:
    """Closes a listener; whatever connection it has accepted has reached its protocol when this returns.

    asyncio takes two turns for that, and forgets to close a connection whose listener was closed in between.
    """
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())
    await asyncio.sleep(0)
    server.close()
    await asyncio.sleep(0)


def peer_name(transport: asyncio.BaseTransport) -> str:
    """The other end's address as text; never asks DNS."""
    peer = transport.get_extra_info("peername")
    return join_host_port(peer[0], peer[1]) if isinstance(peer, tuple) and len(peer) >= 2 else "a peer"


def set_no_delay(transport: asyncio.BaseTransport) -> None:
    """Has small messages sent at once, and peers looked after that are silent for hours."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a peer may vanish without a word


def was_served(port: int) -> bool:
    """Tells whether connections to `port` of this machine were closed from this side within the last minute.

    If so a server ended there whose clients did not expect it, and may come back. The kernel knows nothing of
    one that ended on another machine, or in another network namespace.
    """
    ending = f":{port:04X}"
    return any(local.endswith(ending) and state in _CLOSED_HERE for local, state in _connections())


def _connections() -> Iterator[tuple[str, str]]:
    """The connections of this machine as the kernel lists them: the address here, and the state."""
    for table in _TABLES:
        try:
            with table.open() as lines:
                next(lines, None)  # the heading
                for line in lines:
                    _, local, _, state = line.split(maxsplit=4)[:4]
                    yield local, state
        except OSError:
            continue  # it is not Linux, or there is no IPv6


async def bind(host: str, port: int) -> list[socket.socket]:
    """Binds `host` and `port` (0 picks one), and has connections wait there to be accepted by the caller.

    Returns one socket for each address that `host` stands for. Raises as `listen` does.
    """
    bound: list[socket.socket] = []
    try:
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((info[0], info[4]) for info in infos):
            sock = socket.create_server(
                (str(address[0]), port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::"
            )
            sock.setblocking(False)
            let_go_in_children(sock)
            bound.append(sock)
            port = sock.getsockname()[1]
    except OSError as error:
        for sock in bound:
            sock.close()
        raise _cannot_listen(host, port, error) from error
    return bound


def _cannot_listen(host: str, port: int, error: OSError) -> RendezvousConnectionError:
    why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    where = join_host_port(host, port)
    message = f"cannot listen on {where}: {why}; choose another address or port 0"
    return RendezvousConnectionError(message, endpoint=where, doing="listening")
