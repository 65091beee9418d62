"""Errors for a server that cannot be reached, is not to be trusted, or is not understood."""

from __future__ import annotations

import errno
import logging

from arendezvous.errors import RendezvousConnectionError
from arendezvous.net.credentials import Credentials
from arendezvous.net.tls import explain

logger = logging.getLogger(__name__)


class Skipped:
    """Passes over what a server has sent and nobody here understands; the log tells of the first."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._is_first = True

    def note(self, what: str, why: str) -> None:
        """Passes over `what`, such as "an event"."""
        is_first, self._is_first = self._is_first, False
        if is_first:
            logger.warning(
                "%s sent %s that is not understood: %s; this one and others are passed over: is it of another"
                " version?", self._where, what, why,
            )  # fmt: skip


def unreachable(endpoint: str, seconds: float, reason: str) -> RendezvousConnectionError:
    """The error for a server that could not be reached for so many seconds."""
    check = "check that a server listens there, and that the name and port are right"
    message = f"{endpoint} could not be reached for {seconds:g} s: {reason}; {check}"
    return RendezvousConnectionError(message, endpoint=endpoint, doing="connecting")


class MisdirectedError(ConnectionError):
    """The other side speaks another protocol: trying again is of no use."""


def hopeless(endpoint: str, reason: str, *, distrusted: bool) -> RendezvousConnectionError:
    """The error where trying again is of no use: without trust, or where another protocol is spoken."""
    message = f"{endpoint}{' cannot be trusted' if distrusted else ''}: {reason}"
    return RendezvousConnectionError(message, endpoint=endpoint, doing="connecting")


def why_not_connected(error: OSError | TimeoutError, seconds: float, credentials: Credentials) -> str:
    """Says why an attempt to connect by these credentials, which was given so many seconds, has failed."""
    if credentials.uses_tls and isinstance(error, ConnectionResetError | ConnectionAbortedError):
        return "the TLS handshake was broken off: the server there may not speak TLS"
    return explain(error, credentials.names) or str(error) or f"no answer within {seconds:g} s"


def is_refusal(error: OSError) -> bool:
    """Whether nobody listens at any of the addresses; for several, asyncio puts all errors into one text."""
    return isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error)
