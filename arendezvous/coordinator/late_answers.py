"""Answers that can wait: a join that completes no round is answered with its rank, if that comes soon.

A node that has joined has nothing to do but to wait for the round. So its answer is held back while further
nodes keep joining, and what the node is told in the end is all in one message. That halves what a round of N
costs both sides: N requests and N answers, with nothing in between. While a round is being recorded they are
held back, too: a commit to a busy etcd takes as long as `QUIET`, and N answers would come before the ranks.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.law.state import Phase

LateAnswer: TypeAlias = Callable[[str], None]

QUIET: Final = 0.02  # seconds without a join after which all answers that are held back are sent
LONGEST: Final = 0.25  # seconds that an answer is held back
AT_ONCE: Final = 256  # answers that are sent before others get their turn
AWAITING: Final = (Phase.GATHERING, Phase.WAITING)  # where a node stands that has nothing to do but to wait


class LateAnswers:
    """The answers that a server's sessions hold back, with one timer for all of them.

    Its fields:
        _held: Since when each is held back, who gives it, and to which node; the oldest first.
        _latest: When a node joined last, by the loop's clock.
        _timer: For the next look; None while nothing is held back.
    """

    def __init__(self, coordinator: Coordinator, loop: AbstractEventLoop) -> None:
        self._coordinator = coordinator
        self._loop = loop
        self._held: deque[tuple[float, LateAnswer, str]] = deque()
        self._latest = 0.0
        self._timer: TimerHandle | None = None

    def hold(self, answer: LateAnswer, node: str) -> None:
        """Has `answer` called with `node` once it is quiet."""
        self._latest = self._loop.time()
        self._held.append((self._latest, answer, node))
        if self._timer is None:
            self._timer = self._loop.call_at(self._latest + QUIET, self._on_timer)

    def close(self) -> None:
        """Stops the timer; nobody is called any more."""
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        held, quiet, records = self._held, self._latest + QUIET, self._coordinator.records
        if records is not None and records.commits.is_recording:
            quiet = self._loop.time() + QUIET
        now, left = self._loop.time(), AT_ONCE
        while left > 0 and held and (now >= quiet or now >= held[0][0] + LONGEST):
            _, answer, node = held.popleft()
            answer(node)
            left -= 1
        if held:
            self._timer = self._loop.call_at(max(now, min(quiet, held[0][0] + LONGEST)), self._on_timer)
