"""A member's part at the barriers of its round, and what it says of itself while it works."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Final

import anyio

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousError, RendezvousStateError, RendezvousTimeoutError
from arendezvous.law.barriers import MAX_MISSING, Met
from arendezvous.law.checks import decoded, encoded
from arendezvous.law.operations import MAX_VALUE, Arrive, Progress, Update, Withdraw
from arendezvous.law.state import NodeView, Phase
from arendezvous.law.words import counted, listed
from arendezvous.rendezvous.options import Seconds, seconds, text

logger = logging.getLogger(__name__)

WITHDRAW_TIMEOUT: Final = 2.0  # seconds that a member may take to say that it waits no longer
UPDATE_INTERVAL: Final = 0.001  # seconds between two states that a node tells the server


class RoundMeetings:
    """The barriers of one round, for one of its members.

    Its fields:
        _view: The member's, when the round was completed.
        _turns: How many barriers of each name the member has passed.
    """

    def __init__(self, backend: RendezvousBackend, view: NodeView) -> None:
        self._backend = backend
        self._view = view
        self._turns: dict[str, int] = {}

    async def meet(self, name: str, reducer: str, value: object, timeout: Seconds | None) -> Any:
        """Comes to a barrier, and waits until all have come; see `RendezvousInfo.agree`.

        Returns what all have agreed on; None without a reducer.
        """
        patience = None if timeout is None else seconds("timeout", timeout, zero=True)
        turn = self._turns.get(text("barrier", name), 0)
        place = (self._view.node, self._view.incarnation, self._view.round, name, turn)
        brought = encoded("value", value, MAX_VALUE) if reducer else b""
        arrive: Any = Arrive(*place, reducer, brought)  # type: ignore[arg-type]  # it has been checked
        met: Met | None = None
        try:
            with anyio.move_on_after(patience):
                while met is None or not met.passed:  # else another task of this node has gone away from it
                    met = await self._backend.meet(arrive)
        except anyio.get_cancelled_exc_class():
            with suppress(RendezvousError):  # then the round is over, or out of reach
                await self._withdraw(Withdraw(*place))
            raise
        if met is None or not met.passed:
            met = await self._withdraw(Withdraw(*place))
        if not met.passed:
            raise _timed_out(name, met, patience or 0.0)
        self._turns[name] = max(self._turns.get(name, 0), turn + 1)
        if met.problem:
            raise RendezvousStateError(met.problem)
        return decoded(met.value)

    async def _withdraw(self, operation: Withdraw) -> Met:
        """Says that the member waits no longer; tells how the barrier stands, as far as that can be known."""
        with anyio.move_on_after(WITHDRAW_TIMEOUT, shield=True):
            return await self._backend.meet(operation)
        return Met(passed=False)


async def said(backend: RendezvousBackend, operation: Update | Progress) -> None:
    """Has a node, which must be in the run, say something of itself."""
    if (await backend.propose(operation)).phase is Phase.GONE:
        said = "is not in the run, so nobody hears what it says of itself"
        raise RendezvousStateError(f"{operation.node} {said}")


def _timed_out(name: str, met: Met, timeout: float) -> RendezvousTimeoutError:
    more = f" and {met.others} more" if met.others else ""
    if met.missing:
        said = f"{counted(len(met.missing) + met.others, 'member')} did not come: "
        said += f"{listed(met.missing, MAX_MISSING)}{more}"
    elif met.withdrawn > 1:
        said = f"all members came, but {met.withdrawn - 1} of the others did not wait for so long"
    else:
        said = "it is not known who did not come, as the server did not answer"
    return RendezvousTimeoutError(
        f"barrier {name!r} was not passed within {timeout:g} s: {said}", timeout=timeout, missing=met.missing
    )


class Updates:
    """Tells the server what a node's state is: the latest, one request at a time.

    Its fields:
        _state: The latest state, as JSON; None: the node has said nothing.
        _number: Counts the states.
        _told: The number of the latest that the server knows.
        _turn: Held while it is told one.
        _at: When it was last told one.
    """

    def __init__(self, backend: RendezvousBackend, node: str) -> None:
        self._backend = backend
        self._node = node
        self._state: bytes | None = None
        self._number = self._told = 0
        self._turn = anyio.Lock()
        self._at = -UPDATE_INTERVAL

    async def update(self, state: object) -> None:
        """Tells the server a state, or a later one; see `AsyncRendezvousHandler.update`."""
        self._state = encoded("state", state, MAX_VALUE)
        self._number += 1
        await self._tell(self._number)

    async def repeat(self) -> None:
        """Tells the server the latest state again, if there is one, which it may have forgotten."""
        if self._state is not None:
            self._number += 1
            try:
                await self._tell(self._number)
            except RendezvousError as error:
                logger.warning("%s: its state could not be told again: %s", self._node, error)

    async def _tell(self, number: int) -> None:
        async with self._turn:
            if self._told >= number:
                return
            await anyio.sleep(max(0.0, self._at + UPDATE_INTERVAL - anyio.current_time()))
            state, latest = self._state, self._number
            assert state is not None  # noqa: S101 - the caller has seen to it
            self._at = anyio.current_time()
            await said(self._backend, Update(self._node, state))
            self._told = latest
