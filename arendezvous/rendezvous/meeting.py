"""A member's part at the barriers of its round, and what it says of itself while it works."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Final

import anyio
import msgspec

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousError, RendezvousStateError, RendezvousTimeoutError
from arendezvous.law.barriers import MAX_MISSING, Met
from arendezvous.law.checks import decoded, encoded
from arendezvous.law.lists import is_stand_in
from arendezvous.law.operations import MAX_VALUE, Arrive, Progress, Update, Withdraw
from arendezvous.law.rosters import Member
from arendezvous.law.state import NodeView, Phase
from arendezvous.law.words import counted, listed
from arendezvous.rendezvous.options import Seconds, seconds, text

logger = logging.getLogger(__name__)

WITHDRAW_TIMEOUT: Final = 2.0  # seconds that a node may take to say that it waits no longer
UPDATE_INTERVAL: Final = 0.001  # seconds between two states that a node tells the server


class RoundMembers:
    """The members of one round, and its barriers, for one of them.

    Its fields:
        _view: The member's, when the round was completed.
        _turns: How many barriers of each name the member has passed.
        _members: All without a mark on who has gone; None until all of them are known.
    """

    def __init__(self, backend: RendezvousBackend, view: NodeView) -> None:
        self._backend = backend
        self._view = view
        self._turns: dict[str, int] = {}
        self._members: tuple[Member, ...] | None = None

    async def roster(self) -> tuple[Member, ...]:
        """Returns the members, in rank order; those that are known already are not asked for again."""
        generation = self._view.generation
        if (members := self._members) is None:
            members = await self._backend.roster(*generation)
            if not any(is_stand_in(member.name) for member in members):  # else some are not back yet
                self._members = members
        gone = {one.rank: one for one in await self._backend.gone(*generation)}
        if not gone:
            return members
        return tuple(
            msgspec.structs.replace(one, gone=gone[one.rank]) if one.rank in gone else one for one in members
        )

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
        _state: The latest state, as JSON; empty: the node has said nothing.
        _number: Counts the states.
        _told: The number of the latest that the server knows.
        _turn: Held while it is told one.
        _at: When it was last told one.
    """

    def __init__(self, backend: RendezvousBackend, node: str) -> None:
        self._backend = backend
        self._node = node
        self._state = b""
        self._number = self._told = 0
        self._turn = anyio.Lock()
        self._at = -UPDATE_INTERVAL

    async def update(self, state: object) -> None:
        """Tells the server a state, or a later one; see `AsyncRendezvousHandler.update`."""
        self._state = encoded("state", state, MAX_VALUE)
        await self._tell()

    async def repeat(self) -> None:
        """Tells the server the latest state again, if there is one, which it may have forgotten."""
        if self._state:
            try:
                await self._tell()
            except RendezvousError as error:
                logger.warning("%s: its state could not be told again: %s", self._node, error)

    async def _tell(self) -> None:
        self._number += 1
        number = self._number
        async with self._turn:
            if self._told >= number:
                return
            await anyio.sleep(max(0.0, self._at + UPDATE_INTERVAL - anyio.current_time()))
            latest, self._at = self._number, anyio.current_time()
            await said(self._backend, Update(self._node, self._state))
            self._told = latest
