"""The server's side of a native session: one connection, speaking for the nodes that joined in it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import msgspec

from arendezvous.coordinator.images import NOTHING
from arendezvous.coordinator.late_answers import AWAITING, LateAnswers
from arendezvous.coordinator.records import ANSWERED
from arendezvous.coordinator.run import Attachment, Run
from arendezvous.errors import RendezvousError, RendezvousPermissionError, RendezvousStateError
from arendezvous.keyspace.grants import EVERYTHING, Grant
from arendezvous.keyspace.values import PIECE
from arendezvous.law.checks import check_id
from arendezvous.law.operations import DECIDED, Decided, Drain, Join, Leave, Operation, Resume
from arendezvous.law.state import NodeView, Phase
from arendezvous.server.context import ServerContext
from arendezvous.server.tcp.answers import AT_BARRIERS, OF_ITS_OWN, STEP, Answers, meet, run_summaries
from arendezvous.server.tcp.paced import LongAnswer, PacedConnection, cut
from arendezvous.server.tcp.sharing import QUANTUM, SHARE, TURN, UNITS, detach
from arendezvous.server.tcp.watching import RunsWatching, Watching
from arendezvous.wire.native import messages
from arendezvous.wire.native.messages import VERSION, FrameError, Hello, ServerMessage, encode, failure
from arendezvous.wire.native.versions import check_node, view_for_1

Steps: TypeAlias = Iterator[tuple[int, ServerMessage | None]]  # units of work; the answer with the last

MAX_NODES: Final = 4096  # that one session may speak for
MAX_SECRET: Final = 64
_RECORDED: Final = (*DECIDED, Drain, Leave)  # what is answered once it is recorded, if it is
CROWD: Final = 256  # members of a round that it takes more than a share to restore
BYTES_A_UNIT: Final = 512  # of an answer: about so much of it is made for the cost of the simplest request


class SessionContext:
    """Holds what the sessions of one server have in common.

    Attributes:
        server: What is behind the listeners of the server.
        welcome: What the server says of itself.
        late: Calls back for the joins whose answers can wait.
        answers: Long answers about runs.
        watching: Who watches which run.
        runs_watching: Who watches all of them.
    """

    def __init__(self, server: ServerContext, welcome: messages.Welcome) -> None:
        coordinator, turns = server.coordinator, server.shared.turns
        self.server = server
        self.welcome = welcome
        self.late = LateAnswers(coordinator, asyncio.get_running_loop())
        self.answers = Answers.in_messages(coordinator)
        self.watching = Watching(coordinator, turns)
        self.runs_watching = RunsWatching(coordinator, turns)


class NativeSession(PacedConnection):
    """Reads requests, has the coordinator answer them, and passes on the views that change.

    A peer that reads slowly gets the latest view when it reads again, not every one that it missed.

    Attributes:
        grant: What the peer may do; everything, until it has said hello.
        version: Of the protocol that both sides speak.

    Its fields, besides those of `PacedConnection`:
        _parser: What comes in.
        _preface: What is still to come of the preface.
        _kept: Bytes that are noted as kept, of a request that is not complete.
        _hello: What the peer has said of itself; None before that.
        _may_write: Whether it may change its run.
        _attachments: The nodes that joined in this session.
        _owed: Nodes whose join has not been answered yet, with its id.
        _frames: Requests that have come, the oldest last; mostly empty, when a deque takes 700 bytes.
        _making: An answer that is being made, in steps that wait for their turn; None: none is.
        _out: Answers that are to be sent, in one write.
        _missed: The latest views of nodes that the peer could not be sent.
        _watches: The run that it watches; empty: none.
        _watches_runs: The request by which it watches all runs; None: it does not.
    """

    def __init__(self, context: SessionContext) -> None:
        super().__init__(context.server.shared, context.server.shared.limits.handshake_timeout)
        self.grant: Grant = EVERYTHING
        self.version = VERSION
        self._context = context
        self._coordinator = context.server.coordinator
        self._parser = messages.FrameParser(messages.MAX_REQUEST, first=messages.MAX_HELLO)
        self._preface = messages.PREFACE
        self._kept = 0
        self._hello: Hello | None = None
        self._may_write = True
        self._attachments: dict[str, Attachment] = {}
        self._owed: dict[str, int] = {}
        self._frames: list[bytes] = []
        self._making: Steps | None = None
        self._out: list[bytes] = []
        self._missed: dict[str, NodeView] = {}
        self._watches = ""
        self._watches_runs: messages.WatchRuns | None = None

    def data_received(self, data: bytes) -> None:
        """Answers every request that is complete, up to a limit; the others when it is its turn."""
        try:
            if self._preface:
                data = self._check_preface(data)
            frames = self._parser.feed(data)
        except FrameError as error:
            self._drop(error)
            return
        frames.reverse()
        self._frames = frames + self._frames if self._frames else frames
        if not self._is_queued:
            turns = self._shared.turns
            units = self._serve(QUANTUM if turns.spent < TURN else SHARE)
            if units > SHARE:
                turns.spend(units)
        if self._kept or self._parser.kept:
            self._note_kept(self._parser.kept)

    def connection_lost(self, exc: Exception | None) -> None:
        """Gives the session's nodes their grace to come back on another connection."""
        super().connection_lost(exc)
        self._frames.clear()
        self._owed.clear()
        self._making = None
        self._note_kept(0)
        if self._watches:
            self._context.watching.leave(self._watches, self)
            self._watches = ""
        if self._watches_runs is not None:
            self._context.runs_watching.leave(self)
        detach(self._coordinator, self._shared.turns, self._attachments)
        self._attachments = {}

    def pause_writing(self) -> None:
        """The peer reads too slowly: stop reading its requests, and hold back its views."""
        super().pause_writing()
        if self._watches:
            self._context.watching.pause(self._watches, self)
        if self._watches_runs is not None:
            self._context.runs_watching.pause(self)

    def tell(self, frame: bytes) -> None:
        """Sends what has happened to the run that is watched, or which of all runs have changed."""
        self._write(frame)

    def list_again(self) -> None:
        """Answers once more the request by which it watches all runs; called before others are answered."""
        if self._watches_runs is not None:
            self._frames.append(encode(self._watches_runs)[messages.HEADER :])

    def _serve(self, most: int) -> int:
        outlet, left = self._outlet, most
        if self._is_paused and outlet.is_free:
            self._catch_up()
        frames = self._frames
        try:
            while self._making is not None and left > 0 and outlet.is_free:
                units, answer = next(self._making)
                left -= units
                if answer is not None:
                    self._making = None
                    left -= self._send(answer)
            while frames and left > 0 and outlet.is_free and self._making is None:
                left -= UNITS + self._handle(messages.decode_client(frames.pop()))
        except FrameError as error:
            self._drop(error)
        if self._out:
            self._flush()
        if frames or self._making is not None or not outlet.is_free:
            self._queue()
        elif self._is_paused:
            self._read_on()
        return most - left

    def _check_preface(self, data: bytes) -> bytes:
        size = min(len(data), len(self._preface))
        if data[:size] != self._preface[:size]:
            raise FrameError("not the preface of a native session; expected the bytes a4 41 52 31")
        self._preface = self._preface[size:]
        return data[size:]

    def _handle(self, message: messages.ClientMessage) -> int:
        """Handles a message; returns how many units of work that was, besides `UNITS`."""
        if isinstance(message, Hello):
            self._greet(message)
            return 0
        if self._hello is None:
            raise FrameError(f"{message.name} before Hello")
        if message.id <= 0:
            raise FrameError(f"{message.name} has the id {message.id}; expected 1 or more")
        try:
            answer = self._answer(self._hello.run_id, message)
        except RendezvousError as error:
            answer = failure(message.id, error)
        units = 0 if answer is None else self._send(answer)
        is_decision = isinstance(message, messages.Propose) and isinstance(message.operation, DECIDED)
        return units + TURN if is_decision else units

    def _greet(self, hello: Hello) -> None:
        if self._hello is not None:
            raise FrameError("a second Hello")
        if hello.version < 1:
            raise FrameError(f"protocol version {hello.version}; this server speaks 1 to {VERSION}")
        if len(hello.secret) > MAX_SECRET:
            raise FrameError(f"a secret of {len(hello.secret)} bytes; allowed are {MAX_SECRET}")
        try:
            if hello.run_id:  # else it looks at the server alone
                check_id("run id", hello.run_id)
        except RendezvousError as error:
            self._drop(error)
            return
        self._has_greeted()
        try:
            self._admit(hello)
        except RendezvousPermissionError as error:
            self._shared.throttle.failed(self._peer, error.message)
            self._close(error)
            return
        if self._kept:
            self._note_kept(0)
        self._hello = hello
        ours = self._context.welcome
        self.version = min(ours.version, hello.version)
        self._send(messages.Welcome(self.version, ours.server, ours.embedded))

    def _admit(self, hello: Hello) -> None:
        grant = self._context.server.access.authority.admit(hello.token)
        if hello.run_id and not grant.may_read(hello.run_id):
            message = f"the token {grant}, and not run {hello.run_id!r}; use one that is good for it"
            raise RendezvousPermissionError(message, authenticated=True)
        self.grant = grant
        self._may_write = grant.may_write(hello.run_id)

    def _answer(self, run_id: str, message: messages.Request) -> ServerMessage | None:
        """The answer to a request; None if it comes late."""
        context = self._context
        if isinstance(message, messages.Propose | messages.Recall) and run_id:
            if not self._may_write:
                why = f"the token {self.grant}, and changes nothing"
                raise RendezvousPermissionError(why, authenticated=True)
            if isinstance(message, messages.Propose):
                return self._apply(run_id, message.operation, message.id)
            if (images := self._coordinator.images) is not None:  # else this server has a record of its own
                images.merge(self._attach(run_id, message.node), message.image)
            return messages.Ack(message.id)
        if isinstance(message, messages.GetRuns | messages.WatchRuns):
            self._making = self._runs(message)
            return None
        if not run_id or isinstance(message, messages.Propose | messages.Recall):
            raise RendezvousStateError("this session names no run; say hello with a run id")
        if isinstance(message, messages.WatchRun) and not self._watches:
            self._watches = run_id
            context.watching.watch(run_id, self)
        if isinstance(message, messages.GetStatus | messages.WatchRun):
            status: Any = msgspec.Raw(context.answers.status(run_id, self.version))
            return messages.Status(message.id, status)
        if isinstance(message, messages.GetRoster | messages.GetGone):
            return context.answers.of_roster(run_id, message)
        members: Any = msgspec.Raw(context.answers.members(run_id, (message.incarnation, message.round)))
        return messages.Members(message.id, members)

    def _apply(self, run_id: str, operation: Operation, request: int) -> ServerMessage | None:
        """Has an operation applied, and makes the answer; None if it comes late."""
        if isinstance(operation, Join):
            return self._join(run_id, operation, request)
        if isinstance(operation, Resume) and operation.world_size > CROWD:
            self._making = self._resume(run_id, operation, request)
            return None
        if self._coordinator.records is not None and isinstance(operation, _RECORDED):
            self._propose_and_wait(run_id, operation, request)
            return None
        if isinstance(operation, AT_BARRIERS):
            attachment = self._attach(run_id, operation.node)
            return meet(self._coordinator, attachment, operation, request, self._write)
        return self._acked(request, self._propose(run_id, operation))

    def _runs(self, request: messages.GetRuns | messages.WatchRuns) -> Steps:
        """Makes the answer to a request for all runs, in steps, the last of which gives it."""
        summaries: list[messages.RunSummary] = []
        if isinstance(request, messages.WatchRuns):
            self._watches_runs = request
            self._context.runs_watching.watch(self)
        for some in run_summaries(self._coordinator, self.grant):
            summaries += some
            yield STEP // 2, None
        if isinstance(request, messages.WatchRuns):
            self._context.runs_watching.listed(self)
        yield 0, messages.Runs(request.id, tuple(summaries))

    def _resume(self, run_id: str, resume: Resume, request: int) -> Steps:
        """Makes the answer to a `Resume` that may restore a round of many, in a turn of its own."""
        before = self._round(run_id)
        try:
            answer: ServerMessage = self._acked(request, self._propose(run_id, resume))
        except RendezvousError as error:
            answer = failure(request, error)
        yield (0 if self._round(run_id) == before else resume.world_size), answer

    def _round(self, run_id: str) -> tuple[int, int] | None:
        """Tells which round of the run is complete; None: none is."""
        run = self._coordinator.runs.get(run_id)
        return (run.state.incarnation, run.state.round) if run is not None and run.state.complete else None

    def _join(self, run_id: str, join: Join, request: int) -> ServerMessage | None:
        node = join.desc.name
        if node in self._owed:
            self._answer_late(node)
        if self.version < VERSION:
            self._check_node(run_id)
        attachment = self._attach(run_id, node)
        if not self._coordinator.enact(attachment, join):
            return messages.Ack(request)
        if attachment.phase not in AWAITING:
            return self._message(request, attachment.run, self._coordinator.view_of(attachment))
        self._owed[node] = request
        self._context.late.hold(self._answer_late, node)
        return None

    def _acked(self, request: int, view: NodeView | None) -> messages.Ack | messages.View:
        """Makes the answer to an operation: the node's view, if there is news for the node in it."""
        if view is None:
            return messages.Ack(request)
        return messages.View(request, view if self.version >= VERSION else view_for_1(view))

    def _check_node(self, run_id: str) -> None:
        """Raises `RendezvousSettingsError` if the run agrees on what the peer does not know."""
        run = self._coordinator.runs.get(run_id)
        if run is not None and run.state.nodes:
            check_node(run.state.settings, self.version)

    def _propose(self, run_id: str, operation: Operation) -> NodeView | None:
        coordinator = self._coordinator
        if self._owed and isinstance(operation, Resume | Leave):
            self._answer_late(operation.node)
        if isinstance(operation, DECIDED) or isinstance(operation, Drain):  # noqa: SIM101 - mypy narrows so
            return coordinator.steer(run_id, operation)
        if isinstance(operation, Resume):
            if self.version < VERSION:
                self._check_node(run_id)
            return coordinator.propose(self._attach(run_id, operation.node), operation)
        if not isinstance(operation, OF_ITS_OWN):
            raise RendezvousStateError(f"{type(operation).__name__} is for the server alone to decide")
        if operation.node not in self._attachments:
            present = coordinator.view(run_id, operation.node)
            if present is None or present.phase is Phase.GONE:
                return present or NodeView(operation.node, 0, 0, -1, Phase.GONE)
        attachment = self._attach(run_id, operation.node)
        view = coordinator.propose(attachment, operation)
        if isinstance(operation, Leave):
            del self._attachments[operation.node]
            coordinator.detach(attachment)
        return view

    def _propose_and_wait(self, run_id: str, operation: Decided | Drain | Leave, request: int) -> None:
        """Proposes what is to be recorded before the answer is sent."""
        records = self._coordinator.records
        assert records is not None  # noqa: S101 - else it is not called

        def answer(outcome: NodeView | RendezvousError | None) -> None:
            if isinstance(outcome, RendezvousError):
                message: ServerMessage = failure(request, outcome)
            else:
                message = self._acked(request, outcome)
            if self._transport is not None:
                self._outlet.write(encode(message))

        if isinstance(operation, Leave):
            view = self._propose(run_id, operation)
            records.commits.settle(lambda _: answer(view), ANSWERED)
        else:
            records.steer(run_id, operation, answer)

    def _attach(self, run_id: str, node: str) -> Attachment:
        attachment = self._attachments.get(node)
        if attachment is None:
            if len(self._attachments) >= MAX_NODES:
                raise RendezvousStateError(f"one session speaks for {MAX_NODES} nodes at most")
            assert self._hello is not None  # noqa: S101 - requests before Hello are refused
            attachment = self._coordinator.attach(run_id, node, self._hello.secret, self._push)
            self._attachments[node] = attachment
        return attachment

    def _answer_late(self, node: str) -> None:
        """Answers the join of `node` that was held back, if that has not happened by a push."""
        attachment = self._attachments.get(node)
        if node in self._owed and attachment is not None:
            self._push(self._coordinator.view_of(attachment))

    def _push(self, view: NodeView) -> None:
        if not self._outlet.is_free:
            self._missed[view.node] = view
        elif self._transport is not None:
            if self.version < VERSION:
                view = view_for_1(view)
            attachment = self._attachments.get(view.node)
            if attachment is not None and view.node in attachment.run.owed:
                self._entrust(attachment.run, view)
                return
            frame = encode(messages.View(self._owed.pop(view.node, 0), view))
            self.traffic.sent += len(frame)
            self._transport.write(frame)

    def _entrust(self, run: Run, view: NodeView) -> None:
        self._send(self._message(self._owed.pop(view.node, 0), run, view))
        if self._out:
            self._flush()
        if not self._outlet.is_free:
            self._queue()

    def _message(self, request: int, run: Run, view: NodeView) -> ServerMessage:
        """Makes the message with a view of a node: with what is agreed, if the node is to keep that."""
        images = self._coordinator.images
        if images is None or view.rank < 0 or self.version < messages.KEEPING:
            return self._acked(request, view)
        images.choose_first(run)
        image, adds = images.take(run, view.node) if view.node in run.owed else NOTHING
        return messages.Entrusted(request, view, image, adds) if image else messages.View(request, view)

    def _catch_up(self) -> None:
        """Tells the peer, which reads again, the latest of what it missed."""
        if self._missed:
            missed, self._missed = self._missed, {}
            for view in missed.values():
                self._push(view)
        if self._watches:
            self._context.watching.resume(self._watches, self)
        if self._watches_runs is not None:
            self._context.runs_watching.resume(self)

    def _send(self, message: ServerMessage) -> int:
        """Sends an answer; returns how many units of work that was."""
        frame = encode(message)
        self._out.append(frame)
        if len(frame) > PIECE:
            self._out.pop()
            if self._out:
                self._flush()
            self._outlet.begin(LongAnswer(cut(frame), len(frame)))
        return len(frame) // BYTES_A_UNIT

    def _flush(self) -> None:
        if self._transport is not None:
            out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self.traffic.sent += len(out)
            self._transport.write(out)
        self._out.clear()

    def _drop(self, error: RendezvousError) -> None:
        self._shared.throttle.dropped(self._peer, error.message)
        self._close(error)

    def _close(self, error: RendezvousError) -> None:
        """Tells the peer why, and closes the connection."""
        self._send(failure(0, error))
        self._flush()
        self._end()

    def _note_kept(self, kept: int) -> None:
        """Notes how much is kept of a message that is not complete."""
        more, self._kept = kept - self._kept, kept
        if self._hello is None:
            if more and not self._shared.greetings.add(self._peer, more):
                self._kept -= more
                why = "its address has too many connections whose first message is not complete"
                self._drop(FrameError(why))
        elif kept:
            self._shared.unfinished.keep(self, kept)
        else:
            self._shared.unfinished.free(self)

    def _too_late(self) -> None:
        self._drop(FrameError(f"no hello within {self._timeout:g} s"))
