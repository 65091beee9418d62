"""Forks: the child lets go of our sockets at once, and uses nothing that was opened before.

A socket that a child holds, too, stays open when the parent dies: its peers would learn of that only by
silence, and its port would stay taken for as long as the child lives.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeGuard
from weakref import WeakSet

Held: TypeAlias = asyncio.BaseTransport | asyncio.AbstractServer | socket.socket

_held: Final[WeakSet[Held]] = WeakSet()
_pinned: Final[set[asyncio.BaseTransport]] = set()  # those that take no weak references
FEW: Final = 64  # of these that may be closed already
_unlooked = FEW


def let_go_in_children(held: Held) -> None:
    """Has every child that is forked from now on let go of the sockets of `held`, for as long as it lives."""
    if not _is_transport(held):
        _held.add(held)
    elif held.get_extra_info("socket") is not None:
        try:
            _held.add(held)
        except TypeError:  # uvloop's transports of TLS are such
            _pin(held)


def socket_for(address: tuple[Any, ...]) -> socket.socket:
    """Makes a socket that children let go of, for an address as `socket.getaddrinfo` returns it."""
    made = socket.socket(*address[:3])
    let_go_in_children(made)
    return made


def _is_transport(held: Held) -> TypeGuard[asyncio.BaseTransport]:
    """Tells whether it is a transport; uvloop's of TLS are none of asyncio's classes."""
    return hasattr(held, "get_extra_info")


def _pin(held: asyncio.BaseTransport) -> None:
    """Holds a transport until it is closed; looks for closed ones each time that as many again have come."""
    global _unlooked  # noqa: PLW0603 - counts with the set
    _pinned.add(held)
    _unlooked -= 1
    if _unlooked < 0:
        _pinned.difference_update([one for one in _pinned if one.is_closing()])
        _unlooked = FEW + len(_pinned)


class Origin:
    """The process in which something was opened, which alone may use it.

    Args:
        what: What it is, for the error.
    """

    __slots__ = ("_pid", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is another process."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raises `RuntimeError` if this is another process."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"{self._what} belongs to process {self._pid}, which forked this one;"
                " open one of its own here"
            )


def _let_go() -> None:
    """In a child: puts a socket without a peer in place of each.

    Their owners, who know them by number, would close another file of that number if they were closed.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as nobody:
        for held in [*_held, *_pinned]:
            for number in _numbers(held):
                with suppress(OSError):
                    os.dup2(nobody.fileno(), number, inheritable=False)
    _held.clear()
    _pinned.clear()


def _numbers(held: Held) -> list[int]:
    if _is_transport(held):
        sock = held.get_extra_info("socket")
        numbers = [] if sock is None or held.is_closing() else [sock.fileno()]
    elif isinstance(held, socket.socket):
        numbers = [held.fileno()]
    else:
        numbers = [sock.fileno() for sock in getattr(held, "sockets", ())]
    return [number for number in numbers if number >= 0]


os.register_at_fork(after_in_child=_let_go)
