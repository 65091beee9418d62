"""What one hostile client does to a server with what a round carries, by name; see `benchmarks.attacks`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Final

from arendezvous.law import operations as ops
from arendezvous.law.rules import Brought, Role, RoundRules
from arendezvous.law.state import NodeDesc, RunSettings
from arendezvous.wire.native.messages import GetGone, GetRoster, WatchRun, encode
from benchmarks.attacks import (
    FULL_TOKEN,
    READ_TOKEN,
    RUN,
    Attack,
    Target,
    drain,
    drain_for_a_while,
    keep_open,
    nothing,
    propose,
    session,
    until_dropped,
)

LARGE: Final = 4000  # members; one session speaks for 4096 at most
KNOWN: Final = (
    b'"' + b"x" * 1000 + b'"'
)  # JSON of about as much as a state, or a value at a barrier, may have
LEAST: Final = RunSettings(1, LARGE, 0.0, 600.0)


def _large(settings: RunSettings, brings: Brought | None, label: str = "") -> list[ops.Operation]:
    descs = (NodeDesc(f"n{number}", label=label, brings=brings) for number in range(LARGE))
    return [ops.Join(desc, settings) for desc in descs]


def run_with_data(target: Target) -> None:
    """Has 4,000 nodes join one run with 4 KiB of data each."""
    sock = session(target)
    data = b'"' + b"x" * 4000 + b'"'
    propose(sock, *_large(RunSettings(LARGE, LARGE, 0.0, 600.0), Brought(data=data)))
    drain_for_a_while(sock)
    keep_open(sock)


def ask_for_rosters(target: Target) -> None:
    """Asks for all pages of a roster of 16 MiB without end, on 50 connections, of which half read."""
    asks = [GetRoster(number, 1, 0, first) for number, first in enumerate(range(0, LARGE, 10), 1)]
    request = b"".join(map(encode, asks)) + encode(GetGone(LARGE, 1, 0))
    socks = [session(target, RUN, READ_TOKEN) for _ in range(50)]

    def push(number: int) -> None:
        with until_dropped():
            while True:
                socks[number].sendall(request)

    for number in range(len(socks)):
        threading.Thread(target=push, args=(number,), daemon=True).start()
    drain(*socks[::2])


def join_with_facts(target: Target) -> None:
    """Has 4,000 nodes join with 16 facts each, meet and leave, over and over."""
    names = [f"fact{number}" for number in range(16)]
    rules = RoundRules(facts=dict.fromkeys(names, "sum"))
    settings = RunSettings(LARGE, LARGE, 0.0, 600.0, rules=rules)
    joins = _large(settings, Brought(facts=dict.fromkeys(names, 7)))
    leaves = [ops.Leave(f"n{number}") for number in range(LARGE)]
    _without_end(target, lambda: itertools.cycle([*joins, *leaves]))


def join_with_roles(target: Target) -> None:
    """Has 4,000 nodes of 64 roles wait, and moves what the roles may have, over and over."""
    roles = {f"role{number}": Role(1, LARGE) for number in range(63)}
    rules = RoundRules(roles=roles | {"never": Role(1, 1)})
    settings = RunSettings(64, 63 * LARGE + 1, 3600.0, 600.0, rules=rules)
    joins = [
        ops.Join(NodeDesc(f"n{number}", brings=Brought(f"role{number % 63}", slots=8)), settings)
        for number in range(LARGE)
    ]

    def moves() -> Iterator[ops.Operation]:
        for number in itertools.count():
            yield ops.Resize(1, 1 + number % LARGE, f"role{number % 63}", "bench", "x" * 256)

    _without_end(target, lambda: itertools.chain(joins, moves()))


def update(target: Target) -> None:
    """Changes states of 1 KiB and steps of 4,000 members without end, watched by 500, half of them unread."""
    watchers = [session(target, RUN, READ_TOKEN) for _ in range(500)]
    for sock in watchers:
        sock.sendall(encode(WatchRun(1)))
    for sock in watchers[::2]:
        threading.Thread(target=drain, args=(sock,), daemon=True).start()

    def changes() -> Iterator[ops.Operation]:
        for number in itertools.count():
            node = f"n{number % LARGE}"
            yield ops.Update(node, b"[%d,%s]" % (number, KNOWN))
            yield ops.Progress(node, number)

    _without_end(target, lambda: itertools.chain(_large(LEAST, None), changes()))


def arrive(target: Target) -> None:
    """Has 4,000 members come to barriers of theirs with values of 1 KiB, and withdraw, without end."""

    def coming() -> Iterator[ops.Operation]:
        for turn in itertools.count():
            for number in range(LARGE):
                value = b"[%d,%s]" % (number, KNOWN)
                yield ops.Arrive(f"n{number}", 1, 0, f"barrier{number % 80}", turn, "same", value)
            for number in range(LARGE):
                yield ops.Withdraw(f"n{number}", 1, 0, f"barrier{number % 80}", turn)

    _without_end(target, lambda: itertools.chain(_all_at_once(), coming()))


def pass_barriers(target: Target) -> None:
    """Has 4,000 members pass one barrier after the other, with a value each, which are summed up."""

    def passing() -> Iterator[ops.Operation]:
        for turn in itertools.count():
            for number in range(LARGE):
                yield ops.Arrive(f"n{number}", 1, 0, "b", turn, "sum", b"%d" % number)

    _without_end(target, lambda: itertools.chain(_all_at_once(), passing()))


def decide(target: Target) -> None:
    """Decides all that operators may, in a run of 4,000 that wait, without end."""

    def decisions() -> Iterator[ops.Operation]:
        for number in itertools.count():
            why = f"{number:256d}"
            yield ops.Quarantine(f"label{number % 2000}", is_label=True, by="bench", reason=why)
            yield ops.Quarantine(f"nobody{number}", by="bench", reason=why, seconds=0.01 + number % 7)
            yield ops.Pardon(f"label{(number - 5) % 2000}", is_label=True, by="bench")
            yield ops.Hold("bench", why)
            yield ops.Resize(1 + number % LARGE, LARGE, by="bench", reason=why)
            yield ops.Release("bench")

    waiting = RunSettings(LARGE + 1, LARGE + 1, 0.0, 600.0)
    _without_end(target, lambda: itertools.chain(_large(waiting, None, "rack"), decisions()))


def shut_out(target: Target) -> None:
    """Quarantines and pardons the rack that 4,000 members are in, who join again, without end."""
    joins = _large(LEAST, None, "rack")
    out: list[ops.Operation] = [ops.Quarantine("rack", is_label=True), ops.Pardon("rack", is_label=True)]
    _without_end(target, lambda: itertools.cycle([*joins, *out]))


def _all_at_once() -> list[ops.Operation]:
    return _large(RunSettings(LARGE, LARGE, 0.0, 600.0), None)


def _without_end(target: Target, begin: Callable[[], Iterator[ops.Operation]]) -> None:
    """Proposes as fast as it is taken; what comes of it is read. Begins anew where the server drops it."""
    while True:
        operations = begin()
        sock = session(target, RUN, FULL_TOKEN)
        threading.Thread(target=drain, args=(sock,), daemon=True).start()
        with until_dropped():
            while True:
                propose(sock, *itertools.islice(operations, 500))


ROUND_ATTACKS: Final[dict[str, Attack]] = {
    "rosters": Attack("rosters of 16 MiB, 50 connections, half unread", run_with_data, ask_for_rosters),
    "facts": Attack("4,000 nodes with 16 facts meet and leave", nothing, join_with_facts),
    "roles": Attack("64 roles of 4,000 nodes, resized without end", nothing, join_with_roles),
    "states": Attack("states of 1 KiB of 4,000, 500 watchers", nothing, update),
    "barriers": Attack("barriers of 4,000 with 1 KiB each that fail", nothing, arrive),
    "barriers-passed": Attack("barriers of 4,000 that pass", nothing, pass_barriers),
    "decisions": Attack("decisions over 4,000 that wait, without end", nothing, decide),
    "quarantine": Attack("4,000 members shut out and let in", nothing, shut_out),
}
"""By a short name, in the order in which they are played."""
