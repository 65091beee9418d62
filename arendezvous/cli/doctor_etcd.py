"""The checks of ``arendezvous doctor`` for a run that is kept in etcd."""

from __future__ import annotations

from typing import Final

from arendezvous.cli.doctor_checks import (
    CHECK_TIMEOUT,
    Check,
    Level,
    check_name,
    check_open_files,
    check_own_address,
    check_own_name,
    reach,
)
from arendezvous.cli.open_files import open_files
from arendezvous.cli.places import backend_at
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.net.endpoint import Endpoint, join_host_port

QUORUM: Final = 3  # members: with fewer, none may fail
_RUN: Final = "doctor"  # looked for, and not joined
_CLOCKS: Final = {
    "etcd": Check("clock", Level.OK, "etcd's leases keep the only clock; no others are compared"),
    "etcd-v2": Check(
        "clock",
        Level.WARNING,
        "stock agents compare this machine's clock with theirs, if there are any",
        "keep the clocks of all nodes synchronised",
    ),
}


async def examine_etcd(endpoint: Endpoint) -> list[Check]:
    """Makes all checks of an etcd cluster, from the names of its members to the limits of this process."""
    checks: list[Check] = []
    answering = ""
    for host, port in endpoint.hosts:
        name, addresses = await check_name(host, port)
        checks.append(name)
        if addresses:
            reached, refused = await reach(addresses, port)
            checks.append(_check_member(join_host_port(host, port), reached, refused))
            answering = answering or (reached or [""])[0]
    checks.append(await check_cluster(endpoint))
    checks.append(_check_members(len(endpoint.hosts)))
    if answering:
        checks.append(check_own_address(answering, endpoint.port))
    checks.append(await check_own_name())
    checks.append(_CLOCKS[endpoint.scheme])
    checks.append(check_open_files(*open_files()))
    return _one_is_enough(checks)


async def check_cluster(endpoint: Endpoint) -> Check:
    """Whether a run could be kept there: the API, the user, the certificates, the permissions, the quorum."""
    try:
        async with backend_at(endpoint, _RUN, CHECK_TIMEOUT) as backend:
            await backend.status()
    except RendezvousError as error:
        lost = isinstance(error, RendezvousConnectionError)
        advice = "no node can join without it" if lost else "grant this user the prefix, or name another"
        return Check("cluster", Level.FAILED, error.message, advice)
    return Check("cluster", Level.OK, f"{endpoint} answers, and lets this node read the state of a run")


def _check_member(where: str, reached: list[str], refused: dict[str, str]) -> Check:
    if reached:
        return Check("port", Level.OK, f"{where} accepts connections")
    why = ", ".join(dict.fromkeys(refused.values()))
    return Check("port", Level.FAILED, f"{where}: {why}", "start this member, or correct its address")


def _check_members(count: int) -> Check:
    found = f"{count} member{'s are' if count != 1 else ' is'} named"
    if count < QUORUM:
        advice = "name all members of a cluster of three, so that nodes get by without one of them"
        return Check("members", Level.WARNING, found, advice)
    return Check("members", Level.OK, found)


def _one_is_enough(checks: list[Check]) -> list[Check]:
    """A member that is away stops nobody from joining as long as the cluster answers."""
    if any(check.name == "cluster" and check.level is Level.FAILED for check in checks):
        return checks
    return [
        Check(check.name, Level.WARNING, check.found, check.advice)
        if check.level is Level.FAILED and check.name in ("name", "port")
        else check
        for check in checks
    ]
