"""Checks ``tcp://`` and ``c10d://``: who answers on the port, by speaking to it in each language."""

from __future__ import annotations

import enum
import secrets
import ssl
from collections.abc import Callable
from typing import Final

import anyio
import anyio.abc
import msgspec

from arendezvous.backends.port import RendezvousBackend
from arendezvous.doctor.checks import (
    STAMPS,
    Finding,
    Level,
    PortReach,
    check_connections,
    check_loopback,
    check_tls,
    examine,
    why_not_bindable,
)
from arendezvous.errors import RendezvousError, RendezvousPermissionError, token_advice
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials, connect
from arendezvous.net.endpoint import Endpoint, join_host_port
from arendezvous.net.tls import ALERT
from arendezvous.wire.native import messages

PROBE_TIMEOUT: Final = 2.0
MAX_ANSWER: Final = 64 * 1024
C10D_HELLO: Final = b"\x00" + (0x3C85F7CE).to_bytes(4, "little")  # VALIDATE, see the protocol of TCPStore
C10D_PING: Final = b"\x0d"
_TOKENS: Final = (
    "c10d:// shows no token: use tcp://, or start the server with --allow-plain-stores, which lets everybody"
    " in who reaches it"
)


class Kind(enum.Enum):
    """Tells kinds of those who answer apart."""

    OURS = "an arendezvous server"
    REFUSED = "an arendezvous server that refuses us"
    TCPSTORE = "a TCPStore that is no arendezvous server"
    HTTP = "an HTTP server"
    OTHER = "something else"
    TLS = "somebody who expects TLS"
    SILENT = "somebody who says nothing"


class ProbeResult(msgspec.Struct, frozen=True):
    """Says who answered, and for people details and what to do; empty where there is nothing to say."""

    kind: Kind
    detail: str = ""
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} ({self.detail})" if self.detail else self.kind.value


_ADVICE: Final = {
    Kind.REFUSED: "",  # it says itself what to do
    Kind.TLS: "give --tls-ca, the file of the authority that signed its certificate, or --tls",
    Kind.OTHER: "give the URL of an arendezvous server, or another port",
}


async def examine_tcp(endpoint: Endpoint, credentials: Credentials = NO_CREDENTIALS) -> list[Finding]:
    """Makes all checks of an endpoint; `RendezvousSettingsError`: the TLS settings cannot be used."""

    async def more(there: PortReach) -> list[Finding]:
        checks = [check_port(there)]
        if there.reached:
            checks += await _check_who_answers(endpoint.host, there.reached[0], endpoint.port, credentials)
        return [*checks, check_host(there)]

    clock = Finding("clock", Level.OK, "a tcp:// server keeps the only clock; no others are compared")
    return await examine(endpoint.host, endpoint.port, more, clock)


def _local(there: PortReach) -> str:
    """The first address that is of this machine; empty if none is."""
    return next((address for address in there.refusals if why_not_bindable(address, 0) is None), "")


def check_port(there: PortReach) -> Finding:
    """Checks whether connections are accepted; if not, whether this machine would accept them itself."""
    if answered := check_connections(there):
        return answered
    if local := _local(there):
        if (why := why_not_bindable(local, there.port)) is None:
            found = "nobody serves yet, and the port is free: the first node here will host the server"
            return Finding("port", Level.OK, found)
        found = f"nobody answers on {join_host_port(local, there.port)}, nor can it be bound: {why}"
        return Finding("port", Level.FAILED, found, "choose another port, or end whoever holds it")
    advice = "start 'arendezvous serve' there, and check the port and firewalls between"
    return Finding("port", Level.FAILED, there.failures, advice)


async def _check_who_answers(host: str, address: str, port: int, credentials: Credentials) -> list[Finding]:
    if not credentials.uses_tls:
        return [await check_server(address, port, credentials)]
    tls = await check_tls(host, address, port, credentials)
    if tls.level is Level.FAILED:
        return [tls]
    named = msgspec.structs.replace(credentials, server_name=credentials.server_name or host)
    return [tls, await check_server(address, port, named)]


async def check_server(address: str, port: int, credentials: Credentials = NO_CREDENTIALS) -> Finding:
    """Checks who answers; an arendezvous server says whether the token is good."""
    try:
        answer = await probe(address, port, credentials)
    except OSError as error:
        return _stopped(error)
    if answer.kind is Kind.OURS:
        return Finding("server", Level.OK, str(answer))
    advice = answer.advice or _ADVICE.get(answer.kind, _ADVICE[Kind.OTHER])
    return Finding("server", Level.FAILED, str(answer), advice)


def _stopped(error: OSError) -> Finding:
    return Finding("server", Level.FAILED, f"it has stopped to answer: {error}", "try again")


def check_host(there: PortReach) -> Finding:
    """Checks whether a node on this machine would host the server, and whether others could reach it."""
    if useless := check_loopback(there):
        return useless
    if _local(there):
        what = "serves it, should that server end" if there.reached else "hosts the server"
        return Finding("host", Level.OK, f"the endpoint is this machine: the first node to start here {what}")
    return Finding("host", Level.OK, "the endpoint is another machine: nodes here never host the server")


