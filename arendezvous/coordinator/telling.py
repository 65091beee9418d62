"""Tells the nodes of runs what has changed: all that happens in one turn of the event loop in one go."""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, Handle
from collections import deque
from typing import TYPE_CHECKING, Final

from arendezvous.coordinator.run import Run
from arendezvous.errors import RendezvousError
from arendezvous.law.machine import view

if TYPE_CHECKING:
    from arendezvous.coordinator.coordinator import Coordinator

logger = logging.getLogger(__name__)

FEW: Final = 32  # listeners that are called without a pause afterwards
PAUSE: Final = 20e-6  # seconds for each listener called: about what it takes to send something to one
LONGEST_PAUSE: Final = 0.25  # seconds
AT_ONCE: Final = 256  # listeners that are called before others get their turn


class Telling:
    """Calls the listeners of nodes whose view has changed since they were called last.

    Telling N nodes of each of N losses would be N squared calls. So there is a pause in proportion to how
    many were told, in which losses gather; what is urgent ends it.

    Its fields:
        _touched: Runs in which somebody is to be told.
        _next: The call of `_tell` that is to come; None: there is none.
        _rests: Whether that comes after a pause.
        _rested: When the pause is over, by the loop's clock.
        _crowd: Who is to be called, by runs, in this turn or the next ones.
        _going_on: The call of `_tell_some` that is to come; None: there is none.
    """

    def __init__(self, coordinator: Coordinator, loop: AbstractEventLoop) -> None:
        self._coordinator = coordinator
        self._loop = loop
        self._touched: dict[str, Run] = {}
        self._next: Handle | None = None
        self._rests = False
        self._rested = 0.0
        self._crowd: deque[tuple[Run, set[str]]] = deque()
        self._going_on: Handle | None = None

    def note(self, run: Run, *, urgent: bool) -> None:
        """Has those told whose view has changed: after this turn; or after the pause, unless `urgent`."""
        self._touched[run.run_id] = run
        if self._next is not None:
            if not urgent or not self._rests:
                return
            self._next.cancel()
        self._rests = not urgent and self._loop.time() < self._rested
        if not self._rests:
            self._next = self._loop.call_soon(self._tell)
        else:
            self._next = self._loop.call_at(self._rested, self._tell)

    def flush(self) -> None:
        """Tells now what would be told in the next turn of the loop; for a caller that began this one."""
        if self._touched and not self._rests:
            if self._next is not None:
                self._next.cancel()
            self._tell()

    def close(self) -> None:
        """Calls nobody any more."""
        for handle in (self._next, self._going_on):
            if handle is not None:
                handle.cancel()

    def _tell(self) -> None:
        records, images = self._coordinator.records, self._coordinator.images
        if records is not None:
            records.commits.hurry()  # with it there may be more to tell
        self._next = None
        touched, self._touched = self._touched, {}
        if records is not None:
            self._touched = records.put_off(touched)
        if images is not None:
            for run in touched.values():
                images.choose(run)
        told = sum(len(run.dirty) for run in touched.values())
        if told > FEW:
            self._rested = self._loop.time() + min(LONGEST_PAUSE, told * PAUSE)
        self._crowd.extend((run, run.take_dirty()) for run in touched.values())
        if self._going_on is None:
            self._tell_some()

    def _tell_some(self) -> None:
        """Calls some of the listeners that are to be called; and others in the next turn of the loop."""
        self._going_on = None
        now, left = self._coordinator.clock(), AT_ONCE
        while self._crowd and left > 0:
            run, nodes = self._crowd[0]
            while nodes and left > 0:
                node = nodes.pop()
                left -= 1
                attachment = run.attachments.get(node)
                if attachment is not None:
                    try:
                        attachment.listener(view(run.state, node, now))
                    except RendezvousError:
                        logger.exception("run %s: telling node %s failed", run.run_id, node)
            if not nodes:
                self._crowd.popleft()
        if self._crowd:
            self._going_on = self._loop.call_soon(self._tell_some)
