"""The checks that all schemes share: names, ports, certificates, this machine. Each says what to do."""

from __future__ import annotations

import enum
import errno
import resource
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.streams.tls
import msgspec

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.law.status import explained
from arendezvous.net.addresses import address_towards, is_loopback
from arendezvous.net.credentials import Credentials, connect, why
from arendezvous.net.endpoint import join_host_port

CHECK_TIMEOUT: Final = 5.0
SLOW: Final = 1.0  # seconds; a name that takes longer delays every start
SOON: Final = 7.0  # days; a certificate that expires within them is to be renewed
FEW_FILES: Final = 4096
NAMED: Final = 8  # members of a run


class Level(enum.Enum):
    """Says how a check came out; a node can join if none has failed."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Finding(msgspec.Struct, frozen=True):
    """Holds what one check found, how it came out, and what to do about it, which is empty if nothing."""

    name: str
    level: Level
    found: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.level.value:<8} {self.name:<10} {self.found}{advice}"


STAMPS: Final = Finding(
    "clock",
    Level.WARNING,
    "stock agents compare this machine's clock with theirs, if there are any",
    "keep the clocks of all nodes synchronised",
)


class PortReach(msgspec.Struct, frozen=True):
    """Tells which addresses accept connections to a port: those whose refusal, in words, is empty."""

    port: int
    refusals: dict[str, str]

    @property
    def reached(self) -> list[str]:
        """The addresses that accept connections."""
        return [address for address, why in self.refusals.items() if not why]

    @property
    def failures(self) -> str:
        """The addresses that do not, and why."""
        found = self.refusals.items()
        return ", ".join(f"{join_host_port(address, self.port)}: {why}" for address, why in found if why)


async def examine(
    host: str,
    port: int,
    more: Callable[[PortReach], Awaitable[list[Finding]]],
    clock: Finding | None = None,
) -> list[Finding]:
    """Makes the checks of a server at one host, from its name to the limits of this process.

    It makes `more` of them once it is known which addresses accept connections. `clock` is what there is to
    say of clocks; None: `more` sees to that.
    """
    name, addresses = await check_name(host, port)
    checks = [name]
    if addresses:
        found = await reach(addresses, port)
        checks += await more(found)
        checks.append(check_own_address((found.reached or addresses)[0], port))
    return [*checks, await check_own_name(), *([clock] if clock else []), check_open_files()]


async def check_name(host: str, port: int) -> tuple[Finding, list[str]]:
    """Checks whether the endpoint's host can be resolved, and how long that takes; and its addresses."""
    began = time.monotonic()
    try:
        addresses = await _resolve(host, port)
    except (OSError, TimeoutError) as error:
        why = str(error) or f"no answer within {CHECK_TIMEOUT:g} s"
        advice = "check its spelling and this machine's DNS, or use an address"
        return Finding("name", Level.FAILED, f"{host} cannot be resolved: {why}", advice), []
    took = time.monotonic() - began
    found = f"{host} is {', '.join(addresses)}, found in {took * 1000:.1f} ms"
    if took > SLOW:
        return Finding("name", Level.WARNING, found, "every start waits for that; use an address"), addresses
    return Finding("name", Level.OK, found), addresses


def check_connections(there: PortReach) -> Finding | None:
    """Checks whether all addresses accept connections; None if none does, for whatever that means there."""
    if there.reached and there.failures:
        return Finding("port", Level.WARNING, there.failures, "nodes may lose time on these addresses")
    if there.reached:
        places = ", ".join(join_host_port(address, there.port) for address in there.reached)
        return Finding("port", Level.OK, f"{places} accepts connections")
    return None


def check_loopback(there: PortReach) -> Finding | None:
    """Checks whether only nodes of this machine could use the endpoint; None if others can, too."""
    if not all(map(is_loopback, there.refusals)):
        return None
    found = "the endpoint is a loopback address: only nodes of this machine can meet there"
    return Finding("host", Level.WARNING, found, "between machines, use an address that all of them reach")


