"""Following the news of a run for ``arendezvous watch``: over restarts of the server, and grouped in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from typing import Final, NoReturn, TypeAlias

import msgspec

from arendezvous.errors import RendezvousConnectionError
from arendezvous.law.status import RunStatus, explained
from arendezvous.law.words import counted, event_texts
from arendezvous.net.backoff import Backoff
from arendezvous.schemes import RunNews
from arendezvous.wire.native.messages import Happened

BACKOFF: Final = Backoff(first=0.1, last=5.0)


class Outage(msgspec.Struct, frozen=True):
    """The server cannot be reached any more; what happens until the next status is not known."""

    reason: str


Item: TypeAlias = RunStatus | Happened | Outage


class NewsFeed:
    """The news of one run from one server, whatever happens to the server.

    Args:
        connect: Watches the run while the block runs: `Scheme.watch`.

    Its fields:
        _news: The present watch; None while there is none.
    """

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[RunNews]]) -> None:
        self._connect = connect
        self._news: RunNews | None = None

    async def follow(self, take: Callable[[Item], None]) -> NoReturn:
        """Hands all news to `take`: a status first, and again after each outage. Cancellation: safe.

        Raises:
            RendezvousError: The server could not be reached at the beginning, or refuses.
        """
        pauses = BACKOFF.start()
        reached = down = False
        while True:
            try:
                async with self._connect() as self._news:
                    async for item in self._news:
                        pauses.succeeded()
                        reached, down = True, False
                        take(item)
            except RendezvousConnectionError as error:
                if not reached:
                    raise
                if not down:
                    down = True
                    take(Outage(error.message))
            finally:
                self._news = None
            await pauses.sleep()

    async def ask_status(self) -> None:
        """Asks for a fresh status, if there is a connection. Cancellation: whether it was is then unknown."""
        if self._news is None:
            return
        with suppress(RendezvousConnectionError):  # `follow` finds out, too
            await self._news.ask_status()


class Narrator:
    """Says in words what comes, with one line for all nodes to which the same happened.

    Its fields:
        _known: The nodes that are in the run.
        _events: What happened, and is still to be told.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._events: list[Happened] = []

    def learn(self, status: RunStatus) -> None:
        """Takes note of who is in the run, without a word."""
        self._known = {node.desc.name for node in status.nodes}

    def tell(self, items: Sequence[Item]) -> list[str]:
        """Says what `items`, which came within a short time, are."""
        lines: list[str] = []
        for item in items:
            if isinstance(item, Happened):
                self._events.append(item)
                continue
            lines += self._tell_events()
            if isinstance(item, RunStatus):
                self.learn(item)
                lines += explained(item)
            else:
                lines.append(f"{item.reason}; trying again")
        return lines + self._tell_events()

    def _tell_events(self) -> list[str]:
        happened, self._events = self._events, []
        lines = event_texts((event for item in happened for event in item.events), self._known)
        if missed := sum(item.missed for item in happened):
            lines.append(f"{counted(missed, 'event')} missed, as they came too fast")
        return lines


def stamped(lines: list[str]) -> list[str]:
    """Puts the time of day in front of each line."""
    now = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
    return [f"{now}  {line}" for line in lines]
