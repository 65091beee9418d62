"""The client's side of HTTP/1.1 (RFC 9112): requests as bytes, and a parser of responses; sans-I/O."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from arendezvous.wire.native.messages import FrameError

MAX_HEAD: Final = 64 * 1024
MAX_LINE: Final = 4 * 1024  # of the size of a chunk, and of a trailer
_NO_BODY: Final = (204, 304)
_SIZE: Final = re.compile(rb"[0-9a-fA-F]{1,16}")


class _Part(enum.Enum):
    HEAD = "the head"
    LENGTH = "a body of known length"
    CHUNK_SIZE = "the size of a chunk"
    CHUNK = "a chunk"
    CHUNK_END = "the end of a chunk"
    TRAILERS = "the trailers"
    REST = "a body up to the end of the connection"
    DONE = "nothing more"


def encode_request(method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Encodes a request.

    Args:
        method: The method.
        target: The target, percent-encoded.
        headers: The header fields; the length of the body is added.
        body: The body.

    Raises:
        FrameError: A field has a line break in it.
    """
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if fields.count("\n") != len(headers) or fields.count("\r") != len(headers):
        raise FrameError("a header field of a request has a line break in it")
    length = f"Content-Length: {len(body)}\r\n" if body or method not in ("GET", "HEAD") else ""
    return f"{method} {target} HTTP/1.1\r\n{fields}{length}\r\n".encode("latin-1") + body


class ResponseParser:
    """Takes the bytes of one response, however they are cut.

    Args:
        method: Of the request: the answer to HEAD has no body.

    Attributes:
        status: The status; 0 until the head has come.
        headers: The header fields, their names in lower case.
        reusable: Whether the connection may be used again after the response.
    """

    def __init__(self, method: str) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.reusable = True
        self._has_body = method != "HEAD"
        self._part = _Part.HEAD
        self._buffer = b""
        self._left = 0

    def is_done(self) -> bool:
        """Whether the response is complete."""
        return self._part is _Part.DONE

    def feed(self, data: bytes) -> bytes:
        """Takes what has come and returns what of the body is in it.

        Raises:
            FrameError: It is no response of HTTP/1.1. The parser must not be fed any more.
        """
        self._buffer = self._buffer + data if self._buffer else data
        pieces: list[bytes] = []
        while self._buffer and self._part is not _Part.DONE:
            if not self._step(pieces):
                break
        if self._buffer and self._part is _Part.DONE:
            self.reusable = False  # nobody asked for what follows
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self) -> bool:
        """The connection has ended; returns whether the response is complete by that."""
        if self._part is _Part.REST:
            self._part = _Part.DONE
        return self._part is _Part.DONE

    def _step(self, pieces: list[bytes]) -> bool:
        """Takes one part off the buffer; returns False if it is not complete."""
        if self._part is _Part.HEAD:
            return self._take_head()
        if self._part is _Part.REST:
            pieces.append(self._buffer)
            self._buffer = b""
            return True
        if self._part in (_Part.LENGTH, _Part.CHUNK):
            piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
            self._left -= len(piece)
            pieces.append(piece)
            if self._left == 0:
                self._part = _Part.DONE if self._part is _Part.LENGTH else _Part.CHUNK_END
            return True
        line = self._take_line()
        if line is None:
            return False
        if self._part is _Part.CHUNK_SIZE:
            self._left = _hexadecimal(line.partition(b";")[0].strip())
            self._part = _Part.CHUNK if self._left else _Part.TRAILERS
        elif self._part is _Part.CHUNK_END:
            if line:
                raise FrameError("a chunk of the answer is longer than it says")
            self._part = _Part.CHUNK_SIZE
        elif not line:
            self._part = _Part.DONE
        return True

    def _take_line(self) -> bytes | None:
        line, found, rest = self._buffer.partition(b"\r\n")
        if len(line) > MAX_LINE:
            raise FrameError(f"a line in the body of the answer has more than {MAX_LINE} bytes")
        if not found:
            return None
        self._buffer = rest
        return line

    def _take_head(self) -> bool:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD:
            raise FrameError(f"the head of the answer has more than {MAX_HEAD} bytes")
        if not found:
            if not b"HTTP/1.".startswith(head[:7]):
                raise FrameError("the answer is not of HTTP/1.1")
            return False
        self._buffer = rest
        version, status, self.headers = _parse_head(head)
        if status // 100 != 1:  # an interim response is followed by another one
            self.status = status
            self._begin_body(version)
        return True

    def _begin_body(self, version: str) -> None:
        headers = self.headers
        connection = headers.get("connection", "").lower()
        self.reusable = connection != "close" and (version != "HTTP/1.0" or connection == "keep-alive")
        if not self._has_body or self.status in _NO_BODY:
            self._part = _Part.DONE
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            self._part = _Part.CHUNK_SIZE
        elif (length := headers.get("content-length")) is not None:
            if not (length.isascii() and length.isdigit() and len(length) < 20):
                raise FrameError(f"the answer has the length {length[:40]!r}")
            self._left = int(length)
            self._part = _Part.LENGTH if self._left else _Part.DONE
        else:
            self._part, self.reusable = _Part.REST, False


@lru_cache(maxsize=16)  # the streams that begin in the same second all have the same
def _parse_head(head: bytes) -> tuple[str, int, Mapping[str, str]]:
    """The version, the status and the header fields of a response.

    Raises:
        FrameError: It is no response of HTTP/1.1.
    """
    first, *fields = head.decode("latin-1").split("\r\n")
    version, _, status = first.partition(" ")
    code = status[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit() and len(code) == 3):
        raise FrameError(f"the answer begins with {first[:80]!r}, which is not of HTTP/1.1")
    headers: dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition(":")
        headers[name.lower()] = value.strip()
    return version, int(code), MappingProxyType(headers)


def _hexadecimal(text: bytes) -> int:
    if not _SIZE.fullmatch(text):
        raise FrameError(f"a chunk of the answer has the size {text[:40]!r}")
    return int(text, 16)
