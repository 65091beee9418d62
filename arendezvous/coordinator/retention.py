"""Forgets runs in which nobody has been for long; or sooner, of too many, or if too much is remembered."""

from __future__ import annotations

import math
from asyncio import AbstractEventLoop, Handle
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from arendezvous.coordinator.budget import Budget
from arendezvous.coordinator.run import Run
from arendezvous.errors import RendezvousStateError

if TYPE_CHECKING:
    from arendezvous.coordinator.coordinator import Coordinator

Forgetting: TypeAlias = Callable[[str], None]


class Retention:
    """The runs of one coordinator that nobody is in, and when each is forgotten.

    Attributes:
        idle: Since when nobody has been in a run, by the coordinator's clock; the longest first.
        happened: The highest number of an event in a run that is forgotten: one that is made anew goes on
            from there.

    Its other fields:
        _next: The timer for the first of them; None: there is none.
        _observers: Who is told which runs are forgotten.
    """

    def __init__(self, coordinator: Coordinator, loop: AbstractEventLoop, budget: Budget) -> None:
        self.happened = 0
        self._coordinator = coordinator
        self._loop = loop
        self._budget = budget
        self.idle: OrderedDict[str, float] = OrderedDict()
        self._next: Handle | None = None
        self._observers: list[Forgetting] = []

    def observe(self, observer: Forgetting) -> Callable[[], None]:
        """Calls `observer(run_id)` for every run that is forgotten; returns how to stop that."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def make_room(self) -> None:
        """Sees to it that there may be another run; raises `RendezvousStateError` if there may not."""
        runs, most = self._coordinator.runs, self._coordinator.limits.max_runs
        if len(runs) >= most and self.idle:
            self.forget(next(iter(self.idle)))
        if len(runs) >= most:
            raise RendezvousStateError(
                f"this server keeps {most} runs already, and somebody is in each of them; "
                "use another server, or raise its limit"
            )

    def look_at(self, run: Run, now: float, *, is_much: bool) -> None:
        """Takes in who is in a run that has changed; `is_much`: too much is remembered of all runs."""
        if is_much:
            self._shorten(run)
        if run.state.nodes:
            self.idle.pop(run.run_id, None)
        else:
            self.note_idle(run, now)

    def note_idle(self, run: Run, since: float) -> None:
        """Takes in that nobody is in a run; of several, the longest ones first."""
        self.idle.setdefault(run.run_id, since)
        self._arm()

    def forget(self, run_id: str) -> None:
        """Forgets a run that nobody is in."""
        coordinator = self._coordinator
        del self.idle[run_id]
        run = coordinator.runs.pop(run_id)
        self.happened = max(self.happened, run.happened)
        self._budget.remove(run)
        coordinator.meetings.forget(run_id)
        if run.timer is not None:
            run.timer.cancel()
            run.timer, run.due = None, math.inf  # whoever is attached may make it anew
        if coordinator.records is not None:
            coordinator.records.forget(run_id)
        for observer in self._observers:
            observer(run_id)

    def close(self) -> None:
        """Forgets nothing more."""
        if self._next is not None:
            self._next.cancel()

    def _shorten(self, run: Run) -> None:
        """Forgets what happened: in a run of which much is remembered, or else runs that nobody is in."""
        self._budget.shorten(run)
        while self._budget.is_over and self.idle:
            oldest = next(iter(self.idle))
            if oldest == run.run_id:
                break
            self.forget(oldest)

    def _arm(self) -> None:
        """Has the first be forgotten by a timer; never at once."""
        if self._next is None and self.idle:
            due = next(iter(self.idle.values())) + self._coordinator.limits.run_retention
            self._next = self._loop.call_later(max(0.0, due - self._coordinator.clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._next = None
        now, kept = self._coordinator.clock(), self._coordinator.limits.run_retention
        while self.idle and now - next(iter(self.idle.values())) >= kept:
            self.forget(next(iter(self.idle)))
        self._arm()
