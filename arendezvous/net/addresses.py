"""Addresses of this machine: which of them others can reach, and which they are told."""

from __future__ import annotations

import ipaddress
import logging
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

logger = logging.getLogger(__name__)

_ANYWHERE: Final = ("192.0.2.1", "2001:db8::1")  # for documentation (RFC 5737, RFC 3849): nobody is there
_PORT: Final = 9
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE: Final = Path("/proc/self/ns/net")


async def own_address(host: str, port: int) -> str:
    """Returns the address of this machine on the way to `host`; empty if unknown. Nothing is sent to it."""
    try:
        if _parsed(host) is None:
            host = str((await anyio.getaddrinfo(host, port, type=socket.SOCK_DGRAM))[0][4][0])
        return address_towards(host, port)
    except OSError as error:
        logger.info("this machine's address on the way to %s:%s is unknown: %s", host, port, error)
    return ""


def address_towards(address: str, port: int) -> str:
    """Returns the address of this machine on the way to another, without a packet; `OSError`: no way."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port or _PORT))  # picks a route
        return str(probe.getsockname()[0])


def shown_address(host: str) -> str:
    """Returns what others write for a server that listens on `host`.

    For all addresses of the machine that is the one from which packets leave it; of loopback if none can.
    """
    if not is_unspecified(host):
        return host
    for anywhere in _ANYWHERE:
        with suppress(OSError):
            return address_towards(anywhere, _PORT)
    return "127.0.0.1"


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` is; None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_unspecified(host: str) -> bool:
    """Tells whether `host` stands for all addresses of a machine, and so for none that one can go to."""
    address = _parsed(host)
    return address is not None and address.is_unspecified


def is_loopback(host: str) -> bool:
    """Tells whether only this machine can reach `host`; never asks DNS."""
    address = _parsed(host.partition("%")[0])
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback


def boot_id() -> str:
    """Names this start of the machine, since which its uptime counts; empty if that is not known."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""  # not Linux


def loopback_id() -> str:
    """Names all that reach each other by loopback: the same for them alone; empty if that is not known."""
    try:
        return f"{boot_id()} {_NAMESPACE.readlink()}" if boot_id() else ""
    except OSError:
        return ""
