"""The members of an etcd cluster as their users write them: URLs, and files for TLS."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.endpoint import join_host_port, parse_host_port

DEFAULT_PORT: Final = 2379


def cluster(
    endpoints: str | Sequence[str], ca_cert: str | None, ssl_cert: str | None, ssl_cert_key: str | None
) -> tuple[list[str], ssl.SSLContext | None]:
    """The members' base URLs, and the TLS settings; with any, endpoints without a scheme are https.

    Raises:
        RendezvousSettingsError: An endpoint or a file is not what it has to be.
    """
    tls = _tls_context(ca_cert, ssl_cert, ssl_cert_key)
    return _base_urls(endpoints, secure=tls is not None), tls


def _base_urls(endpoints: str | Sequence[str], *, secure: bool) -> list[str]:
    """The base URL of each endpoint, in the order given, each once.

    Args:
        endpoints: ``host[:port]`` or ``http(s)://host[:port]``; several in a sequence, or with commas.
        secure: Whether those without a scheme are meant to be https.

    Raises:
        RendezvousSettingsError: There is none, or one is something else.
    """
    texts = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    urls = [_url(text.strip(), secure=secure) for text in texts if text.strip()]
    if not urls:
        raise RendezvousSettingsError.of("endpoints", endpoints, "host:port of at least one member of etcd")
    return list(dict.fromkeys(urls))


def _url(text: str, *, secure: bool) -> str:
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = ("https" if secure else "http"), text
    if scheme not in ("http", "https"):
        raise RendezvousSettingsError.of("endpoints", text, "host:port, or a URL with http:// or https://")
    host, port = parse_host_port(rest.rstrip("/"), name="endpoints", default_port=DEFAULT_PORT)
    return f"{scheme}://{join_host_port(host, port)}"


def _tls_context(
    ca_cert: str | None, ssl_cert: str | None, ssl_cert_key: str | None
) -> ssl.SSLContext | None:
    """The TLS settings that the files give; None if none is given.

    Raises:
        RendezvousSettingsError: A file cannot be read, or is not what it should be.
    """
    if ssl_cert_key is not None and ssl_cert is None:
        raise RendezvousSettingsError.of("ssl_cert", None, "the certificate of the key in ssl_cert_key")
    if ca_cert is None and ssl_cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca_cert)
    except (OSError, ValueError) as error:
        raise RendezvousSettingsError.of(
            "ca_cert", ca_cert, f"a readable file of certificates in PEM ({error})"
        ) from error
    if ssl_cert is not None:
        try:
            context.load_cert_chain(ssl_cert, ssl_cert_key)
        except (OSError, ValueError) as error:
            raise RendezvousSettingsError.of(
                "ssl_cert, ssl_cert_key",
                (ssl_cert, ssl_cert_key),
                f"readable files of a certificate and its key in PEM ({error})",
            ) from error
    return context
