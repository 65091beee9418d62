"""A checker over the logs that nodes write themselves: of what they were told, nothing is ever taken back.

Nodes note what they were told (`Told`), in the order in which it happened to each. `faults` says what of it
cannot all be true of a server that forgets nothing and does nothing twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Rank(NamedTuple):
    """A node has been told its rank."""

    node: str
    incarnation: int
    round: int
    rank: int
    world_size: int
    digest: str

    @property
    def generation(self) -> tuple[int, int]:
        return (self.incarnation, self.round)


class Wrote(NamedTuple):
    """The only writer of a key has written a number that rises; `sure`: the server said so."""

    key: str
    value: int
    sure: bool


class Read(NamedTuple):
    """Somebody has read a key, having begun when the log had `begun` entries."""

    key: str
    value: int
    begun: int


class Pushed(NamedTuple):
    """A value, which is pushed once, went into the queue; `sure`: the server said so."""

    value: str
    sure: bool


class Popped(NamedTuple):
    """A value came out of the queue; None: nobody knows whether one did."""

    value: str | None


Told = Rank | Wrote | Read | Pushed | Popped


@dataclass
class Log:
    """What happened, in order, to all nodes.

    Attributes:
        told: It.
        left: What was in the queue in the end.
    """

    told: list[Told] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def faults(log: Log) -> list[str]:
    """Says what is wrong with a log; empty if nothing is."""
    ranks = [one for one in log.told if isinstance(one, Rank)]
    return [*_round_faults(ranks), *_key_faults(log.told), *_queue_faults(log)]


def _round_faults(ranks: list[Rank]) -> Iterator[str]:
    latest: dict[str, Rank] = {}
    of_round: dict[tuple[int, int], dict[str, Rank]] = defaultdict(dict)
    for one in ranks:
        before = latest.get(one.node)
        if before is not None and one.generation <= before.generation:
            yield f"{one.node} falls back from {before.generation} to {one.generation}"
        latest[one.node] = one
        of_round[one.generation][one.node] = one
    for generation, members in of_round.items():
        rosters = {(one.digest, one.world_size) for one in members.values()}
        if len(rosters) > 1:
            yield f"round {generation} has several member lists: {rosters}"
        doubled = [rank for rank, n in Counter(one.rank for one in members.values()).items() if n > 1]
        if doubled:
            yield f"round {generation} has the ranks {doubled} twice"
        outside = [one for one in members.values() if not 0 <= one.rank < one.world_size]
        if outside:
            yield f"round {generation} has ranks that there cannot be: {outside}"


def _key_faults(told: list[Told]) -> Iterator[str]:
    sure: dict[str, list[tuple[int, int]]] = defaultdict(lambda: [(-1, 0)])
    tried: dict[str, int] = defaultdict(int)
    for at, one in enumerate(told):
        if isinstance(one, Wrote):
            tried[one.key] = max(one.value, tried[one.key])
            if one.sure:
                sure[one.key].append((at, max(one.value, sure[one.key][-1][1])))
        elif isinstance(one, Read):
            least = next(value for when, value in reversed(sure[one.key]) if when < one.begun)
            if not least <= one.value <= tried[one.key]:
                yield f"{one.key} is {one.value}, but {least} was there, and at most {tried[one.key]}"
            sure[one.key].append((at, max(one.value, sure[one.key][-1][1])))


def _queue_faults(log: Log) -> Iterator[str]:
    pushed = [one for one in log.told if isinstance(one, Pushed)]
    popped = [one.value for one in log.told if isinstance(one, Popped)]
    out = Counter([value for value in popped if value is not None] + log.left)
    known = {one.value for one in pushed}
    for value, count in out.items():
        if value not in known:
            yield f"{value!r} came out of the queue, and was never pushed"
        if count > 1:
            yield f"{value!r} came out of the queue {count} times"
    lost = [one.value for one in pushed if one.sure and one.value not in out]
    unsure = popped.count(None)
    if len(lost) > unsure:
        yield f"{len(lost)} values are lost, of which {unsure} may have been popped: {lost[:5]}"


# Logs of a server that is broken, made of good ones: none may pass


def a_node_fell_back(log: Log) -> Log:
    last = [one for one in log.told if isinstance(one, Rank)][-1]
    return Log([*log.told, last._replace(round=last.round - 1)], log.left)


def a_round_was_formed_twice(log: Log) -> Log:
    last = [one for one in log.told if isinstance(one, Rank)][-1]
    return Log([*log.told, last._replace(node="another", rank=99, world_size=100, digest="x")], log.left)


def a_rank_was_given_twice(log: Log) -> Log:
    last = [one for one in log.told if isinstance(one, Rank)][-1]
    return Log([*log.told, last._replace(node="another")], log.left)


def a_key_was_lost(log: Log) -> Log:
    wrote = next(one for one in log.told if isinstance(one, Wrote) and one.sure)
    return Log([*log.told, Read(wrote.key, 0, len(log.told))], log.left)


def a_key_was_written_by_nobody(log: Log) -> Log:
    wrote = max(one.value for one in log.told if isinstance(one, Wrote))
    return Log([*log.told, Read("key", wrote + 1, len(log.told))], log.left)


def a_value_was_doubled(log: Log) -> Log:
    popped = [one for one in log.told if isinstance(one, Popped) and one.value]
    return Log([*log.told, popped[0]], log.left)


def values_were_lost(log: Log) -> Log:
    unsure = [one for one in log.told if isinstance(one, Popped) and one.value is None]
    return Log([*log.told, *(Pushed(f"x{i}", sure=True) for i in range(len(unsure) + 1))], log.left)


def a_value_came_from_nowhere(log: Log) -> Log:
    return Log(log.told, [*log.left, "?"])


CORRUPTIONS: tuple[Callable[[Log], Log], ...] = (
    a_node_fell_back,
    a_round_was_formed_twice,
    a_rank_was_given_twice,
    a_key_was_lost,
    a_key_was_written_by_nobody,
    a_value_was_doubled,
    values_were_lost,
    a_value_came_from_nowhere,
)
