"""How to reach an etcd cluster: what the options of ``etcd://`` and ``etcd-v2://`` are made into.

Their names are those of stock torch: ``protocol``, ``cacert``, ``cert``, ``key`` and ``etcd_prefix`` of its
``etcd``, and ``ca_cert``, ``ssl_cert`` and ``ssl_cert_key``, which mean the same, of its ``etcd-v2``. Stock
torch has no users; ours are given by ``user`` and ``password_file``, or by the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.credentials import Credentials
from arendezvous.net.endpoint import Endpoint, join_host_port

_MAX_PASSWORD: Final = 4096
_NAMES: Final = {"ca_cert": "cacert", "ssl_cert": "cert", "ssl_cert_key": "key"}


class EtcdSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a cluster. What is shown of it never contains the password.

    Attributes:
        user: The user's name; empty where etcd has no users.
        password: The user's password.
        protocol: ``http`` or ``https``.
        ca_cert: A file of the certificates of authorities (PEM); None stands for the system's.
        ssl_cert: A file of this node's certificate (PEM); None: it has none.
        ssl_cert_key: The file of its key; None: it is in `ssl_cert` too.
        prefix: What all keys begin with; None: the default of the backend.
    """

    user: str = ""
    password: str = ""
    protocol: str = "http"
    ca_cert: str | None = None
    ssl_cert: str | None = None
    ssl_cert_key: str | None = None
    prefix: str | None = None

    def __repr__(self) -> str:
        names = ("user", "protocol", "ca_cert", "ssl_cert", "ssl_cert_key", "prefix")
        return f"EtcdSettings({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __rich_repr__(self) -> Any:
        yield repr(self)

    @classmethod
    def of(cls, options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Self:
        """Takes what is given in `options`, and the user from the environment if none is given.

        The variables are ``ARENDEZVOUS_ETCD_USER``, ``ARENDEZVOUS_ETCD_PASSWORD`` and
        ``ARENDEZVOUS_ETCD_PASSWORD_FILE``.

        Args:
            options: Any of `EtcdOptions`; what is None counts as not given.
            environ: The environment.

        Raises:
            RendezvousSettingsError: A value is not allowed, two contradict each other, or the file of the
                password cannot be read.
        """
        given = {name: value for name, value in options.items() if value is not None}
        files = {name: _one_of(given, name, other) for name, other in _NAMES.items()}
        protocol = str(given.get("protocol", "https" if any(files.values()) else "http")).strip().lower()
        if protocol not in ("http", "https"):
            raise RendezvousSettingsError.of("protocol", given["protocol"], "http or https")
        for name, file in files.items():
            if file and protocol == "http":
                raise RendezvousSettingsError.of(
                    "protocol", protocol, f"https, because {name} is given, too, and means nothing without"
                )
        prefix = given.get("etcd_prefix")
        if prefix is not None and not str(prefix).strip("/"):
            raise RendezvousSettingsError.of("etcd_prefix", prefix, "text that sets these keys apart in etcd")
        user = given.get("user", environ.get("ARENDEZVOUS_ETCD_USER", ""))
        password = _password(given, environ)
        if password and not user:
            raise RendezvousSettingsError.of("user", user, "the name of the user whose password is given")
        return cls(user=str(user), password=password, protocol=protocol, prefix=prefix, **files)

    def arguments(self, endpoint: Endpoint) -> dict[str, Any]:
        """Returns what a store or a backend of etcd is made with, besides its time-outs."""
        urls = [f"{self.protocol}://{join_host_port(host, port)}" for host, port in endpoint.hosts]
        arguments = {
            "endpoints": urls,
            "user": self.user or None,
            "password": self.password,
            "ca_cert": self.ca_cert,
            "ssl_cert": self.ssl_cert,
            "ssl_cert_key": self.ssl_cert_key,
        }
        return arguments if self.prefix is None else {**arguments, "prefix": self.prefix}


def options_of(credentials: Credentials, scheme: str) -> dict[str, Any]:
    """Returns the files that a command was given, as options of etcd.

    Raises:
        RendezvousSettingsError: A name for the server's certificate was given, for which there is no option.
    """
    if credentials.server_name:
        expected = f"left out for {scheme}://, where certificates have to be for the URL's hosts"
        raise RendezvousSettingsError.of("tls_server_name", credentials.server_name, expected)
    files = {"cacert": credentials.ca, "cert": credentials.cert, "key": credentials.key}
    given: dict[str, Any] = {name: file for name, file in files.items() if file}
    return {**given, "protocol": "https"} if credentials.uses_tls else given


def _one_of(given: Mapping[str, Any], name: str, other: str) -> str | None:
    """Returns the value of an option that has two names."""
    values = {str(given[each]) for each in (name, other) if given.get(each)}
    if len(values) > 1:
        raise RendezvousSettingsError.of(name, given[name], f"the same as {other}, or left out")
    return values.pop() if values else None


def _password(given: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    if given.get("password"):
        return str(given["password"])
    if given.get("password_file"):
        return _read_password(str(given["password_file"]))
    if environ.get("ARENDEZVOUS_ETCD_PASSWORD"):
        return environ["ARENDEZVOUS_ETCD_PASSWORD"]
    file = environ.get("ARENDEZVOUS_ETCD_PASSWORD_FILE", "")
    return _read_password(file) if file else ""


def _read_password(path: str) -> str:
    """Reads the first line of a file."""
    expected = "a file whose first line is the password"
    try:
        with Path(path).open("rb") as file:
            line = file.read(_MAX_PASSWORD).partition(b"\n")[0].decode().rstrip("\r")
    except (OSError, UnicodeError) as error:
        raise RendezvousSettingsError(
            f"password_file is {path!r}, which cannot be read ({error}); expected {expected}",
            name="password_file",
            value=path,
            expected=expected,
        ) from error
    if not line:
        raise RendezvousSettingsError.of("password_file", path, expected)
    return line
