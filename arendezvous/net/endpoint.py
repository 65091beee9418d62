"""Endpoints: URLs such as ``tcp://host:29400``, or ``host[:port]`` with the backend named elsewhere."""

from __future__ import annotations

import difflib
import functools
from typing import Final
from urllib.parse import urlsplit

import msgspec

from arendezvous.errors import RendezvousSettingsError

DEFAULT_PORTS: Final = {
    "tcp": 29400,
    "http": 29401,
    "https": 29401,
    "c10d": 29400,
    "etcd": 2379,
    "etcd-v2": 2379,
    "static": 29400,
    "memory": 0,
}


class Endpoint(msgspec.Struct, frozen=True):
    """A parsed endpoint.

    Attributes:
        scheme: The backend's name, or ``https``.
        hosts: The hosts and ports, in order; one, but for ``etcd`` and ``etcd-v2``; for ``memory`` its
            name and port 0.
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


@functools.lru_cache(maxsize=64)
def parse_endpoint(endpoint: str, backend: str | None = None) -> Endpoint:
    """Parses an endpoint.

    Args:
        endpoint: A URL; or ``host[:port]``, if `backend` is given.
        backend: The scheme of an endpoint that has none, and the only one allowed of one that has; None:
            the URL decides.

    Raises:
        RendezvousSettingsError: It is malformed, names no host, or has an unknown scheme.
    """
    scheme, separator, rest = endpoint.partition("://")
    if not separator:
        if backend is None:
            raise RendezvousSettingsError.of("endpoint", endpoint, "a URL such as tcp://host:29400")
        scheme, rest = backend, endpoint
    if scheme not in DEFAULT_PORTS:
        near = difflib.get_close_matches(scheme, DEFAULT_PORTS, 1)
        hint = f"; did you mean {near[0]}://?" if near else ""
        schemes = ", ".join(f"{name}://" for name in DEFAULT_PORTS)
        raise RendezvousSettingsError.of("endpoint", endpoint, f"a URL with one of {schemes}{hint}")
    if backend is not None and scheme.replace("https", "http") != backend:
        raise RendezvousSettingsError.of("endpoint", endpoint, f"a URL that begins with {backend}://")
    rest = rest.rstrip("/")
    if scheme == "memory":
        return Endpoint(scheme, ((rest, 0),))
    if any(mark in rest for mark in "/?#@"):
        expected = f"{scheme}://host[:port] without path, query or user name"
        raise RendezvousSettingsError.of("endpoint", endpoint, expected)
    many = rest.split(",") if scheme in ("etcd", "etcd-v2") else [rest]
    default = DEFAULT_PORTS[scheme]
    return Endpoint(
        scheme, tuple(parse_host_port(part, name="endpoint", default_port=default) for part in many)
    )


def parse_host_port(text: str, *, name: str, default_port: int | None = None) -> tuple[str, int]:
    """Parses ``host:port``; an IPv6 address stands in brackets, or alone without a port.

    Args:
        text: What to parse.
        name: The setting's name, for the error.
        default_port: Used where there is no port; None: the port must be there.

    Raises:
        RendezvousSettingsError: There is no host, or the port is none.
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
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
