"""Answers a member that comes to a barrier by a native session, once it is known what becomes of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.meeting import Outcome
from arendezvous.coordinator.run import Attachment
from arendezvous.errors import RendezvousError
from arendezvous.law.operations import Arrive, KeepAlive, Leave, Progress, Update, Withdraw
from arendezvous.wire.native.messages import ServerMessage, Standing, encode, failure

AT_BARRIERS: Final = (Arrive, Withdraw)
OF_ITS_OWN: Final = (KeepAlive, Leave, Update, Progress)  # what else a node says of itself alone


def meet(
    coordinator: Coordinator,
    attachment: Attachment,
    operation: Arrive | Withdraw,
    request: int,
    write: Callable[[bytes], None],
) -> ServerMessage | None:
    """Has a member come to a barrier, or wait there no more.

    Args:
        coordinator: Where the run is.
        attachment: The member's.
        operation: What it says.
        request: The id of its request.
        write: Sends a frame; called with the answer if that comes later.

    Returns:
        The answer; None: it comes later.

    Raises:
        RendezvousError: The round is over, or the law or a limit does not allow it.
    """
    if isinstance(operation, Withdraw):
        return Standing(request, coordinator.meetings.withdraw(attachment, operation))

    def answer(outcome: Outcome) -> None:
        if isinstance(outcome, RendezvousError):
            write(encode(failure(request, outcome)))
        else:
            write(encode(Standing(request, outcome)))

    met = coordinator.meetings.arrive(attachment, operation, answer)
    return None if met is None else Standing(request, met)
