"""How a client of a store shows its token: what comes before the c10d protocol, which has no place for one.

The client begins with `PREFACE`, whose first byte is no opcode of the TCPStore protocol and not that of a
native session, and one frame, a `Login`. The server answers with one frame: `LoggedIn`, and the connection
goes on with the c10d protocol, from its greeting; or `Failed`, and it closes the connection. A server of
stock torch closes it at the first byte.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from arendezvous.keyspace.grants import Grant
from arendezvous.wire.foreign import decode_foreign
from arendezvous.wire.native.messages import HEADER, Failed, FrameError, encode

PREFACE: Final = b"\xa5AR1"
VERSION: Final = 1
MAX_LOGIN: Final = 2048  # bytes of a frame; the longest token is half as long
MAX_ANSWER: Final = 16 * 1024


class Login(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The client's only message."""

    version: int  # of this protocol that it speaks
    token: str  # the bearer token

    def __repr__(self) -> str:
        return f"Login(version={self.version}, token='...')"

    def __rich_repr__(self) -> Any:
        yield repr(self)


class LoggedIn(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The server's answer: what the token is good for, so that the client can say what goes beyond it."""

    version: int
    grant: Grant


_login_decoder: Final = msgspec.msgpack.Decoder(Login)
_answer_decoder: Final = msgspec.msgpack.Decoder(LoggedIn | Failed)


def encode_login(token: str) -> bytes:
    """Encodes all that the client sends."""
    return PREFACE + encode(Login(VERSION, token))


class LoginParser:
    """Takes the client's bytes up to the end of the login, however they are cut; sans-I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> tuple[Login, bytes] | None:
        """Returns the login and what follows, once it is complete. Raises `FrameError` if it is none."""
        self._buffer += data
        size = min(len(self._buffer), len(PREFACE))
        if self._buffer[:size] != PREFACE[:size]:
            raise FrameError("not the preface of a login; expected the bytes a5 41 52 31")
        rest = _cut(self._buffer, len(PREFACE), MAX_LOGIN)
        if rest is None:
            return None
        frame, after = rest
        return decode_foreign(_login_decoder.decode, frame, _refused), after


class AnswerParser:
    """Takes the server's bytes up to the end of its answer; sans-I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> LoggedIn | Failed | None:
        """Returns the answer, once it is complete. Raises `FrameError` if it is none, or more follows."""
        self._buffer += data
        rest = _cut(self._buffer, 0, MAX_ANSWER)
        if rest is None:
            return None
        frame, after = rest
        if after:
            raise FrameError(f"{len(after)} bytes after the answer to a login, but nothing was asked for")
        answer: LoggedIn | Failed = decode_foreign(_answer_decoder.decode, frame, _refused)
        return answer


def _cut(buffer: bytearray, start: int, limit: int) -> tuple[bytes, bytes] | None:
    """Splits a frame off; None while it is not complete."""
    begin = start + HEADER
    if len(buffer) < begin:
        return None
    length = int.from_bytes(buffer[start:begin], "big")
    if not 0 < length <= limit:
        raise FrameError(f"a frame of {length} bytes; allowed are 1 to {limit}")
    end = begin + length
    return (bytes(buffer[begin:end]), bytes(buffer[end:])) if len(buffer) >= end else None


def _refused(said: str) -> FrameError:
    return FrameError(f"no valid message of a login: {said}")
