"""The coordinator: it owns runs, applies the law to them by one clock, and wakes those whose view changed.

It does no I/O. A connection of the server (or the in-process backend) attaches a node to it with a callback,
hands over the node's operations, and sends what the callback is given: the node's latest view, see `Telling`.
"""

from __future__ import annotations

import math
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeAlias, get_args

from arendezvous.coordinator.budget import FEW_ADDRESSES, Budget, CoordinatorLimits, is_large
from arendezvous.coordinator.claims import Claims
from arendezvous.coordinator.images import RunImages
from arendezvous.coordinator.meeting import QUIET, Meetings
from arendezvous.coordinator.retention import Retention
from arendezvous.coordinator.run import Attachment, Listener, Run
from arendezvous.coordinator.telling import Telling
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.law.events import NOBODY, Audience, LawEvent, NodeJoined, RoundCompleted, RunClosed
from arendezvous.law.image import Clocks
from arendezvous.law.machine import apply, next_wake, view
from arendezvous.law.operations import (
    Arrive,
    Claim,
    Close,
    Decided,
    Disconnect,
    Drain,
    Join,
    KeepAlive,
    Operation,
    Progress,
    Record,
    Resume,
    Tick,
    Update,
    Withdraw,
)
from arendezvous.law.rounds import recovery_time
from arendezvous.law.state import NodeView, Phase, RendezvousState, RunSettings
from arendezvous.law.status import RunStatus, run_status
from arendezvous.net.addresses import boot_id

if TYPE_CHECKING:
    from arendezvous.coordinator.records import RunRecords

Observer: TypeAlias = Callable[[str, float, LawEvent], None]

URGENT: Final = (RoundCompleted, RunClosed)
SIGNS: Final = (KeepAlive, Update, Progress, Arrive, Withdraw)  # of a life, which give up no claim
LOUD: Final = tuple(kind for kind in get_args(LawEvent) if kind not in QUIET)


