"""Finding out who answers on a port, by speaking to it in each language that it might know."""

from __future__ import annotations

import enum
import secrets
import ssl
from collections.abc import Callable
from typing import Final

import anyio
import anyio.abc
import msgspec

from arendezvous.net.connect import connect
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.wire.native.messages import (
    PREFACE,
    VERSION,
    Failed,
    FrameError,
    FrameParser,
    Hello,
    Welcome,
    decode_server,
    encode,
)

PROBE_TIMEOUT: Final = 2.0
MAX_ANSWER: Final = 64 * 1024
C10D_HELLO: Final = b"\x00" + (0x3C85F7CE).to_bytes(4, "little")  # VALIDATE, see the protocol of TCPStore
C10D_PING: Final = b"\x0d"


class Kind(enum.Enum):
    """Who answers."""

    OURS = "an arendezvous server"
    REFUSED = "an arendezvous server that refuses us"
    TCPSTORE = "a TCPStore that is no arendezvous server"
    HTTP = "an HTTP server"
    OTHER = "something else"
    TLS = "somebody who expects TLS"
    SILENT = "somebody who says nothing"


class Answer(msgspec.Struct, frozen=True):
    """Who answered, and details for people."""

    kind: Kind
    detail: str = ""


async def probe(host: str, port: int, credentials: Credentials = NO_CREDENTIALS) -> Answer:
    """Tells who answers on a port that accepts connections.

    Args:
        host: The address.
        port: The port.
        credentials: The token to show to an arendezvous server, and the TLS settings.

    Raises:
        OSError: It does not accept connections any more.
    """
    greeting = PREFACE + encode(Hello(VERSION, token=credentials.token))
    native = await _exchange(host, port, greeting, _frame_length, credentials)
    if native.startswith(b"HTTP/"):
        return Answer(Kind.HTTP)
    if native:
        return _greeting(native)
    nonce = secrets.token_bytes(4)
    pong = await _exchange(host, port, C10D_HELLO + C10D_PING + nonce, lambda _: len(nonce), credentials)
    if pong == nonce:
        return Answer(Kind.TCPSTORE)
    request = f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()
    page = await _exchange(host, port, request, lambda _: 5, credentials)
    if page.startswith(b"HTTP/"):
        return Answer(Kind.HTTP)
    heard = pong or page
    if credentials.uses_tls:
        hint = "" if credentials.cert else "it may ask for a certificate: give --tls-cert and --tls-key"
    elif not heard and await _expects_tls(host, port):
        return Answer(Kind.TLS)
    else:
        hint = ""
    return Answer(Kind.OTHER, f"it said {heard[:16]!r}") if heard else Answer(Kind.SILENT, hint)


async def _exchange(
    host: str, port: int, question: bytes, enough: Callable[[bytes], int], credentials: Credentials
) -> bytes:
    """Sends `question`, and returns what comes within the time-out until it is `enough`."""
    heard = b""
    async with await connect(host, port, credentials) as stream:
        with anyio.move_on_after(PROBE_TIMEOUT):
            try:
                await stream.send(question)
                while len(heard) < min(enough(heard), MAX_ANSWER):
                    heard += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, ssl.SSLError):
                return heard
    return heard


async def _expects_tls(host: str, port: int) -> bool:
    """Whether somebody there does a handshake; whom the certificate names does not matter here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with anyio.move_on_after(PROBE_TIMEOUT):
        try:
            stream = await anyio.connect_tcp(host, port, ssl_context=context, tls_standard_compatible=False)
            await stream.aclose()
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream):
            return False
        return True
    return False


def _frame_length(heard: bytes) -> int:
    return 4 + int.from_bytes(heard[:4], "big") if len(heard) >= 4 else 4


def _greeting(heard: bytes) -> Answer:
    try:
        frames = FrameParser(MAX_ANSWER).feed(heard)
        message = decode_server(frames[0]) if frames else None
    except FrameError:
        return Answer(Kind.OTHER, f"it said {heard[:16]!r}")
    if isinstance(message, Welcome):
        return Answer(Kind.OURS, f"protocol version {message.version}, ours is {VERSION}")
    if isinstance(message, Failed):
        return Answer(Kind.REFUSED, message.message)
    return Answer(Kind.OTHER, f"it said {heard[:16]!r}")
