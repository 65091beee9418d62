"""Checks ``etcd://`` and ``etcd-v2://``: the members of a cluster, and whether a run could be kept there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from arendezvous.doctor.checks import (
    Finding,
    Level,
    PortReach,
    check_name,
    check_open_files,
    check_own_address,
    check_own_name,
    reach,
)
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.net.endpoint import Endpoint, join_host_port

_FULL: Final = "database space exceeded"
QUORUM: Final = 3  # members: with fewer, none may fail
LEASES: Final = Finding("clock", Level.OK, "etcd's leases keep the only clock; no others are compared")


async def examine_etcd(
    endpoint: Endpoint, ask: Callable[[], Awaitable[str]], clock: Finding
) -> list[Finding]:
    """Makes all checks of an etcd cluster, from the names of its members to the limits of this process.

    `ask` asks there what a node asks that joins, and returns what was found, to follow on "answers, and". The
    `clock` is `LEASES` or `STAMPS`.
    """
    checks: list[Finding] = []
    answering = ""
    for host, port in endpoint.hosts:
        name, addresses = await check_name(host, port)
        checks.append(name)
        if addresses:
            there = await reach(addresses, port)
            checks.append(_check_member(join_host_port(host, port), there))
            answering = answering or (there.reached or [""])[0]
    checks.append(await _check_cluster(endpoint, ask))
    checks.append(_check_members(len(endpoint.hosts)))
    if answering:
        checks.append(check_own_address(answering, endpoint.port))
    checks += [await check_own_name(), clock, check_open_files()]
    if any(check.name == "cluster" and check.level is Level.FAILED for check in checks):
        return checks
    return [_excused(check) for check in checks]


async def _check_cluster(endpoint: Endpoint, ask: Callable[[], Awaitable[str]]) -> Finding:
    """Checks the API, the user, certificates, permissions and the quorum, by asking as a node does."""
    try:
        found = await ask()
    except RendezvousError as error:
        return Finding("cluster", Level.FAILED, error.message, _advice(error))
    return Finding("cluster", Level.OK, f"{endpoint} answers, and {found}")


def _advice(error: RendezvousError) -> str:
    if isinstance(error, RendezvousConnectionError):
        return "no node can join without it"
    if _FULL in error.message:
        return "etcd is full: compact and defragment it, or raise its quota; then disarm its alarm (etcdctl)"
    return "grant this user the prefix, or name another"


def _check_member(where: str, there: PortReach) -> Finding:
    if there.reached:
        return Finding("port", Level.OK, f"{where} accepts connections")
    why = ", ".join(dict.fromkeys(there.refusals.values()))
    return Finding("port", Level.FAILED, f"{where}: {why}", "start this member, or correct its address")


def _check_members(count: int) -> Finding:
    found = f"{count} member{'s are' if count != 1 else ' is'} named"
    if count < QUORUM:
        advice = "name all members of a cluster of three, so that nodes get by without one of them"
        return Finding("members", Level.WARNING, found, advice)
    return Finding("members", Level.OK, found)


def _excused(check: Finding) -> Finding:
    """Makes a warning of a member that is away: it stops nobody as long as the cluster answers."""
    is_away = check.level is Level.FAILED and check.name in ("name", "port")
    return msgspec.structs.replace(check, level=Level.WARNING) if is_away else check
