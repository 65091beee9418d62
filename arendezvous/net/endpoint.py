"""Endpoints, once they are parsed, and ``host:port``; how URLs are read, `arendezvous.schemes` says."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from arendezvous.errors import RendezvousSettingsError


class Endpoint(msgspec.Struct, frozen=True):
    """Says where a backend is.

    Attributes:
        scheme: The URL's scheme: the backend's name, or ``https``.
        hosts: The hosts and ports, in order; one, but where a scheme takes several; for ``memory`` its name
            and port 0.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...]

    @property
    def host(self) -> str:
        """The first host."""
        return self.hosts[0][0]

    @property
    def port(self) -> int:
        """The first port."""
        return self.hosts[0][1]

    def __str__(self) -> str:
        return f"{self.scheme}://" + ",".join(join_host_port(host, port) for host, port in self.hosts)


def parse_host_port(text: str, *, name: str, default_port: int | None = None) -> tuple[str, int]:
    """Parses ``host:port``; an IPv6 address stands in brackets, or alone without a port.

    Without a `default_port` the port must be there.

    Raises:
        RendezvousSettingsError: There is no host, or the port is none; it calls the setting `name`.
    """
    expected = "host:port" if default_port is None else "host[:port]"
    bare = text.count(":") > 1 and not text.startswith("[")
    try:
        parts = urlsplit(f"//[{text}]" if bare else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RendezvousSettingsError.of(name, text, f"{expected}, with a port from 0 to 65535") from error
    other = parts.path or parts.query or parts.fragment or parts.username is not None
    if not host or other or " " in text or not text.isprintable():
        raise RendezvousSettingsError.of(name, text, f"{expected}, with a host")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise RendezvousSettingsError.of(name, text, f"{expected}, with a host name") from error
    if port is None:
        if default_port is None:
            raise RendezvousSettingsError.of(name, text, f"{expected}, with a port from 0 to 65535")
        port = default_port
    return host, port


def join_host_port(host: str, port: int) -> str:
    """Returns ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
