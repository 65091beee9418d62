"""Addresses of this machine: which of them others can reach, and which they are told."""

from __future__ import annotations

import ipaddress
import logging
import socket
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
        if _is_address(host):
            return address_towards(host, port)
        infos = await anyio.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        return address_towards(str(infos[0][4][0]), port)
    except OSError as error:
        logger.info("this machine's address on the way to %s:%s is unknown: %s", host, port, error)
    return ""


def address_towards(address: str, port: int) -> str:
    """Returns the address of this machine on the way to another; nothing is sent there to find out.

    Raises:
        OSError: There is no way.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port or _PORT))  # picks a route
        return str(probe.getsockname()[0])


def shown_address(host: str) -> str:
    """Returns what others write for a server that listens on `host`.

    That is `host`; for all addresses of the machine it is the one from which packets leave it, or that of
    loopback if none can.
    """
    if not is_unspecified(host):
        return host
    for anywhere in _ANYWHERE:
        try:
            return address_towards(anywhere, _PORT)
        except OSError:
            continue
    return "127.0.0.1"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_unspecified(host: str) -> bool:
    """Tells whether `host` stands for all addresses of a machine, and so for none that one can go to."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Tells whether only this machine can reach `host`; never asks DNS."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


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
