"""Networks within this machine, between namespaces, whose cables a test can pull out; for root alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

NETWORKS: Final = ("etcd", "nodes")


def ip(*arguments: str) -> None:
    """Runs the command ``ip``."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)


class Namespace:
    """A machine, as far as networks are concerned, with a cable to each of the `NETWORKS`.

    Attributes:
        name: Of the namespace.
        addresses: Its address in each network.
        cables: The other end of its cable to each network.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.addresses: dict[str, str] = {}
        self.cables: dict[str, str] = {}

    @property
    def command(self) -> Sequence[str]:
        """What runs a command in it."""
        return ("ip", "netns", "exec", self.name)

    def cut(self, *networks: str) -> None:
        """Pulls cables out: what is sent is lost, and nobody is told."""
        for network in networks:
            ip("link", "set", self.cables[network], "down")

    def mend(self, *networks: str) -> None:
        """Plugs cables in again."""
        for network in networks:
            ip("link", "set", self.cables[network], "up")


class Networks:
    """Some namespaces, and the networks to which this one is connected, too.

    Attributes:
        addresses: Of this namespace, in each network.
        namespaces: The others.
    """

    def __init__(self, addresses: dict[str, str], namespaces: list[Namespace]) -> None:
        self.addresses = addresses
        self.namespaces = namespaces


def may_have_networks() -> bool:
    """Whether this process may make namespaces and networks."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    with suppress(subprocess.SubprocessError, OSError), connected(1):
        return True
    return False


@contextmanager
def connected(count: int) -> Iterator[Networks]:
    """Makes the networks, with so many namespaces in them, while the block runs."""
    mark, net = f"ar{os.getpid() % 100_000}", f"10.{100 + os.getpid() % 100}"
    with ExitStack() as stack:
        networks = Networks({}, [])
        for number, network in enumerate(NETWORKS, 1):
            bridge, networks.addresses[network] = f"{mark}{network[0]}", f"{net}.{number}.254"
            ip("link", "add", bridge, "type", "bridge")
            stack.callback(ip, "link", "del", bridge)
            ip("addr", "add", f"{networks.addresses[network]}/24", "dev", bridge)
            ip("link", "set", bridge, "up")
        for one in range(count):
            space = Namespace(f"{mark}s{one}")
            ip("netns", "add", space.name)
            stack.callback(ip, "netns", "del", space.name)
            ip("-n", space.name, "link", "set", "lo", "up")
            for number, network in enumerate(NETWORKS, 1):
                cable, inside = f"{mark}{one}{network[0]}", f"{network[0]}0"
                space.cables[network], space.addresses[network] = cable, f"{net}.{number}.{one + 1}"
                ip("link", "add", cable, "type", "veth", "peer", "name", inside, "netns", space.name)
                stack.callback(_remove, cable)
                ip("link", "set", cable, "master", f"{mark}{network[0]}")
                ip("-n", space.name, "addr", "add", f"{space.addresses[network]}/24", "dev", inside)
                ip("-n", space.name, "link", "set", inside, "up")
                ip("link", "set", cable, "up")
            networks.namespaces.append(space)
        yield networks


def _remove(cable: str) -> None:
    with suppress(subprocess.SubprocessError):  # it may be gone with its namespace
        ip("link", "del", cable)
