"""Asks a server of ours what `RendezvousBackend` tells of a run, besides the views of nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TypeVar

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousConnectionError
from arendezvous.law.rosters import Member, MemberGone
from arendezvous.law.status import RunStatus
from arendezvous.wire.native.messages import (
    VERSION,
    ClientMessage,
    GetGone,
    GetMembers,
    GetRoster,
    GetRuns,
    GetStatus,
    Gone,
    Members,
    RosterPage,
    Runs,
    RunSummary,
    ServerMessage,
    Status,
)

R = TypeVar("R", bound=ServerMessage)


class AskingBackend(RendezvousBackend):
    """The part of a native session that asks, and does not change anything.

    Its fields:
        _version: Of the protocol, which the server speaks.
    """

    _version: int

    @abstractmethod
    async def _ask(
        self, make: Callable[[int], ClientMessage], node: str = "", patience: float | None = None
    ) -> ServerMessage:
        """Sends a request and waits for its answer, over as many connections as it takes."""

    async def status(self) -> RunStatus:
        """See `RendezvousBackend.status`."""
        return (await self._expect(Status, GetStatus)).status

    async def roster(self, incarnation: int, round_: int) -> tuple[Member, ...]:
        """See `RendezvousBackend.roster`; a server of version 1 lists those that remain."""
        if self._version < VERSION:
            asked = partial(GetMembers, incarnation=incarnation, round=round_)
            members = (await self._expect(Members, asked)).members
            return tuple(map(Member.of, members, count()))
        found: list[Member] = []
        while True:
            first = partial(GetRoster, incarnation=incarnation, round=round_, first=len(found))
            page = await self._expect(RosterPage, first)
            found += page.members
            if not page.members or len(found) >= page.size:
                return tuple(found)

    async def gone(self, incarnation: int, round_: int) -> tuple[MemberGone, ...]:
        """See `RendezvousBackend.gone`."""
        if self._version < VERSION:
            return ()
        return (await self._expect(Gone, lambda number: GetGone(number, incarnation, round_))).gone

    async def runs(self) -> tuple[RunSummary, ...]:
        """Lists the runs that the server keeps. Cancellation: safe."""
        return (await self._expect(Runs, GetRuns)).runs

    async def _expect(
        self, kind: type[R], make: Callable[[int], ClientMessage], patience: float | None = None
    ) -> R:
        answer = await self._ask(make, patience=patience)
        if not isinstance(answer, kind):
            raise RendezvousConnectionError(
                f"{self.endpoint} answered {type(answer).__name__}, expected {kind.__name__}",
                endpoint=self.endpoint,
            )
        return answer
