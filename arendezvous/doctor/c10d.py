"""Checks ``c10d://``: who answers as a TCPStore, whether without a token, and whose clocks are off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from arendezvous.backends.port import RendezvousBackend
from arendezvous.doctor.checks import (
    STAMPS,
    Finding,
    Level,
    check_loopback,
    check_name,
    check_open_files,
    check_own_address,
    check_own_name,
    is_local,
    reach,
)
from arendezvous.doctor.tcp import Kind, ProbeResult, check_port, probe, speaks_c10d
from arendezvous.errors import RendezvousError
from arendezvous.net.endpoint import Endpoint

_TOKENS: Final = (
    "c10d:// shows no token: use tcp://, or start the server with --allow-plain-stores, which lets everybody"
    " in who reaches it"
)


async def examine_c10d(endpoint: Endpoint, look: Callable[[], RendezvousBackend]) -> list[Finding]:
    """Makes all checks of a TCPStore, from its name to the limits of this process.

    Args:
        endpoint: The store.
        look: Makes a backend, not entered yet, that looks at the run there and hosts nothing.
    """
    host, port = endpoint.host, endpoint.port
    name, addresses = await check_name(host, port)
    checks, clock = [name], STAMPS
    if addresses:
        reached, refused = await reach(addresses, port)
        local = [address for address in addresses if is_local(address)]
        checks.append(check_port(addresses, reached, refused, local, port))
        if reached:
            server = await check_store(reached[0], port)
            checks.append(server)
            if server.level is Level.OK:
                clock = await check_clocks(look())
        useless = check_loopback(addresses)
        if useless is not None:
            checks.append(useless)
        checks.append(check_own_address(addresses[0], port))
    checks += [await check_own_name(), clock, check_open_files()]
    return checks


async def check_store(address: str, port: int) -> Finding:
    """Checks whether a TCPStore answers that lets in whoever shows no token, and whose it is."""
    try:
        is_open = await speaks_c10d(address, port)
        answer = await probe(address, port)
    except OSError as error:
        return Finding("server", Level.FAILED, f"it has stopped to answer: {error}", "try again")
    found = f"{answer.kind.value}{f' ({answer.detail})' if answer.detail else ''}"
    if is_open:
        whose = found if answer.kind in (Kind.OURS, Kind.REFUSED) else Kind.TCPSTORE.value
        return Finding("server", Level.OK, f"{whose}; it speaks the protocol of TCPStore")
    return Finding("server", Level.FAILED, found, _advice(answer))


def _advice(answer: ProbeResult) -> str:
    if answer.kind in (Kind.OURS, Kind.REFUSED):
        return _TOKENS
    if answer.kind is Kind.TLS:
        return "c10d:// speaks no TLS, as torch's stores do not: use tcp:// with --tls"
    return "give the address of a TCPStore, or another port"


async def check_clocks(backend: RendezvousBackend) -> Finding:
    """Checks whether the clock of a node in the run is seen to be so far off that stock agents drop others.

    Args:
        backend: Looks at the run; not entered yet.
    """
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
