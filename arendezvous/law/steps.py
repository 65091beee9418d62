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
from dataclasses import dataclass, field


@dataclass(slots=True)
class Steps:
    """The progress of a run; kept in `RendezvousState.steps` from the first report on.

    Attributes:
        latest: The highest step that each member has reported in this round.
        risen: When it reported that, on the owner's clock, the earliest first; without those that stall.
        stalled: The same, of those that stall.
    """

    latest: dict[str, int] = field(default_factory=dict)
    risen: OrderedDict[str, float] = field(default_factory=OrderedDict)
    stalled: dict[str, float] = field(default_factory=dict)

    def report(self, member: str, step: int, now: float) -> None:
        """Notes a member's step; nothing happens if it has not risen."""
        if step <= self.latest.get(member, -1):
            return
        self.latest[member] = step
        self.stalled.pop(member, None)
        self.risen[member] = now
        self.risen.move_to_end(member)

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
