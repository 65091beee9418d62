"""Says aloud whose clock is off, and who was dropped for that: stock agents compare clocks in silence.

The names of its events begin with that of this file, as in torch.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from arendezvous.backends.shared_state.observer import Observer
from arendezvous.events import NodeState, construct_and_record_rdzv_event
from arendezvous.wire.torch_state.unpickling import StockDesc

logger = logging.getLogger(__name__)


class ClockReport:
    """Logs, and records as an event, each thing that is wrong with somebody's clock; once while it lasts."""

    def __init__(self, run_id: str, endpoint: str) -> None:
        self._run_id = run_id
        self._endpoint = endpoint
        self._skewed: set[str] = set()

    def look(
        self, seen: Observer, expiry: float, own: Mapping[str, StockDesc], dropped: Collection[StockDesc]
    ) -> None:
        """Reports what is new; `dropped` are those of our `own` nodes that vanished though they are alive."""
        for name, node in own.items():
            gone = seen.departed.get(name)
            if node in dropped and gone is not None:
                self._say(f"{name} was dropped from the run though it is alive: {gone.reason}")
        skewed = seen.skewed(expiry)
        for name in skewed.keys() - self._skewed:
            self._say(
                f"the clock of {name} is {skewed[name]:+.1f} s off this node's; stock agents compare clocks"
                f" and take a node for dead if they differ by more than {expiry:g} s: set the clocks"
            )
        self._skewed = set(skewed)

    def _say(self, message: str) -> None:
        logger.warning("run %s: %s", self._run_id, message)
        state, where = NodeState.RUNNING, self._endpoint
        construct_and_record_rdzv_event(self._run_id, message, state, master_endpoint=where)
