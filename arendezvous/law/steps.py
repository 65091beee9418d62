"""Progress: how far the work of each member has come, and whose stands still.

A member reports a *step*, a number that rises as long as its work goes on; a report that is not higher than
the one before counts as a sign of life, and no more. With `RoundRules.stall_timeout` a member that has
reported in this round, and whose step has not risen for so long, is *stalled*: the members are told once, and
again only if it has risen in between. It keeps its rank. Who has never reported in this round never stalls.

A report costs O(1), and so does finding out who is the next to stall: members are kept in the order in which
their steps rose last.
"""

from __future__ import annotations

from collections import OrderedDict


class Steps:
    """The progress of a run; kept in `RendezvousState.steps` from the first report on.

    Attributes:
        latest: The highest step that each member has reported in this round.
        risen: When it reported that, on the owner's clock, the earliest first; without those that stall.
        stalled: The same, of those that stall.
        highest: The highest step that any member has ever reported; -1: none has.
    """

    __slots__ = ("highest", "latest", "risen", "stalled")

    def __init__(self) -> None:
        self.latest: dict[str, int] = {}
        self.risen: OrderedDict[str, float] = OrderedDict()
        self.stalled: dict[str, float] = {}
        self.highest = -1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steps) and self.content == other.content

    __hash__ = None  # type: ignore[assignment]  # it changes

    @property
    def content(self) -> tuple[object, ...]:
        """All of it, to be compared."""
        return (self.latest, list(self.risen.items()), self.stalled, self.highest)

    def copy(self) -> Steps:
        """Makes an independent copy."""
        twin = Steps()
        twin.latest, twin.risen = self.latest.copy(), self.risen.copy()
        twin.stalled, twin.highest = self.stalled.copy(), self.highest
        return twin

    def report(self, member: str, step: int, now: float) -> bool:
        """Notes a member's step; returns whether it is the highest that anybody has ever reported."""
        if step <= self.latest.get(member, -1):
            return False
        self.latest[member] = step
        self.stalled.pop(member, None)
        self.risen[member] = now
        self.risen.move_to_end(member)
        is_highest = step > self.highest
        self.highest = max(self.highest, step)
        return is_highest

    def forget(self, member: str) -> None:
        """Looks at a member no more: it is none, or will be one of another round."""
        if self.latest.pop(member, None) is not None:
            self.risen.pop(member, None)
            self.stalled.pop(member, None)

    def due(self, timeout: float) -> float | None:
        """Tells when the next member stalls; None: none will."""
        return next(iter(self.risen.values())) + timeout if self.risen and timeout else None

    def next_stalled(self, timeout: float, now: float) -> str | None:
        """Takes out the next of those that stall by now, and returns its name; None: there are no more."""
        due = self.due(timeout)
        if due is None or due > now:
            return None
        member, since = self.risen.popitem(last=False)
        self.stalled[member] = since
        return member
