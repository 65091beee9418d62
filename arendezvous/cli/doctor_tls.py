"""The doctor's look at TLS: whether the handshake is done, and for how long the certificate is good."""

from __future__ import annotations

import ssl
import time
from typing import Final

import anyio
import anyio.streams.tls
import msgspec

from arendezvous.cli.doctor_checks import CHECK_TIMEOUT, Check, Level
from arendezvous.net.connect import connect, why
from arendezvous.net.credentials import Credentials

SOON: Final = 7.0  # days


async def check_tls(host: str, address: str, port: int, credentials: Credentials) -> Check:
    """Whether the server at `address` shows a certificate for `host` that is trusted, and for how long.

    Args:
        host: The endpoint's host.
        address: One of its addresses.
        port: Its port.
        credentials: With TLS settings.
    """
    expected = msgspec.structs.replace(credentials, server_name=credentials.server_name or host)
    try:
        with anyio.fail_after(CHECK_TIMEOUT):
            stream = await connect(address, port, expected)
    except TimeoutError:
        return Check("tls", Level.FAILED, f"no handshake within {CHECK_TIMEOUT:g} s", "is it a TLS port?")
    except (OSError, anyio.BrokenResourceError) as error:
        advice = "" if isinstance(error, ssl.SSLError) else "the server there may not speak TLS on this port"
        return Check("tls", Level.FAILED, why(error), advice)
    async with stream:
        version = stream.extra(anyio.streams.tls.TLSAttribute.tls_version)  # noqa: S610 - not Django's
        certificate = stream.extra(anyio.streams.tls.TLSAttribute.peer_certificate)  # noqa: S610 - as above
    assert isinstance(certificate, dict)  # noqa: S101 - it was verified
    return judge(version, str(certificate["notAfter"]), time.time())


def judge(version: str, not_after: str, now: float) -> Check:
    """What to say of a certificate that is trusted now.

    Args:
        version: The version of TLS.
        not_after: When it expires, as OpenSSL writes it.
        now: Seconds since 1970.
    """
    days = (ssl.cert_time_to_seconds(not_after) - now) / 86_400
    found = f"{version}; the certificate is trusted, and good until {not_after}"
    if days < SOON:
        return Check("tls", Level.WARNING, f"{found}, {days:.1f} days from now", "renew it")
    return Check("tls", Level.OK, found)
