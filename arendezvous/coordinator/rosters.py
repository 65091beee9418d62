"""Finds the rosters of rounds, and keeps their pages encoded, once for all who ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.errors import RendezvousStateError
from arendezvous.law.rosters import Member, RoundRoster
from arendezvous.law.state import NodeDesc

PAGE: Final = 56  # members: with 1 KiB each a page is read from a socket at once, which halves the cost


def roster_of(coordinator: Coordinator, run_id: str, generation: tuple[int, int]) -> RoundRoster:
    """Finds the roster of a round; raises `RendezvousStateError` once the next one has completed."""
    run = coordinator.runs.get(run_id)
    roster = None if run is None else run.state.roster
    if roster is None or roster.generation != generation:
        raise _over(run_id, generation)
    return roster


def remaining_members(coordinator: Coordinator, run_id: str, generation: tuple[int, int]) -> list[NodeDesc]:
    """Lists the members of a round that are still in it, in rank order.

    Raises `RendezvousStateError` if that round is not the current one any more.
    """
    run = coordinator.runs.get(run_id)
    if run is None or not run.state.complete or (run.state.incarnation, run.state.round) != generation:
        raise _over(run_id, generation)
    participants, nodes = run.state.participants, run.state.nodes
    return [nodes[node].desc for node in sorted(participants, key=participants.__getitem__)]


def _over(run_id: str, generation: tuple[int, int]) -> RendezvousStateError:
    return RendezvousStateError(
        f"round {generation[1]} of run {run_id!r} is over; its members cannot be listed any more"
    )


class RosterPages:
    """The pages of rosters, encoded once for all who ask for them, and kept as long as the rosters are.

    Its fields:
        _pages: The pages of each roster, by their first rank and how much was known then.
    """

    def __init__(self, encode: Callable[[tuple[Member, ...]], bytes]) -> None:
        self._encode = encode
        self._pages: WeakKeyDictionary[RoundRoster, dict[tuple[int, int], bytes]] = WeakKeyDictionary()

    def page(self, roster: RoundRoster, first: int) -> bytes:
        """The encoded page that begins with the rank `first`; raises `RendezvousStateError` without one."""
        if first % PAGE or not 0 <= first < len(roster.descs):
            raise RendezvousStateError(f"the roster has no page that begins with rank {first}")
        pages = self._pages.setdefault(roster, {})
        asked = (first, roster.learned)
        page = pages.get(asked)
        if page is None:
            if pages and next(iter(pages))[1] != roster.learned:
                pages.clear()
            page = pages[asked] = self._encode(roster.members(first, PAGE))
        return page