async def probe(host: str, port: int, credentials: Credentials = NO_CREDENTIALS) -> ProbeResult:
    """Tells who answers on a port that accepts connections; raises `OSError` if it does not any more."""
    greeting = messages.PREFACE + messages.encode(messages.Hello(messages.VERSION, token=credentials.token))
    native = await _exchange(host, port, greeting, _frame_length, credentials)
    if native.startswith(b"HTTP/"):
        return ProbeResult(Kind.HTTP)
    if native and native[0] == ALERT:
        return ProbeResult(Kind.TLS)
    if native:
        return _greeting(native)
    pong, nonce = await _ping(host, port, credentials)
    if pong == nonce:
        return ProbeResult(Kind.TCPSTORE)
    request = f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()
    page = await _exchange(host, port, request, lambda _: 5, credentials)
    if page.startswith(b"HTTP/"):
        return ProbeResult(Kind.HTTP)
    if heard := pong or page:
        return _said(heard)
    if not credentials.uses_tls:
        return ProbeResult(Kind.TLS if await _expects_tls(host, port) else Kind.SILENT)
    hint = "" if credentials.cert else "it may ask for a certificate: give --tls-cert and --tls-key"
    return ProbeResult(Kind.SILENT, hint)


def _said(heard: bytes) -> ProbeResult:
    return ProbeResult(Kind.OTHER, f"it said {heard[:16]!r}")


async def _ping(host: str, port: int, credentials: Credentials) -> tuple[bytes, bytes]:
    """Sends what a TCPStore sends back; returns what has come, and what should have."""
    nonce = secrets.token_bytes(4)
    question = C10D_HELLO + C10D_PING + nonce
    return await _exchange(host, port, question, lambda _: len(nonce), credentials), nonce


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
    """Tells whether somebody there does a handshake; whom the certificate names does not matter here."""
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


def _greeting(heard: bytes) -> ProbeResult:
    try:
        frames = messages.FrameParser(MAX_ANSWER).feed(heard)
        message = messages.decode_server(frames[0]) if frames else None
    except messages.FrameError:
        return _said(heard)
    if isinstance(message, messages.Welcome):
        return ProbeResult(Kind.OURS, f"protocol version {message.version}, ours is {messages.VERSION}")
    if isinstance(message, messages.Failed):
        leader = messages.leader_of(message)
        if leader is not None:
            return ProbeResult(Kind.OURS, f"one of a fleet: it sends nodes to {leader}, which leads")
        error = messages.error_of(message)
        is_token = isinstance(error, RendezvousPermissionError) and not error.authenticated
        return ProbeResult(Kind.REFUSED, error.message, token_advice("--token-file") if is_token else "")
    return _said(heard)


async def examine_c10d(endpoint: Endpoint, look: Callable[[], RendezvousBackend]) -> list[Finding]:
    """Makes all checks of a TCPStore; `look` makes what looks at the run there and hosts nothing."""

    async def more(there: PortReach) -> list[Finding]:
        checks = [check_port(there)]
        if there.reached:
            checks.append(await check_store(there.reached[0], endpoint.port))
        return checks + list(filter(None, [check_loopback(there)]))

    checks = await examine(endpoint.host, endpoint.port, more, STAMPS)
    if any(check.name == "server" and check.level is Level.OK for check in checks):
        checks[checks.index(STAMPS)] = await check_clocks(look())
    return checks


async def check_store(address: str, port: int) -> Finding:
    """Checks whether a TCPStore answers that lets in whoever shows no token, and whose it is."""
    try:
        pong, nonce = await _ping(address, port, NO_CREDENTIALS)
        answer = await probe(address, port)
    except OSError as error:
        return _stopped(error)
    if pong == nonce:
        whose = answer if answer.kind in (Kind.OURS, Kind.REFUSED) else Kind.TCPSTORE.value
        return Finding("server", Level.OK, f"{whose}; it speaks the protocol of TCPStore")
    return Finding("server", Level.FAILED, str(answer), _advice(answer))


def _advice(answer: ProbeResult) -> str:
    if answer.kind in (Kind.OURS, Kind.REFUSED):
        return _TOKENS
    if answer.kind is Kind.TLS:
        return "c10d:// speaks no TLS, as torch's stores do not: use tcp:// with --tls"
    return "give the address of a TCPStore, or another port"


async def check_clocks(backend: RendezvousBackend) -> Finding:
    """Checks by a backend, not entered yet, whether a clock is so far off that stock agents drop its node."""
    try:
        async with backend:
            status = await backend.status()
    except RendezvousError:
        return STAMPS  # the check of the run says what is wrong there
    if not status.nodes:
        return STAMPS
    off = [f"{node.desc.name} by {node.skew:+.1f} s" for node in status.nodes if node.skew is not None]
    if off:
        found = f"clocks are off this machine's: {', '.join(off)}"
        return Finding("clock", Level.WARNING, found, "set them: stock agents take a node for dead for that")
    found = f"of {len(status.nodes)} nodes in run {status.run_id!r}, none is seen to have a clock that is off"
    return Finding("clock", Level.OK, found)
