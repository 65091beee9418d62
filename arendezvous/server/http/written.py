"""Answers written by hand, each in one write: those that a rendezvous is made of, and heartbeats.

aiohttp's own responses can do far more, and take several times as long. What is sent is the same.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from aiohttp import HttpVersion11, web

from arendezvous.server.http.context import CONTEXT, SOFTWARE
from arendezvous.wire.http.names import SERVER_HEADER

_LINE_BREAKS: Final = frozenset("\r\n")


def head_of(request: web.Request, status: int, fields: Mapping[str, str], *, keep_alive: bool) -> bytes:
    """The head of an answer: the status line, `fields`, and what the head of every answer says.

    Args:
        request: What is answered.
        status: The status of the answer.
        fields: Its own header fields.
        keep_alive: Whether the connection may be used again after it.

    Raises:
        ValueError: There is a line break in a field.
    """
    if not _LINE_BREAKS.isdisjoint("".join(fields.values())):
        raise ValueError("a header field of an answer has a line break in it")
    version = request.version
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    common = _common(request.app[CONTEXT].server_id, version >= HttpVersion11, keep_alive, int(time.time()))
    return f"HTTP/{version[0]}.{version[1]} {_reason(status)}\r\n{lines}{common}\r\n".encode()


@functools.cache
def _reason(status: int) -> str:
    return f"{status} {HTTPStatus(status).phrase}"


@functools.lru_cache(maxsize=16)
def _common(server_id: str, is_latest: bool, keep_alive: bool, now: int) -> str:
    """What all answers say that are given in this second; `is_latest` says that it is HTTP/1.1."""
    usual = is_latest is keep_alive
    connection = "" if usual else f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n"
    date = formatdate(now, usegmt=True)
    return f"Date: {date}\r\nServer: {SOFTWARE}\r\n{SERVER_HEADER}: {server_id}\r\n{connection}"


class Written(web.StreamResponse):
    """An answer that goes out as it is.

    Args:
        status: The status of the answer.
        data: What is to be written.
        keep_alive: Whether the connection may be used again then.
    """

    def __init__(self, status: int, data: bytes, *, keep_alive: bool) -> None:
        super().__init__(status=status)
        self._data = data
        self._reusable = keep_alive

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may be used again."""
        return self._reusable

    async def prepare(self, request: web.BaseRequest) -> None:
        """Writes it; waits while the client does not read.

        Raises:
            ConnectionError: The client is gone.
        """
        await write(request, self._data)

    async def write_eof(self, data: bytes = b"") -> None:
        """Does nothing: all has been written."""


async def write(request: web.BaseRequest, data: bytes) -> None:
    """Writes a part of an answer; waits while the client does not read.

    Raises:
        ConnectionError: The client is gone.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    if data:
        transport.write(data)
        await request.writer.drain()
