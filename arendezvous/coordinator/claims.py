"""Claims: joins that wait, because another process has the name or the given rank that they ask for.

The law says who takes whose place, and refuses a join while the holder may be alive (`law.admission`). Such a
join is not refused here at once: it waits until the holder has been heard of, and is refused then, or until
the holder is gone. The law expires whoever is silent, so that takes no longer than the expiry of the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from arendezvous.coordinator.budget import Budget
from arendezvous.coordinator.run import Attachment, Run
from arendezvous.errors import RendezvousError
from arendezvous.law.admission import holder_of, rank_error
from arendezvous.law.events import (
    LawEvent,
    NodeDeparted,
    NodeQuarantined,
    RoundCompleted,
    RunClosed,
    RunResized,
)
from arendezvous.law.operations import Claim, Join
from arendezvous.law.state import Cause, Departure, NodeDesc

logger = logging.getLogger(__name__)

Enter: TypeAlias = Callable[[Run, Attachment, Join], None]

_FOR_ALL: Final = (RoundCompleted, RunClosed, RunResized, NodeQuarantined)
"""What may turn a claim on a rank into a spare, or end claims."""


class Claims:
    """Keeps the claims of all runs, each in its run, and settles them; `enter` brings a node in."""

    def __init__(self, clock: Callable[[], float], enter: Enter, budget: Budget) -> None:
        self._clock = clock
        self._enter = enter
        self._budget = budget

    def holder(self, attachment: Attachment, join: Join) -> str | None:
        """Tells for whom `join` has to wait; None: for nobody.

        Raises `RendezvousError` if the node may not come in, whoever has its name and its rank.
        """
        state, stranger = attachment.run.state, attachment.is_stranger
        if not stranger and (join.desc.rank is None or join.node in state.nodes):
            return None
        return holder_of(state, Claim(join) if stranger else join, self._clock())

    def wait(self, attachment: Attachment, join: Join, holder: str) -> None:
        """Has a join wait for `holder`, in place of one of the same attachment that waits already.

        Raises `RendezvousStateError` if too many wait already; it does not wait then.
        """
        run = attachment.run
        self.withdraw(attachment)
        self._budget.add_claim(run, join.desc, holder)
        attachment.claim, attachment.holder, attachment.gone = join, holder, None
        run.claims.setdefault(holder, []).append(attachment)
        what = "the name" if holder == join.node else f"rank {join.desc.rank}"
        logger.info("run %s: %s waits for %s, which %s has", run.run_id, join.node, what, holder)

    def withdraw(self, attachment: Attachment) -> None:
        """The process has gone, or wants nothing any more."""
        waiting = attachment.run.claims.get(attachment.holder, [])
        if attachment in waiting:
            assert attachment.claim is not None  # noqa: S101 - it is in a queue
            self._budget.drop_claim(attachment.claim.desc)
            waiting.remove(attachment)
            if not waiting:
                del attachment.run.claims[attachment.holder]
        attachment.claim, attachment.holder = None, ""

    def heard_of(self, run: Run, holder: str) -> None:
        """A holder has spoken: whoever still wants what it has is refused."""
        self._settle_all(run, holder, alive=holder)

    def look_again(self, run: Run, events: Iterable[LawEvent], suspect: str = "") -> None:
        """Settles what may be settled after `events`, or as the connection of `suspect` broke."""
        holders = [suspect]
        for event in events:
            if isinstance(event, _FOR_ALL):
                holders = list(run.claims)
                break
            if isinstance(event, NodeDeparted):
                holders.append(event.node)
        for holder in holders:
            self._settle_all(run, holder)

    def _settle_all(self, run: Run, holder: str, alive: str = "") -> None:
        waiting = run.claims.pop(holder, [])
        for attachment in waiting:
            assert attachment.claim is not None  # noqa: S101 - it was in a queue
            self._budget.drop_claim(attachment.claim.desc)
        for attachment in waiting:
            self._settle(attachment, alive)

    def _settle(self, attachment: Attachment, alive: str = "") -> None:
        """Lets a node in that has waited, refuses it if `alive` is in its way, or has it wait on."""
        join, run = attachment.claim, attachment.run
        if join is None:
            return  # it has been withdrawn, as another was settled
        self.withdraw(attachment)
        try:
            holder = self.holder(attachment, join)
            if holder is not None and holder != alive:
                self.wait(attachment, join, holder)
                return
        except RendezvousError as error:  # as it is in no list, it joins again, and is told the error then
            logger.info("run %s: %s waits no more: %s", run.run_id, join.node, error)
        else:
            if holder is None:
                self._enter(run, attachment, join)
                return
            attachment.gone = self._refusal(run, join.desc, holder)
            logger.info("run %s: %s is refused: %s", run.run_id, join.node, attachment.gone.reason)
        attachment.listener(attachment.view(self._clock()))

    def _refusal(self, run: Run, desc: NodeDesc, holder: str) -> Departure:
        """Says who has the name or rank that a node has asked for in vain."""
        cause, reason = Cause.RANK_TAKEN, rank_error(desc, holder).expected
        if holder == desc.name:
            other = run.state.nodes[holder].desc
            where = next(filter(None, (*other.addresses, other.addr)), "an unknown address")
            cause = Cause.NAME_TAKEN
            reason = (
                f"the node name {holder!r} is in use in run {run.run_id!r}: process {other.pid} at {where}"
                " has it and is alive; give every node a name of its own"
            )
        return Departure(cause, reason, run.state.round, self._clock())
