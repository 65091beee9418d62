"""Ports of loopback for servers that a test starts: nobody else gets them, not even for a client."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_HOSTS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


@contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Holds so many ports of loopback while the block runs; nobody listens there until a test does.

    The port of a socket that is bound and does not listen is given to no other process that asks for any free
    one, and to no connection; whoever wants just this port and sets ``SO_REUSEADDR``, as servers do, gets it.
    """
    with ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            with ExitStack() as held:
                port = _hold(held)
                if port is not None:
                    ports.append(port)
                    stack.enter_context(held.pop_all())
        yield ports


def _hold(held: ExitStack) -> int | None:
    """Binds any port, of IPv4 and of IPv6 if there is that; None if it is free in one of them only."""
    port = 0
    for family, host in _HOSTS:
        try:
            sock = held.enter_context(socket.socket(family))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            if family is socket.AF_INET6 and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue  # there is no IPv6 here
            raise
        port = port or sock.getsockname()[1]
    return port