async def check_tls(host: str, address: str, port: int, credentials: Credentials) -> Finding:
    """Checks whether the server at `address` shows a trusted certificate for `host`, and for how long."""
    expected = msgspec.structs.replace(credentials, server_name=credentials.server_name or host)
    try:
        with anyio.fail_after(CHECK_TIMEOUT):
            stream = await connect(address, port, expected)
    except TimeoutError:
        return Finding("tls", Level.FAILED, f"no handshake within {CHECK_TIMEOUT:g} s", "is it a TLS port?")
    except (OSError, anyio.BrokenResourceError) as error:
        advice = "" if isinstance(error, ssl.SSLError) else "the server there may not speak TLS on this port"
        return Finding("tls", Level.FAILED, why(error, credentials), advice)
    async with stream:
        version = stream.extra(anyio.streams.tls.TLSAttribute.tls_version)  # noqa: S610 - not Django's
        certificate = stream.extra(anyio.streams.tls.TLSAttribute.peer_certificate)  # noqa: S610 - as above
    assert isinstance(certificate, dict)  # noqa: S101 - it was verified
    return judge_certificate(version, str(certificate["notAfter"]), time.time())


def judge_certificate(version: str, not_after: str, now: float) -> Finding:
    """Judges a certificate that is trusted `now`, by when it expires, as OpenSSL writes it."""
    days = (ssl.cert_time_to_seconds(not_after) - now) / 86_400
    found = f"{version}; the certificate is trusted, and good until {not_after}"
    if days < SOON:
        return Finding("tls", Level.WARNING, f"{found}, {days:.1f} days from now", "renew it")
    return Finding("tls", Level.OK, found)


def check_own_address(address: str, port: int) -> Finding:
    """Finds the address by which the other nodes will be told to reach this one."""
    try:
        own = address_towards(address, port)
    except OSError as error:
        return Finding("address", Level.WARNING, f"no route to {address}: {error}", "check the network")
    return Finding("address", Level.OK, f"this node is reached by {own}, unless local_addr says otherwise")


async def check_own_name() -> Finding:
    """Checks whether this machine's own name means an address that others could use."""
    name = socket.gethostname()
    try:
        addresses = await _resolve(name, 0)
    except (OSError, TimeoutError) as error:
        why = str(error) or "no answer"
        advice = "harmless here; torch and others may need it, so add it to DNS or /etc/hosts"
        return Finding("own name", Level.WARNING, f"{name} cannot be resolved: {why}", advice)
    return Finding("own name", Level.OK, f"{name} is {', '.join(addresses)}")


def check_open_files() -> Finding:
    """Checks whether this process could hold many connections."""
    return judge_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def judge_open_files(soft: int, hard: int) -> Finding:
    """Judges the soft and the hard limit on open files."""
    shown = ["unlimited" if limit == resource.RLIM_INFINITY else str(limit) for limit in (soft, hard)]
    found = f"{shown[0]} may be open, at most {shown[1]}"
    if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
        advice = "a server needs one for each node; raise 'ulimit -n'"
        return Finding("open files", Level.WARNING, found, advice)
    return Finding("open files", Level.OK, found)


async def check_run(backend: RendezvousBackend) -> Finding:
    """Checks through a backend, not entered yet, whether a run is open, who is in it, and who is missing."""
    try:
        async with backend:
            status = await backend.status()
    except RendezvousStateError as error:
        advice = "use another run id, or remove what is kept of this run once nobody is in it"
        return Finding("run", Level.FAILED, error.message, advice)
    except RendezvousError as error:
        return Finding("run", Level.FAILED, error.message)
    said = explained(status)
    if status.closed is not None:
        advice = "open it again with 'arendezvous reopen', or use another run id"
        return Finding("run", Level.FAILED, f"run {status.run_id!r}: {said[1]}", advice)
    found = said[0]
    if status.complete and status.nodes:
        names = [node.desc.name for node in status.nodes]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        found += f"; in it: {', '.join(names[:NAMED])}{more}"
    return Finding("run", Level.OK, found)


def why_not_bindable(address: str, port: int) -> str | None:
    """Says why this process cannot listen on an address; None if it can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
    except OSError as error:
        return "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return None


async def reach(addresses: list[str], port: int) -> PortReach:
    """Tries to connect to all addresses at once."""
    refusals = dict.fromkeys(addresses, "")

    async def connect(address: str) -> None:
        try:
            with anyio.fail_after(CHECK_TIMEOUT):
                stream = await anyio.connect_tcp(address, port)
                await stream.aclose()
        except TimeoutError:
            refusals[address] = f"no answer within {CHECK_TIMEOUT:g} s"
        except OSError as error:
            refusals[address] = str(error.__cause__ or error)

    async with anyio.create_task_group() as tasks:
        for address in addresses:
            tasks.start_soon(connect, address)
    return PortReach(port, refusals)


async def _resolve(host: str, port: int) -> list[str]:
    with anyio.fail_after(CHECK_TIMEOUT):
        infos = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))
