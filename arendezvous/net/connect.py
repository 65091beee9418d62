"""Connecting to a server for what needs no speed: looking on, and finding out what is wrong."""

from __future__ import annotations

import anyio
import anyio.abc

from arendezvous.net.credentials import Credentials
from arendezvous.net.tls import explain


async def connect(host: str, port: int, credentials: Credentials) -> anyio.abc.ByteStream:
    """Connects, with TLS if the credentials say so.

    Raises:
        OSError: There is no connection to be had, or the handshake failed; `why` says it in words.
        anyio.BrokenResourceError: The server broke off the handshake; so does `why`.
        RendezvousSettingsError: A file of the TLS settings cannot be read, or holds something else.

    Cancellation: safe.
    """
    context = credentials.ssl_context()
    if context is None:
        return await anyio.connect_tcp(host, port)
    name = credentials.server_name or host
    try:
        return await anyio.connect_tcp(
            host,
            port,
            ssl_context=context,
            tls_hostname=name,
            tls_standard_compatible=False,  # our frames have lengths: a cut is noticed without TLS's own end
        )
    except anyio.EndOfStream as error:
        raise anyio.BrokenResourceError from error


def why(error: BaseException, credentials: Credentials) -> str:
    """Says why there is no connection, or not any more; empty if `error` does not tell."""
    cause = error.__cause__ or error
    said = explain(cause, credentials.names)
    if isinstance(error, anyio.BrokenResourceError) and not said:
        return "the connection was broken off"
    return said or str(cause)