class Coordinator:
    """Runs by their ids, on the clock and in the event loop of whoever makes it.

    Args:
        loop: Whose timers it uses. All calls must come from this loop's thread.
        clock: Seconds; must agree with `loop.time` but for pauses of the process itself. None: `loop.time`.
        limits: How much it takes on; None: the defaults of `CoordinatorLimits`.

    Attributes:
        records: Where runs are recorded; None: nowhere, so that a round completes at once. Set before the
            first run is made.
        retention: Which runs are forgotten, and when.
        telling: Who is to be told what has changed.
        meetings: Those who wait at barriers.
        images: Has members keep what is agreed, where it is not recorded; None: nobody keeps it.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float] | None = None,
        limits: CoordinatorLimits | None = None,
    ) -> None:
        self._loop = loop
        self.clock = clock or loop.time
        self.records: RunRecords | None = None
        self.images: RunImages | None = None
        self._followed = -math.inf
        self._boot = boot_id()
        self.limits = limits or CoordinatorLimits()
        self.runs: dict[str, Run] = {}
        self.operations: dict[type, int] = dict.fromkeys(get_args(Operation), 0)  # asked for so far, by kind
        self._observers: dict[type, list[Observer]] = {kind: [] for kind in get_args(LawEvent)}
        self.telling = Telling(self, loop)
        self.meetings = Meetings(self, loop, self._hand_on)
        self._budget = Budget(self.limits, self.clock)
        self.retention = Retention(self, loop, self._budget)
        self._claims = Claims(lambda: self.clock(), self._enter, self._budget)  # noqa: PLW0108 - it may change

    def observe(self, observer: Observer, *kinds: type[LawEvent]) -> Callable[[], None]:
        """Calls `observer(run_id, now, event)` for every event but `QUIET` ones, or those of some kinds.

        Returns how to stop that.
        """
        kinds = kinds or LOUD
        for kind in kinds:
            self._observers[kind].append(observer)

        def stop() -> None:
            for kind in kinds:
                self._observers[kind].remove(observer)

        return stop

    def entrust(self) -> None:
        """Has members keep what is agreed, where no record is kept; to be called before there are runs."""
        self.images = RunImages(self, self._budget)

    def follow(self) -> None:
        """Takes it that another coordinator was in this place until now, whose runs this one has forgotten.

        A run to which nodes come while members may be coming back begins with a recovery, see `machine`.
        Without this call no run waits for anybody: a job that begins is not to wait for members that it never
        had. So who makes a coordinator should find out: a server asks the kernel, see `was_served`. It does
        not know of a server that was on another machine at the same address: newcomers that come before any
        member or spare may form a round beside one that lives, and under its number.
        """
        self._followed = self.clock()

    def attach(self, run_id: str, node: str, secret: bytes, listener: Listener) -> Attachment:
        """Makes `listener` the one that hears of `node`'s view, in place of an earlier one of this process.

        If a process with another secret has the name, that hears on; the new one may join, see `Claims`.
        """
        run = self.runs.get(run_id)
        if run is None:
            return Attachment(_empty(run_id), node, secret, listener)
        if run.proofs:
            run.prove(node, secret)
        attachment = Attachment(run, node, secret, listener)
        if not attachment.is_stranger:
            run.attachments[node] = attachment
            run.dirty.add(node)  # whoever comes back has missed what it was told meanwhile
            if self.images is not None:
                self.images.attached(run, node)
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """The attachment's connection is gone: its node, if it is in the run, has the grace to come back."""
        run, node = attachment.run, attachment.node
        self._claims.withdraw(attachment)
        if run.attachments.get(node) is not attachment:
            return
        del run.attachments[node]
        run.dirty.discard(node)
        if node not in run.state.nodes:
            run.secrets.pop(node, None)
        elif self.runs.get(run.run_id) is run:
            self._apply(run, Disconnect(node))
            if node in run.claims:
                self._claims.look_again(run, (), node)

    def propose(self, attachment: Attachment, operation: Operation) -> NodeView | None:
        """Applies an operation of the attached node, and returns its view if there is news for it, else None.

        Raises:
            RendezvousError: The law, or a limit, does not allow the operation.
        """
        return self.view_of(attachment) if self.enact(attachment, operation) else None

    def enact(self, attachment: Attachment, operation: Operation) -> bool:
        """As `propose`, but returns whether there is news; the caller sees to it that the node is told."""
        run = self.runs.get(attachment.run.run_id)
        if isinstance(operation, (Join, Resume)):
            if type(operation) is Resume:
                self._budget.check_restoring(run, operation)
            run = self._admit(run, attachment, operation)
        elif run is None:
            return True
        else:
            attachment.run = run  # the one that it was made for may have been forgotten
        node = attachment.node
        asks_for_rank = type(operation) is Join and operation.desc.rank is not None
        if asks_for_rank or run.attachments.get(node) is not attachment or attachment.claim is not None:
            is_news = self._hear_claimant(run, attachment, operation)
            if is_news is not None:
                return is_news
        try:
            self._apply(run, operation, node)
        except RendezvousError:
            if node not in run.state.nodes:
                run.secrets.pop(node, None)
            raise
        if run.claims and node in run.state.nodes:
            self._claims.heard_of(run, node)
        if run.attachments.get(node) is not attachment:  # by leaving, it has made room for another process
            return True
        if node not in run.dirty:
            return False
        run.answered(node)
        return True

    def steer(self, run_id: str, operation: Decided | Drain) -> NodeView:
        """Applies an operation that anybody may ask for, and returns the view of the node that it names.

        Closing a run that nobody has joined yet closes it all the same.

        Raises:
            RendezvousError: There is no such run, or its state does not allow the operation.
        """
        run = self.found(run_id, operation)
        if isinstance(operation, Drain):
            self._budget.check_drain(operation)
        self._apply(run, operation)
        return view(run.state, operation.node if isinstance(operation, Drain) else operation.by, self.clock())

    def found(self, run_id: str, operation: Decided | Drain) -> Run:
        """Finds the run that an operation is for, or makes one to close; else a `RendezvousStateError`."""
        run = self.runs.get(run_id)
        if run is None:
            if not isinstance(operation, Close):
                raise RendezvousStateError(f"there is no run {run_id!r} here; nobody has joined it of late")
            run = self._create(_empty(run_id), RunSettings(1, 1))
        return run

    def record(self, run: Run, operation: Record) -> None:
        """Completes the round that has been recorded, if it is still the one that is ready."""
        self._apply(run, operation)

    def adopt(self, run: Run, idle: float = 0.0) -> None:
        """Goes on with a run that was recorded, and that nobody has been in for `idle` seconds.

        Of several runs, the longest ones come first.
        """
        self.runs[run.run_id] = run
        for node, record in run.state.nodes.items():
            if is_large(record.desc):
                self._budget.add(run, node)
        self.retention.look_at(run, self.clock() - idle, is_much=self._budget.count(run))
        self._arm(run, self.clock())

    def remember(self, run: Run, events: Iterable[tuple[float, LawEvent]], number: int) -> None:
        """Takes in what has happened to a run before it was adopted; `number` is that of the latest event."""
        run.history.extend(events)
        run.happened = run.recalled = max(run.happened, number)
        self.retention.look_at(run, self.clock(), is_much=self._budget.count(run))

    def view_of(self, attachment: Attachment) -> NodeView:
        """Takes the present view of a node that is attached; it is gone if there is no such run."""
        if self.runs.get(attachment.run.run_id) is attachment.run:
            return attachment.view(self.clock())
        return NodeView(attachment.node, 0, 0, -1, Phase.GONE, now=self.clock())

    def clocks(self) -> Clocks:
        """Tells this moment by all clocks, for what is recorded of it."""
        return Clocks(self.clock(), time.time(), self._boot, time.monotonic())

    def view(self, run_id: str, node: str) -> NodeView | None:
        """Takes the present view of a node, whoever asks; None if there is no such run."""
        run = self.runs.get(run_id)
        return None if run is None else view(run.state, node, self.clock())

    def status(self, run_id: str) -> RunStatus:
        """Takes stock of a run; of an unknown run, a status without settings."""
        run = self.runs.get(run_id)
        if run is None:
            return RunStatus(run_id)
        obstacle = (
            "" if self.records is None else self.records.commits.obstacle or "its journal does not answer yet"
        )
        return run_status(run_id, run.state, self.clock(), obstacle=obstacle)

    def close(self) -> None:
        """Stops all timers; the coordinator must not be used any more."""
        for run in self.runs.values():
            if run.timer is not None:
                run.timer.cancel()
        if self.records is not None:
            self.records.history.close()
        self.retention.close()
        self.telling.close()
        self.meetings.close()
        self.runs.clear()

    def _hear_claimant(self, run: Run, attachment: Attachment, operation: Operation) -> bool | None:
        """Has an operation done of whoever asks for what another may have, or does not have its own name.

        Returns whether there is news for the node; None: there is nothing special about it, after all.
        """
        if run.due <= (now := self.clock()):
            self._catch_up(run, now)  # so that nobody is waited for whose time is over
        if type(operation) is Join:
            holder = self._claims.holder(attachment, operation)
            if holder is not None:
                self._claims.wait(attachment, operation, holder)
                return True
            self._claims.withdraw(attachment)
            if attachment.is_stranger:  # and the connection of who has the name is broken
                self._enter(run, attachment, operation)
                run.answered(attachment.node)
                return True
        elif not isinstance(operation, SIGNS):
            self._claims.withdraw(attachment)
        if attachment.claim is not None:
            return False
        return True if attachment.is_stranger else None

    def _enter(self, run: Run, attachment: Attachment, join: Join) -> None:
        """Has a newcomer come in that has waited for it, or that takes the place of another process."""
        node, former = attachment.node, run.attachments.get(attachment.node)
        operation, gone = Claim(join) if attachment.is_stranger else join, run.state.departed.get(node)
        run.attachments[node], run.secrets[node] = attachment, attachment.secret
        attachment.gone = None
        self._apply(run, operation)
        if former is not None and former.is_stranger:
            former.gone = gone
            former.listener(former.view(self.clock()))

    def _admit(self, run: Run | None, attachment: Attachment, operation: Join | Resume) -> Run:
        """Returns the run that a node joins, with the node attached; makes it if it is new."""
        node, settings = attachment.node, operation.settings
        if run is None or not run.state.nodes:
            self._budget.check_settings(settings)
        if run is None:
            run = self._create(attachment.run, settings)
        attachment.run = run
        if not attachment.is_stranger:
            run.attachments[node], run.secrets[node] = attachment, attachment.secret
            attachment.gone = None
        if node not in run.state.nodes:
            self._budget.check_node(run, operation.desc)
        return run

    def _create(self, run: Run, settings: RunSettings) -> Run:
        self.retention.make_room()
        run.state = self._state(settings)
        run.happened = self.retention.happened
        self.runs[run.run_id] = run
        self.retention.note_idle(run, self.clock())
        return run

    def _state(self, settings: RunSettings) -> RendezvousState:
        """Makes the state of a run that is new here."""
        recovery = self._followed + recovery_time(settings)
        records = self.records is not None
        if recovery <= self.clock():
            return RendezvousState(settings, records=records)
        # the wall clock is compared with no other: it is a number that the coordinator before did not reach
        return RendezvousState(settings, recovery, first_round=int(time.time()), records=records)

    def _apply(self, run: Run, operation: Operation, speaker: str | None = None) -> None:
        """Applies an operation; the caller tells the `speaker`, if there is one, what has come of it."""
        state, now = run.state, self.clock()
        self.operations[type(operation)] += 1
        events = self._tick(run, now) if run.due <= now else []
        answered = None  # with an error, that is: its caller hears of nothing else
        try:
            events += apply(state, operation, now)
            answered = speaker
        finally:  # as in `_catch_up`, without a call for it
            if events:
                self._publish(run, events, now, answered)
            self._arm(run, now)
            if self.records is not None:
                self.records.look_at(run, events)
            if events and run.claims:
                self._claims.look_again(run, events)

    def recalled(self, run: Run, events: Iterable[LawEvent], *, changed: bool) -> None:
        """Publishes what has come of it that a round was recalled; `changed`: all members see it."""
        if changed:
            run.spread(Audience.MEMBERS)
        self._publish(run, events, self.clock())
        self._arm(run, self.clock())

    def _tick(self, run: Run, now: float) -> list[LawEvent]:
        due = next_wake(run.state)
        return apply(run.state, Tick(), now) if due is not None and due <= now else []

    def _arm(self, run: Run, now: float) -> None:
        """Sees to it that the run's timer goes off when the law has something to do, or a little earlier."""
        due = next_wake(run.state)
        if due is None or due >= run.due:
            return
        if run.timer is not None:
            run.timer.cancel()
        run.timer = self._loop.call_at(self._loop.time() + max(0.0, due - now), self._on_timer, run)
        run.due = due

    def _on_timer(self, run: Run) -> None:
        run.timer, run.due = None, math.inf
        self._catch_up(run, self.clock())

    def _catch_up(self, run: Run, now: float) -> None:
        """Has done what is due."""
        events = self._tick(run, now)
        if events:
            self._publish(run, events, now)
        self._arm(run, now)
        if self.records is not None:
            self.records.look_at(run, events)
        if events and run.claims:
            self._claims.look_again(run, events)

    def _publish(self, run: Run, events: Iterable[LawEvent], now: float, speaker: str | None = None) -> None:
        """Notes what has happened, and has those told whom it concerns but for the `speaker`."""
        state, dirty = run.state, run.dirty
        urgent = False
        for event in events:
            kind = type(event)
            if kind in QUIET:
                self.meetings.take(run.run_id, now, event)
                continue
            run.history.append((now, event))
            run.happened += 1
            self._hand_on(run.run_id, now, event)
            node = getattr(event, "node", "")
            if node:
                dirty.add(node)
            if node and node not in state.nodes:
                if run.large:
                    self._budget.drop(run, node)
                run.secrets.pop(node, None)
            elif kind is NodeJoined:
                desc = state.nodes[node].desc  # as every join comes here, no call for it
                if desc.brings is not None or len(desc.addresses) > FEW_ADDRESSES or node in run.large:
                    self._budget.add(run, node)
            audience = event.audience
            if audience is not NOBODY:
                run.spread(audience)
                urgent = urgent or kind in URGENT  # which is for many
        is_much = self._budget.count(run)
        if is_much or not state.nodes or run.run_id in self.retention.idle:
            self.retention.look_at(run, now, is_much=is_much)
        if len(dirty) > (speaker in dirty):
            self.telling.note(run, urgent=urgent)

    def _hand_on(self, run_id: str, now: float, event: LawEvent) -> None:
        for observer in self._observers[type(event)]:
            observer(run_id, now, event)


def _empty(run_id: str) -> Run:
    """Makes a run that nobody has agreed on."""
    return Run(run_id, RendezvousState(RunSettings(1, 1)))
