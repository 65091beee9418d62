"""The checks of ``arendezvous doctor``: each finds something out, and says what to do about it."""

from __future__ import annotations

import enum
import errno
import ipaddress
import resource
import socket
import time
from typing import Final

import anyio
import msgspec

from arendezvous.cli.doctor_probe import Kind, probe
from arendezvous.cli.open_files import open_files
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import join_host_port

CHECK_TIMEOUT: Final = 5.0
SLOW: Final = 1.0  # seconds; a name that takes longer delays every start
FEW_FILES: Final = 4096


_ADVICE: Final = {
    Kind.REFUSED: "",  # it says itself what to do
    Kind.TLS: "give --tls-ca, the file of the authority that signed its certificate, or --tls",
    Kind.OTHER: "give the URL of an arendezvous server, or another port",
}


class Level(enum.Enum):
    """How a check came out; a node can join if none has failed."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Check(msgspec.Struct, frozen=True):
    """What one check found.

    Attributes:
        name: What was looked at.
        level: How it came out.
        found: What was found.
        advice: What to do about it; empty if nothing.
    """

    name: str
    level: Level
    found: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.level.value:<8} {self.name:<10} {self.found}{advice}"


async def examine(host: str, port: int, credentials: Credentials = NO_CREDENTIALS) -> list[Check]:
    """Makes all checks of an endpoint, from the name to the limits of this process.

    Args:
        host: The endpoint's host.
        port: Its port.
        credentials: The token that a node would show, and the TLS settings that it would use.

    Raises:
        RendezvousSettingsError: A file of the TLS settings cannot be read, or holds something else.
    """
    name, addresses = await check_name(host, port)
    checks = [name]
    if addresses:
        reached, refused = await reach(addresses, port)
        local = [address for address in addresses if is_local(address)]
        checks.append(check_port(addresses, reached, refused, local, port))
        if reached:
            checks += await _check_who_answers(host, reached[0], port, credentials)
        checks.append(check_host(addresses, local, serving=bool(reached)))
        checks.append(check_own_address(addresses[0], port))
    checks.append(await check_own_name())
    checks.append(Check("clock", Level.OK, "a tcp:// server keeps the only clock; no others are compared"))
    checks.append(check_open_files(*open_files()))
    return checks


async def check_name(host: str, port: int) -> tuple[Check, list[str]]:
    """Whether the endpoint's host can be resolved, and how long that takes; and its addresses."""
    began = time.monotonic()
    try:
        addresses = await _resolve(host, port)
    except (OSError, TimeoutError) as error:
        why = str(error) or f"no answer within {CHECK_TIMEOUT:g} s"
        advice = "check its spelling and this machine's DNS, or use an address"
        return Check("name", Level.FAILED, f"{host} cannot be resolved: {why}", advice), []
    took = time.monotonic() - began
    found = f"{host} is {', '.join(addresses)}, found in {took * 1000:.1f} ms"
    if took > SLOW:
        return Check("name", Level.WARNING, found, "every start waits for that; use an address"), addresses
    return Check("name", Level.OK, found), addresses


def check_port(
    addresses: list[str], reached: list[str], refused: dict[str, str], local: list[str], port: int
) -> Check:
    """Whether connections are accepted; if not, whether this machine would accept them itself."""
    failures = ", ".join(f"{join_host_port(address, port)}: {why}" for address, why in refused.items())
    if reached and refused:
        return Check("port", Level.WARNING, failures, "nodes may lose time on these addresses")
    if reached:
        places = ", ".join(join_host_port(address, port) for address in reached)
        return Check("port", Level.OK, f"{places} accepts connections")
    if local and (why := _why_not_bindable(local[0], port)) is not None:
        place = join_host_port(local[0], port)
        advice = "choose another port, or end whoever holds it"
        return Check("port", Level.FAILED, f"nobody answers on {place}, nor can it be bound: {why}", advice)
    if local:
        found = "nobody serves yet, and the port is free: the first node here will host the server"
        return Check("port", Level.OK, found)
    advice = "start 'arendezvous serve' there, and check the port and firewalls between"
    return Check("port", Level.FAILED, failures or f"none of {', '.join(addresses)} answers", advice)


