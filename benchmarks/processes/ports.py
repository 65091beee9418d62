"""Holds ports of loopback for servers that cannot pick one and tell; needs only the standard library."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

HOST: Final = "127.0.0.1"
START_LIMIT: Final = 20.0  # seconds
PAUSE: Final = 0.005  # seconds between two looks


@contextmanager
def held_port() -> Iterator[int]:
    """Holds a port of loopback while the block runs, for a server that sets ``SO_REUSEADDR``, as they do.

    While a socket is bound to it and does not listen, no other process that asks for any free port gets it,
    and no connection does.

    Yields:
        The port.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, 0))
        address: Any = sock.getsockname()
        yield address[1]


def until_listening(port: int) -> None:
    """Waits until somebody accepts connections on a port of loopback.

    Raises:
        TimeoutError: Nobody does within 20 seconds.
    """
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        with socket.socket() as sock:
            if sock.connect_ex((HOST, port)) == 0:
                return
        time.sleep(PAUSE)
    raise TimeoutError(f"nobody listens on {HOST}:{port} after {START_LIMIT:g} s")
