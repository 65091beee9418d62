"""Finds the proxy on the way to an HTTP server, as the environment says."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from arendezvous.errors import RendezvousSettingsError


def proxy_of(url: str) -> str:
    """Returns the URL of the proxy that the environment names for `url`; empty: none.

    ``NO_PROXY`` means what it does to the standard library. It may name networks, too: ``10.0.0.0/8``. Raises
    `RendezvousSettingsError` if it names a proxy that is none.
    """
    parts, proxies = urlsplit(url), getproxies()
    proxy, host = proxies.get(parts.scheme), parts.hostname or ""
    if proxy is None or proxy_bypass(f"{host}:{parts.port}") or _is_in_network(host, proxies.get("no", "")):
        return ""
    return checked_proxy("the proxy in the environment", proxy)


def without_user(proxy: str) -> str:
    """Returns the URL of a proxy as it may be shown."""
    scheme, _, rest = proxy.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _is_in_network(host: str, networks: str) -> bool:
    """Whether `host` is an address in one of the networks; names are not looked up, and others let pass."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        for network in filter(lambda each: "/" in each, networks.split(",")):
            with suppress(ValueError):
                if address in ipaddress.ip_network(network.strip(), strict=False):
                    return True
    return False


def checked_proxy(name: str, proxy: str) -> str:
    """Returns the URL of a proxy, with its scheme; `RendezvousSettingsError`, about `name`: it is none."""
    expected = "a URL such as http://host:3128, or no proxy for this server (NO_PROXY)"
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        is_one = parts.scheme == "http" and parts.hostname and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise RendezvousSettingsError.of(name, proxy.rpartition("@")[2], expected)
    return parts.geturl()
