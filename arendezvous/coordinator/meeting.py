"""Tells those who wait at barriers what has come of it, and those who look on what nodes say of themselves.

Neither changes anybody's view, nor is it part of a run's history: a loop with a barrier in each step, or a
node that says a thousand times a second how it is, would leave nothing else in there. So these events,
`QUIET`, go to the observers that ask for them by their kinds, and to nobody else.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, Handle
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from arendezvous.coordinator.run import Attachment
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.law.barriers import Key, Met, over_error, standing
from arendezvous.law.events import BarrierPassed, LawEvent, NodeUpdated, RoundBroken
from arendezvous.law.operations import Arrive, Withdraw

if TYPE_CHECKING:
    from arendezvous.coordinator.coordinator import Coordinator

logger = logging.getLogger(__name__)

Outcome: TypeAlias = Met | RendezvousError
Answer: TypeAlias = Callable[[Outcome], None]
Publish: TypeAlias = Callable[[str, float, LawEvent], None]

QUIET: Final = (BarrierPassed, RoundBroken, NodeUpdated)
MAX_WAITS: Final = 64  # of one node at one barrier: each is a request that is not answered yet
AT_ONCE: Final = 256  # answers that are given before others get their turn


class _Comer(NamedTuple):
    attachment: Attachment
    answer: Answer


class Meetings:
    """Keeps who waits at which barrier, and answers all of them once, when it is over.

    It hands quiet events on, too: what nodes say of themselves once a turn of the loop, the latest of each.

    Its fields:
        _publish: Hands an event on to those who observe it.
        _waits: Of each run with somebody who waits: the barriers, and at each the nodes.
        _updates: The latest that each node of a run has said in this turn.
        _due: What is to be answered, and with what.
        _going_on: Hands on what is there, and answers some more; None while there is nothing to do.
    """

    def __init__(self, coordinator: Coordinator, loop: AbstractEventLoop, publish: Publish) -> None:
        self._coordinator = coordinator
        self._loop = loop
        self._publish = publish
        self._updates: dict[tuple[str, str], tuple[float, NodeUpdated]] = {}
        self._waits: dict[str, dict[Key, dict[str, list[_Comer]]]] = {}
        self._due: deque[tuple[_Comer, Outcome]] = deque()
        self._going_on: Handle | None = None

    def arrive(self, attachment: Attachment, operation: Arrive, answer: Answer) -> Met | None:
        """Has a member come to a barrier, and returns how that stands; None: `answer` is called later.

        Raises:
            RendezvousError: The round is over, or the law or a limit does not allow it.
        """
        met = self._meet(attachment, operation)
        if met.passed:
            return met
        nodes = self._waits.setdefault(attachment.run.run_id, {}).setdefault(operation.key, {})
        waiters = [one for one in nodes.get(operation.node, ()) if one.attachment is attachment]
        if len(waiters) >= MAX_WAITS:
            raise RendezvousStateError(
                f"{operation.node} waits at barrier {operation.name!r} {MAX_WAITS} times already"
            )
        nodes[operation.node] = [*waiters, _Comer(attachment, answer)]
        return None

    def stop_waiting(self, attachment: Attachment, operation: Arrive, answer: Answer) -> None:
        """Does not call `answer` any more; the member has come, and may ask again."""
        nodes = self._waits.get(attachment.run.run_id, {}).get(operation.key, {})
        comer = _Comer(attachment, answer)
        if comer in nodes.get(operation.node, ()):
            nodes[operation.node].remove(comer)

    def withdraw(self, attachment: Attachment, operation: Withdraw) -> Met:
        """Has a member wait at a barrier no more; its requests that wait are answered, too.

        Raises:
            RoundOverError: The round is over.
        """
        met = self._meet(attachment, operation)
        nodes = self._waits.get(attachment.run.run_id, {}).get(operation.key, {})
        self._answer(nodes.pop(operation.node, []), met)
        return met

    def close(self) -> None:
        """Answers nobody any more, and hands nothing on."""
        self._waits.clear()
        self._updates.clear()
        self._due.clear()
        if self._going_on is not None:
            self._going_on.cancel()
            self._going_on = None

    def _meet(self, attachment: Attachment, operation: Arrive | Withdraw) -> Met:
        coordinator = self._coordinator
        run = coordinator.runs.get(attachment.run.run_id)
        if run is not None and not attachment.is_stranger:
            coordinator.enact(attachment, operation)
            return standing(run.state, operation)
        raise over_error(attachment.run.state, (operation.incarnation, operation.round))

    def take(self, run_id: str, now: float, event: LawEvent) -> None:
        """Takes in a quiet event."""
        if isinstance(event, NodeUpdated):
            self._updates[run_id, event.node] = (now, event)
            if self._going_on is None:
                self._going_on = self._loop.call_soon(self._go_on)
            return
        if isinstance(event, BarrierPassed | RoundBroken):
            self._tell(run_id, event)
        self._publish(run_id, now, event)

    def _tell(self, run_id: str, event: BarrierPassed | RoundBroken) -> None:
        """Answers those to whom an event matters."""
        waits = self._waits.get(run_id)
        if waits is None:
            return
        state = self._coordinator.runs[run_id].state
        if isinstance(event, BarrierPassed):
            key = (event.barrier, event.turn)
            assert state.barriers is not None  # noqa: S101 - one of them has passed
            outcome: Outcome = state.barriers.standing(key) or Met(passed=True)
            over = [waits.pop(key, {})]
        else:
            assert state.barriers is not None  # noqa: S101 - they were broken a moment ago
            outcome, over = over_error(state, state.barriers.generation), list(waits.values())
            waits.clear()
        for nodes in over:
            for waiters in nodes.values():
                self._answer(waiters, outcome)
        if not waits:
            del self._waits[run_id]

    def forget(self, run_id: str) -> None:
        """A run is forgotten, in which nobody has been for long."""
        self._waits.pop(run_id, None)

    def _answer(self, waiters: list[_Comer], outcome: Outcome) -> None:
        self._due.extend((waiter, outcome) for waiter in waiters)
        if self._due and self._going_on is None:
            self._going_on = self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = None
        updates, self._updates = self._updates, {}
        for (run_id, _), (now, event) in updates.items():
            self._publish(run_id, now, event)
        for _ in range(min(AT_ONCE, len(self._due))):
            waiter, outcome = self._due.popleft()
            waiter.answer(outcome)
        if self._due and self._going_on is None:
            self._going_on = self._loop.call_soon(self._go_on)
