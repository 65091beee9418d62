"""Counting what goes out at the HTTP door: a transport that looks at what is written to the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, TypeAlias

from arendezvous.server.counts import DoorCounts

_Data: TypeAlias = bytes | bytearray | memoryview


class CountedTransport:
    """A transport for aiohttp that counts the bytes written to it; all else is the real one's to do.

    aiohttp tells how long an answer was when the answer is over. A stream of events is over after hours.

    Args:
        transport: The real one.
        traffic: Where they are counted.
    """

    __slots__ = ("_traffic", "_transport")

    def __init__(self, transport: asyncio.Transport, traffic: DoorCounts) -> None:
        self._transport = transport
        self._traffic = traffic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the real one knows; not by `__getattr__`, as it is asked several times for each request."""
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether the real one is; asked at each write."""
        return self._transport.is_closing()

    def resume_reading(self) -> None:
        """Has the real one read again; called twice for each request."""
        self._transport.resume_reading()

    def write(self, data: _Data) -> None:
        """Writes `data`."""
        self._traffic.sent += len(data)
        self._transport.write(data)

    def writelines(self, list_of_data: Iterable[_Data]) -> None:
        """Writes all of it, in order."""
        self.write(b"".join(list_of_data))
