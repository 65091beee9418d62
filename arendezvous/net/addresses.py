"""The address of this machine that packets to a server carry: others in its network can reach it."""

from __future__ import annotations

import logging
import socket

import anyio

logger = logging.getLogger(__name__)


async def own_address(host: str, port: int) -> str:
    """The address of this machine on the way to `host`; empty if unknown. Nothing is sent to find out."""
    try:
        infos = await anyio.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        for family, kind, protocol, _, where in infos:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(where)
                return str(probe.getsockname()[0])
    except OSError as error:
        logger.info("this machine's address on the way to %s:%s is unknown: %s", host, port, error)
    return ""
