"""How to reach an etcd cluster: what the options of ``etcd://`` and ``etcd-v2://`` are made into.

Their names are those of stock torch: ``protocol``, ``cacert``, ``cert``, ``key`` and ``etcd_prefix`` of its
``etcd``, and ``ca_cert``, ``ssl_cert`` and ``ssl_cert_key``, which mean the same, of its ``etcd-v2``. Stock
torch has no users; ours are given by ``user`` and ``password_file``, or by the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.endpoint import Endpoint, join_host_port
from arendezvous.net.tls import NO_FILES, TlsFiles, TlsNames

_MAX_PASSWORD: Final = 4096
_NAMES: Final = (("cacert", "ca_cert"), ("cert", "ssl_cert"), ("key", "ssl_cert_key"))  # of etcd, of etcd-v2


def etcd_arguments(
    options: Mapping[str, Any],
    endpoint: Endpoint,
    environ: Mapping[str, str] = os.environ,
    *,
    tls: TlsFiles = NO_FILES,
) -> dict[str, Any]:
    """Returns what a store or a backend of etcd is made with, besides its time-outs.

    That is its `EtcdCluster`, and the prefix, if one is given. Any of `EtcdOptions` may be given, and what is
    None counts as not given. The user comes from the environment if it is not among them:
    ``ARENDEZVOUS_ETCD_USER``, ``ARENDEZVOUS_ETCD_PASSWORD`` and ``ARENDEZVOUS_ETCD_PASSWORD_FILE``.

    Raises:
        RendezvousSettingsError: A value is not allowed, two contradict each other, or the file of the
            password cannot be read.
    """
    from arendezvous.etcd.cluster import EtcdCluster  # here, because not everybody needs aiohttp

    given = {name: value for name, value in options.items() if value is not None}
    names = TlsNames(*(_name_given(given, *names) for names in _NAMES))
    ca, cert, key = (str(given.get(name) or "") for name in names[:3])
    tls = tls or TlsFiles(ca, cert, key, names)
    protocol = str(given.get("protocol", "https" if tls else "http")).strip().lower()
    if protocol not in ("http", "https"):
        raise RendezvousSettingsError.of("protocol", given["protocol"], "http or https")
    if tls and protocol == "http":
        name = tls.names.ca if tls.ca else tls.names.cert
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
    urls = tuple(f"{protocol}://{join_host_port(host, port)}" for host, port in endpoint.hosts)
    cluster = EtcdCluster(urls=urls, user=str(user), password=password, tls=tls)
    return {"cluster": cluster} if prefix is None else {"cluster": cluster, "prefix": prefix}


def _name_given(given: Mapping[str, Any], name: str, other: str) -> str:
    """Returns the name by which an option that has two was given; the first if it was not."""
    if given.get(name) and given.get(other) and given[name] != given[other]:
        raise RendezvousSettingsError.of(other, given[other], f"the same as {name}, or left out")
    return other if given.get(other) and not given.get(name) else name


def _password(given: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    variable = "ARENDEZVOUS_ETCD_PASSWORD"
    for known, text, file in ((given, "password", "password_file"), (environ, variable, f"{variable}_FILE")):
        if known.get(text):
            return str(known[text])
        if known.get(file):
            return _read_password(str(known[file]))
    return ""


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
