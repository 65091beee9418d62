"""Answers those who belong at another port: their first byte tells.

Each is answered in its own protocol, if that has words for it: HTTP by a 400 in plain text, which browsers
and curl show; native sessions and logins by the error that they raise then. Others get that text, too: from
its first bytes a client that begins to speak TLS learns that there is none, and ours of a TCPStore that this
is HTTP.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from arendezvous.errors import RendezvousConnectionError
from arendezvous.net.endpoint import join_host_port
from arendezvous.net.tls import ALERT, HANDSHAKE
from arendezvous.wire.http.names import LISTENER_HEADER, SERVER_HEADER
from arendezvous.wire.native import login
from arendezvous.wire.native.messages import PREFACE, encode, failure

_HEAD: Final = ord("H")  # no other method begins with it, and its answer has no body
LINGERING: Final = 2.0  # seconds until the connection of who was answered is broken off
_NO_HTTP: Final = "this server has no listener for HTTP: start it with --http-port, or http=..."
_NO_TLS: Final = (
    "it begins to speak TLS, and this port does not; give the server tls (--tls-cert, --tls-key), or the"
    " client no TLS"
)
_NEEDS_TLS: Final = (
    b"%c\x03\x03\x00\x02\x02\x46" % ALERT
)  # fatal: the version of the protocol (RFC 8446, section 6)


class Refusal(NamedTuple):
    """Holds what is told to the log, and to the client."""

    why: str
    answer: bytes


class Listeners:
    """The listeners of one server, each of which knows the ports of all.

    Attributes:
        server_id: Names this start of the server.
        secure: Whether they speak TLS.
        ports: Their ports, by ``tcp`` and ``http``; each is entered once it is bound.
    """

    def __init__(self, server_id: str = "", *, secure: bool = False) -> None:
        self.ports: dict[str, int] = {}
        self.server_id = server_id
        self._secure = secure

    def refusal_at_tcp(self, first: int, host: str) -> Refusal | None:
        """Says what to answer to a first byte at the TCP listener; None: this is no client of HTTP or TLS."""
        if first == HANDSHAKE:
            return Refusal(_NO_TLS, self._text(first, _NO_TLS))
        if not _is_http(first):
            return None
        where = f"for HTTP use {self._url('http', host)}" if "http" in self.ports else _NO_HTTP
        said = f"this port is for endpoints such as {self._url('tcp', host)}; {where}"
        return Refusal(f"it speaks HTTP: {said}", self._text(first, said))

    def refusal_at_http(self, first: int, host: str) -> Refusal | None:
        """Says what to answer at the HTTP listener; None: it may be HTTP, or is for its parser to refuse."""
        if _is_http(first):
            return None
        if first == HANDSHAKE:
            return Refusal(_NO_TLS, self._text(first, _NO_TLS))
        here = self._url("http", host)
        said = f"that is the HTTP port; use {here}, or {self._url('tcp', host)}"
        error = RendezvousConnectionError(said, endpoint=here, doing="connecting")
        known = {
            PREFACE[0]: ("a native session", encode(failure(0, error))),
            login.PREFACE[0]: ("a client of a store", encode(failure(0, error))),
            0: ("a client of a TCPStore", self._text(first, said)),
        }
        what, answer = known.get(first, ("", b""))
        return Refusal(f"it is {what}: {said}", answer) if what else None

    def plain_answer(self, first: int) -> bytes:
        """Says what to answer, without TLS, to who begins without it where it is needed."""
        if _is_http(first):
            return self._text(first, "this port speaks TLS: use https:// in place of http://")
        return _NEEDS_TLS

    def _url(self, scheme: str, host: str) -> str:
        shown = "https" if self._secure and scheme == "http" else scheme
        return f"{shown}://{join_host_port(host, self.ports.get(scheme, 0))}"

    def _text(self, first: int, said: str) -> bytes:
        body = f"{said}\n".encode()
        head = (
            "HTTP/1.1 400 Bad Request",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(body)}",
            f"{SERVER_HEADER}: {self.server_id}",
            f"{LISTENER_HEADER}: {said}",
            "Connection: close",
        )
        answer = "".join(f"{line}\r\n" for line in (*head, "")).encode()
        return answer if first == _HEAD else answer + body


def refuse(transport: asyncio.Transport, answer: bytes) -> asyncio.TimerHandle:
    """Answers, and has the connection broken off in a while, which the client may do earlier.

    What it still sends is let pass: were the connection closed before, the kernel would take the answer back.
    """
    transport.write(answer)
    if transport.can_write_eof():
        transport.write_eof()
    return asyncio.get_running_loop().call_later(LINGERING, transport.abort)


def own_address(transport: asyncio.BaseTransport) -> str:
    """Returns the address at which a connection has come in."""
    name = transport.get_extra_info("sockname")
    return str(name[0]) if isinstance(name, tuple) else "HOST"


def _is_http(first: int) -> bool:
    """Whether a request of HTTP may begin so: with a method, or a line's end that is let pass."""
    return ord("A") <= first <= ord("Z") or first in b"\r\n"