async def _check_who_answers(host: str, address: str, port: int, credentials: Credentials) -> list[Check]:
    if not credentials.uses_tls:
        return [await check_server(address, port, credentials)]
    from arendezvous.cli.doctor_tls import check_tls  # it needs this module

    tls = await check_tls(host, address, port, credentials)
    if tls.level is Level.FAILED:
        return [tls]
    named = msgspec.structs.replace(credentials, server_name=credentials.server_name or host)
    return [tls, await check_server(address, port, named)]


async def check_server(address: str, port: int, credentials: Credentials = NO_CREDENTIALS) -> Check:
    """Who answers; an arendezvous server says whether the token is good."""
    try:
        answer = await probe(address, port, credentials)
    except OSError as error:
        return Check("server", Level.FAILED, f"it has stopped to answer: {error}", "try again")
    detail = f" ({answer.detail})" if answer.detail else ""
    found = f"{answer.kind.value}{detail}"
    if answer.kind is Kind.OURS:
        return Check("server", Level.OK, found)
    return Check("server", Level.FAILED, found, _ADVICE.get(answer.kind, _ADVICE[Kind.OTHER]))


def check_host(addresses: list[str], local: list[str], *, serving: bool) -> Check:
    """Whether a node on this machine would host the server, and whether others could reach it."""
    if all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        found = "the endpoint is a loopback address: only nodes of this machine can meet there"
        return Check("host", Level.WARNING, found, "between machines, use an address that all of them reach")
    if local:
        what = "serves it, should that server end" if serving else "hosts the server"
        return Check("host", Level.OK, f"the endpoint is this machine: the first node to start here {what}")
    return Check("host", Level.OK, "the endpoint is another machine: nodes here never host the server")


def check_own_address(address: str, port: int) -> Check:
    """By which address the other nodes will be told to reach this one."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((address, port or 9))  # picks a route, and sends nothing
            own = sock.getsockname()[0]
    except OSError as error:
        return Check("address", Level.WARNING, f"no route to {address}: {error}", "check the network")
    return Check("address", Level.OK, f"this node is reached by {own}, unless local_addr says otherwise")


async def check_own_name() -> Check:
    """Whether this machine's own name means an address that others could use."""
    name = socket.gethostname()
    try:
        addresses = await _resolve(name, 0)
    except (OSError, TimeoutError) as error:
        why = str(error) or "no answer"
        advice = "harmless here; torch and others may need it, so add it to DNS or /etc/hosts"
        return Check("own name", Level.WARNING, f"{name} cannot be resolved: {why}", advice)
    return Check("own name", Level.OK, f"{name} is {', '.join(addresses)}")


def check_open_files(soft: int, hard: int) -> Check:
    """Whether this process could hold many connections."""
    shown = ["unlimited" if limit == resource.RLIM_INFINITY else str(limit) for limit in (soft, hard)]
    found = f"{shown[0]} may be open, at most {shown[1]}"
    if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
        advice = "a server needs one for each node; raise 'ulimit -n'"
        return Check("open files", Level.WARNING, found, advice)
    return Check("open files", Level.OK, found)


def is_local(address: str) -> bool:
    """Tells whether an address is one of this machine."""
    return _why_not_bindable(address, 0) is None


def _why_not_bindable(address: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
    except OSError as error:
        return "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return None


async def reach(addresses: list[str], port: int) -> tuple[list[str], dict[str, str]]:
    """Tries to connect to all addresses at once; returns those that accept, and why the others do not."""
    results: dict[str, str] = {}

    async def connect(address: str) -> None:
        try:
            with anyio.fail_after(CHECK_TIMEOUT):
                stream = await anyio.connect_tcp(address, port)
                await stream.aclose()
        except TimeoutError:
            results[address] = f"no answer within {CHECK_TIMEOUT:g} s"
        except OSError as error:
            results[address] = str(error.__cause__ or error)
        else:
            results[address] = ""

    async with anyio.create_task_group() as tasks:
        for address in addresses:
            tasks.start_soon(connect, address)
    reached = [address for address in addresses if not results[address]]
    return reached, {address: why for address, why in results.items() if why}


async def _resolve(host: str, port: int) -> list[str]:
    with anyio.fail_after(CHECK_TIMEOUT):
        infos = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))
