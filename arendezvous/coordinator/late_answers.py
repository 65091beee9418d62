"""Answers that can wait: a join that completes no round is answered with its rank, if that comes soon.

A node that has joined has nothing to do but to wait for the round. So its answer is held back while further
nodes keep joining, and what the node is told in the end is all in one message. That halves what a round of N
costs both sides: N requests and N answers, with nothing in between.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from typing import Final, Protocol

from arendezvous.law.state import Phase

QUIET: Final = 0.02  # seconds without a join after which all answers that are owed are sent
LONGEST: Final = 0.25  # seconds that an answer is held back
AWAITING: Final = (Phase.GATHERING, Phase.WAITING)  # where a node stands that has nothing to do but to wait


class Debtor(Protocol):
    """Who owes answers: a session."""

    def answer_late(self, node: str) -> None:
        """Answers the join of `node`, if that is still owed."""


class LateAnswers:
    """The answers that a server's sessions hold back, with one timer for all of them.

    Args:
        loop: Whose clock and timers it uses.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._owed: deque[tuple[float, Debtor, str]] = deque()
        self._latest = 0.0
        self._timer: TimerHandle | None = None

    def hold(self, debtor: Debtor, node: str) -> None:
        """Has `debtor` called for `node` once it is quiet."""
        self._latest = self._loop.time()
        self._owed.append((self._latest, debtor, node))
        if self._timer is None:
            self._timer = self._loop.call_at(self._latest + QUIET, self._on_timer)

    def close(self) -> None:
        """Stops the timer; nobody is called any more."""
        self._owed.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        owed, quiet = self._owed, self._latest + QUIET
        now = self._loop.time()
        while owed and (now >= quiet or now >= owed[0][0] + LONGEST):
            _, debtor, node = owed.popleft()
            debtor.answer_late(node)
        if owed:
            self._timer = self._loop.call_at(max(now, min(quiet, owed[0][0] + LONGEST)), self._on_timer)
