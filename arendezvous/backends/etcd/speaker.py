"""One node of ours, or somebody who steers the run: what it said, and what it heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from arendezvous.backends.etcd.records import Head, Intent, Letter, Refused, Said, node_of
from arendezvous.backends.feed import ViewFeed
from arendezvous.errors import RendezvousError
from arendezvous.etcd.lease import Lease
from arendezvous.law.operations import Close, Join, Leave, Operation, Reopen, Resume
from arendezvous.law.state import Cause, Departure, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.wire.native.messages import Failed, error_of

STEERING_TTL: Final = 10.0


class Speaker:
    """What one speaker wants of the run, until it is answered; and its view.

    Args:
        path: Its name in the run, see `etcd_records`.
        changed: Called with the speaker when its intent has to be written anew.

    Attributes:
        feed: Its views.
        lease: Under which its intent is; None while it has none.
        beat: When it was last heard of, on this loop's clock.
        asked: Since when it waits for an answer; infinite if it does not.
    """

    def __init__(self, path: str, changed: Callable[[Speaker], None]) -> None:
        self.path = path
        self.name = node_of(path)
        self.feed = ViewFeed()
        self.lease: Lease | None = None
        self.beat = self.asked = 0.0
        self._changed = changed
        self._said: dict[int, Operation] = {}
        self._waiting: dict[int, asyncio.Future[NodeView]] = {}
        self._count = 0
        self._floor = 0
        self._letter: Letter | None = None
        self._joined: tuple[NodeDesc, RunSettings] | None = None
        self._after = (0, -1)
        self._withdrawn = False

    @property
    def ttl(self) -> float:
        """How long its lease has to last without being renewed, in seconds."""
        return STEERING_TTL if self._joined is None else self._joined[1].expiry

    @property
    def phase(self) -> Phase:
        """Where it stands, as far as is known here."""
        return Phase.GONE if self.feed.latest is None else self.feed.latest.phase

    @property
    def is_unanswered(self) -> bool:
        """Whether it has said something that has not been answered."""
        return bool(self._said)

    def withdraw(self) -> None:
        """It is silent for ever, so that its node is lost; whatever letters still tell it."""
        self._withdrawn = True
        self._changed(self)

    @property
    def intent(self) -> Intent | None:
        """What is to be written for it; None if nothing is."""
        if self._withdrawn:
            return None
        if not self._said and (not self.name or self.phase is Phase.GONE):
            return None
        return Intent(tuple(Said(number, operation) for number, operation in self._said.items()))

    def say(self, operation: Operation, now: float) -> asyncio.Future[NodeView]:
        """Adds an operation to its intent; the future is done when that has been answered."""
        self.beat = now
        if isinstance(operation, Join | Resume):
            self._joined = (operation.desc, operation.settings)
            self._after = operation.after if isinstance(operation, Join) else (0, -1)
        future: asyncio.Future[NodeView] = asyncio.get_running_loop().create_future()
        self._waiting[self._add(operation, now)] = future
        return future

    def hear(self, letter: Letter, head: Head) -> None:
        """Takes in a letter, if the head belongs to it; otherwise it is kept until the head does."""
        if letter.answered < self._floor:
            return  # it was written before this process was lost, and may be out of date by now
        self._letter = letter
        view = composed(letter, head)
        if view is None:
            return
        latest = self.feed.latest
        if latest is None or not _alike(latest, view):
            self.feed.push(view)
        refused = {each.number: each for each in letter.refused}
        for number in [number for number in self._said if number <= letter.answered]:
            del self._said[number]
            self._answer(number, refused.get(number))
        if self.intent is None:
            self._changed(self)

    def look_again(self, head: Head) -> None:
        """The head has changed."""
        if self._letter is not None:
            self.hear(self._letter, head)

    def forgotten(self, now: float) -> None:
        """Its letter is gone though its intent is not: the run's state was lost. It presents itself anew."""
        self._letter = None
        view = self.feed.latest
        if self._joined is None or self._said or view is None or view.phase is Phase.GONE:
            return
        desc, settings = self._joined
        if view.phase is Phase.MEMBER:
            held = (view.incarnation, view.round, view.rank, view.world_size, view.digest)
            self._add(Resume(desc, settings, *held), now)
        else:
            self._add(Join(desc, settings, max(self._after, view.known)), now)

    def lapse(self, reason: str, now: float) -> None:
        """Its lease may have ended: a member is one no more; whoever waits for a rank joins again.

        Whatever was said before is said again under new numbers, and letters that answer less than that are
        not believed: they may tell of a rank that the others have taken away since.
        """
        self.lease = None
        self._letter = None
        if self.phase is Phase.MEMBER:
            self.evict(reason)
        again, self._said = self._said, {}
        kinds = {type(operation) for operation in again.values()}
        self._floor = self._count + 1
        if self._joined is not None and self.phase is not Phase.GONE and not kinds & {Join, Leave}:
            self._add(Join(*self._joined, self._after), now)
        for number, operation in again.items():
            future = self._waiting.pop(number, None)
            renewed = self._add(operation, now)
            if future is not None:
                self._waiting[renewed] = future
        self._changed(self)

    def evict(self, reason: str) -> None:
        """Its node is gone from now on, whatever letters still say, until it joins again."""
        view = self.feed.latest
        if view is None or view.phase is Phase.GONE:
            return
        gone = Departure(Cause.NO_HEARTBEAT, reason, view.round, view.now)
        self.feed.push(
            NodeView(self.name, 0, view.incarnation, view.round, Phase.GONE, gone=gone, now=view.now)
        )
        self._floor = self._count + 1
        self._letter = None
        for number, operation in list(self._said.items()):
            if not isinstance(operation, Close | Reopen):  # the others are of no use to a node that is gone
                del self._said[number]
                self._answer(number, None)
        self._changed(self)

    def fail(self, error: RendezvousError) -> None:
        """Nobody will answer: what it said is given up."""
        self._said.clear()
        for number in list(self._waiting):
            future = self._waiting.pop(number)
            if not future.done():
                future.set_exception(error)
        self._changed(self)

    def abandon(self, future: asyncio.Future[NodeView]) -> None:
        """Nobody waits for this answer any more; the operation stays."""
        future.cancel()
        self._waiting = {n: waiting for n, waiting in self._waiting.items() if not waiting.done()}

    def _add(self, operation: Operation, now: float) -> int:
        if not self._said:
            self.asked = now
        self._count += 1
        self._said[self._count] = operation
        self._changed(self)
        return self._count

    def _answer(self, number: int, refused: Refused | None) -> None:
        future = self._waiting.pop(number, None)
        if future is None or future.done():
            return
        if refused is not None:
            future.set_exception(error_of(Failed(0, refused.kind, refused.message, refused.data)))
        elif self.feed.latest is not None:
            future.set_result(self.feed.latest)


def composed(letter: Letter, head: Head) -> NodeView | None:
    """The view that a letter and the head make up; None if they are not of the same moment.

    A member has its rank only if both tell of the same round with the same members: of the letters of a round
    some may be written before a leader dies, and the next one may form another.
    """
    view = letter.view
    if head.version < letter.head:
        return None
    if view.phase is Phase.GONE:
        return view
    changes = {"closed": head.closed, "now": max(view.now, head.now)}
    if view.phase is not Phase.MEMBER:
        return msgspec.structs.replace(view, **changes)
    held = (view.incarnation, view.round, view.digest)
    if not head.complete or held != (head.incarnation, head.round, head.digest):
        return None
    return msgspec.structs.replace(
        view, rank0=head.rank0, waiting=head.waiting, notices=head.notices, **changes
    )


def _alike(one: NodeView, two: NodeView) -> bool:
    """Whether two views tell a node the same."""
    return msgspec.structs.replace(one, revision=0, now=0.0) == msgspec.structs.replace(
        two, revision=0, now=0.0
    )
