"""The server's side of a native session: one connection, speaking for the nodes that joined in it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, cast

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.late_answers import AWAITING, LateAnswers
from arendezvous.coordinator.run import Attachment, Run
from arendezvous.errors import RendezvousError, RendezvousPermissionError, RendezvousStateError
from arendezvous.keyspace.grants import EVERYTHING, Grant
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave, Operation, Reopen, Resume
from arendezvous.law.state import NodeView, Phase, check_text
from arendezvous.net.shared_buffer import SharedBufferProtocol
from arendezvous.server.access.authority import Access
from arendezvous.server.access.limits import ServerLimits
from arendezvous.server.counts import DoorCounts
from arendezvous.server.tcp.watching import Watcher
from arendezvous.wire.native.messages import (
    MAX_REQUEST,
    PREFACE,
    VERSION,
    Ack,
    ClientMessage,
    FrameError,
    FrameParser,
    GetMembers,
    GetRuns,
    GetStatus,
    Happened,
    Hello,
    Members,
    Propose,
    Runs,
    RunSummary,
    ServerMessage,
    Status,
    View,
    Watch,
    Welcome,
    decode_client,
    encode,
    failure,
)

logger = logging.getLogger(__name__)

MAX_NODES: Final = 4096  # that one session may speak for
MAX_SECRET: Final = 64
REQUESTS: Final = (Propose, Watch, GetStatus, GetMembers, GetRuns)  # what is answered; the frequent one first


class NativeSession(SharedBufferProtocol):
    """Reads requests, has the coordinator answer them, and passes on the views that change.

    A peer that reads slowly gets the latest view when it reads again, not every one that it missed.

    Args:
        coordinator: Where the runs are.
        welcome: What the server says of itself.
        limits: Of the server.
        late: Calls back for the joins whose answers can wait.
        peer: The other end, for the log.
        access: Who may come in.

    Attributes:
        grant: What the peer may do; everything, until it has said hello.
        traffic: Where the bytes that are sent are counted.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        welcome: Welcome,
        limits: ServerLimits,
        late: LateAnswers,
        peer: str,
        access: Access,
    ) -> None:
        self._coordinator = coordinator
        self._welcome = welcome
        self._limits = limits
        self._late = late
        self._peer = peer
        self._parser = FrameParser(MAX_REQUEST)
        self._preface = PREFACE
        self._access = access
        self._hello: Hello | None = None
        self._may_write = True
        self.grant: Grant = EVERYTHING
        self.traffic = DoorCounts()
        self._attachments: dict[str, Attachment] = {}
        self._owed: dict[str, int] = {}
        self._frames: list[bytes] = []  # the oldest last; mostly empty, when a deque takes 700 bytes
        self._out: list[bytes] = []
        self._unsent = 0
        self._paused = False
        self._missed: dict[str, NodeView] = {}
        self._watcher: Watcher | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins the session; the peer has the handshake time-out to say hello."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._limits.write_high_water)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._limits.handshake_timeout, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Answers every request that is complete, in one write unless the answers are long."""
        try:
            if self._preface:
                data = self._check_preface(data)
            frames = self._parser.feed(data)
            frames.reverse()
            self._frames = frames + self._frames if self._frames else frames
        except FrameError as error:
            self._drop(error)
        self._work()

    def connection_lost(self, exc: Exception | None) -> None:
        """Gives the session's nodes their grace to come back on another connection."""
        self._transport = None
        self._frames.clear()
        self._owed.clear()
        self._cancel_deadline()
        if self._watcher is not None:
            self._watcher.close()
        attachments, self._attachments = self._attachments, {}
        for attachment in attachments.values():
            self._coordinator.detach(attachment)

    def pause_writing(self) -> None:
        """The peer reads too slowly: stop reading its requests, and hold back its views."""
        self._paused = True
        if self._watcher is not None:
            self._watcher.pause()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The peer has caught up: tell it the latest of what it missed."""
        self._paused = False
        missed, self._missed = self._missed, {}
        for view in missed.values():
            self._push(view)
        if self._watcher is not None and not self._paused:
            self._watcher.resume()
        self._work()
        if self._transport is not None and not self._paused:
            self._transport.resume_reading()

    def _work(self) -> None:
        """Answers what has come, for as long as the peer reads the answers."""
        frames = self._frames
        try:
            while frames and self._transport is not None and not self._paused:
                self._handle(decode_client(frames.pop()))
                if self._unsent > self._limits.write_high_water:
                    self._flush()
        except FrameError as error:
            self._drop(error)
        if self._out:
            self._flush()

    def _check_preface(self, data: bytes) -> bytes:
        size = min(len(data), len(self._preface))
        if data[:size] != self._preface[:size]:
            raise FrameError("not the preface of a native session; expected the bytes a4 41 52 31")
        self._preface = self._preface[size:]
        return data[size:]

    def _handle(self, message: ClientMessage) -> None:
        if not isinstance(message, REQUESTS):
            self._greet(message)
            return
        if self._hello is None:
            raise FrameError(f"{type(message).__name__} before Hello")
        if message.id <= 0:
            raise FrameError(f"{type(message).__name__} has the id {message.id}; expected 1 or more")
        try:
            answer = self._answer(self._hello.run_id, message)
        except RendezvousError as error:
            answer = failure(message.id, error)
        if answer is not None:
            self._send(answer)

    def _greet(self, hello: Hello) -> None:
        if self._hello is not None:
            raise FrameError("a second Hello")
        if hello.version < 1:
            raise FrameError(f"protocol version {hello.version}; this server speaks 1 to {VERSION}")
        if len(hello.secret) > MAX_SECRET:
            raise FrameError(f"a secret of {len(hello.secret)} bytes; allowed are {MAX_SECRET}")
        try:
            check_text("run id", hello.run_id)
        except RendezvousError as error:
            self._drop(error)
            return
        self._cancel_deadline()
        try:
            self._admit(hello)
        except RendezvousPermissionError as error:
            self._refuse(error)
            return
        self._hello = hello
        ours = self._welcome
        self._send(Welcome(min(ours.version, hello.version), ours.server, ours.embedded))

    def _admit(self, hello: Hello) -> None:
        grant = self._access.authority.admit(hello.token)
        if hello.run_id and not grant.may_read(hello.run_id):
            message = f"the token {grant}, and not run {hello.run_id!r}; use one that is good for it"
            raise RendezvousPermissionError(message, authenticated=True)
        self.grant = grant
        self._may_write = grant.may_write(hello.run_id)

    def _answer(
        self, run_id: str, message: Propose | GetStatus | GetMembers | GetRuns | Watch
    ) -> ServerMessage | None:
        """The answer to a request; None if it comes late."""
        coordinator = self._coordinator
        if isinstance(message, Propose) and run_id:
            if not self._may_write:
                why = f"the token {self.grant}, and changes nothing"
                raise RendezvousPermissionError(why, authenticated=True)
            if isinstance(message.operation, Join):
                return self._join(run_id, message.operation, message.id)
            view = self._propose(run_id, message.operation)
            return Ack(message.id) if view is None else View(message.id, view)
        if isinstance(message, GetRuns):
            return Runs(message.id, run_summaries(coordinator, self.grant))
        if not run_id or isinstance(message, Propose):
            raise RendezvousStateError("this session names no run; say hello with a run id")
        if isinstance(message, Watch) and self._watcher is None:
            self._watcher = Watcher(coordinator, run_id, self._tell)
        if isinstance(message, GetStatus | Watch):
            return Status(message.id, coordinator.status(run_id))
        members = coordinator.members(run_id, (message.incarnation, message.round))
        return Members(message.id, tuple(members))

    def _join(self, run_id: str, join: Join, request: int) -> ServerMessage | None:
        node = join.desc.name
        if node in self._owed:
            self.answer_late(node)
        attachment = self._attach(run_id, node)
        if not self._coordinator.enact(attachment, join):
            return Ack(request)
        if attachment.phase not in AWAITING:
            return View(request, self._coordinator.view_of(attachment))
        self._owed[node] = request
        self._late.hold(self, node)
        return None

    def _propose(self, run_id: str, operation: Operation) -> NodeView | None:
        coordinator = self._coordinator
        if self._owed and isinstance(operation, Resume | Leave):
            self.answer_late(operation.node)
        if isinstance(operation, Close | Reopen | Drain):
            return coordinator.steer(run_id, operation)
        if isinstance(operation, Resume):
            return coordinator.propose(self._attach(run_id, operation.node), operation)
        if not isinstance(operation, Leave | KeepAlive):
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

    def _attach(self, run_id: str, node: str) -> Attachment:
        attachment = self._attachments.get(node)
        if attachment is None:
            if len(self._attachments) >= MAX_NODES:
                raise RendezvousStateError(f"one session speaks for {MAX_NODES} nodes at most")
            assert self._hello is not None  # noqa: S101 - requests before Hello are refused
            attachment = self._coordinator.attach(run_id, node, self._hello.secret, self._push)
            self._attachments[node] = attachment
        return attachment

    def answer_late(self, node: str) -> None:
        """Answers the join of `node` that was held back, if that has not happened by a push."""
        attachment = self._attachments.get(node)
        if node in self._owed and attachment is not None:
            self._push(self._coordinator.view_of(attachment))

    def _push(self, view: NodeView) -> None:
        if self._paused:
            self._missed[view.node] = view
        elif self._transport is not None:
            frame = encode(View(self._owed.pop(view.node, 0), view))
            self.traffic.sent += len(frame)
            self._transport.write(frame)

    def _tell(self, message: Happened) -> None:
        if self._transport is not None:
            frame = encode(message)
            self.traffic.sent += len(frame)
            self._transport.write(frame)

    def _send(self, message: ServerMessage) -> None:
        frame = encode(message)
        self._out.append(frame)
        self._unsent += len(frame)

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or not self._out:
            return
        transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self.traffic.sent += self._unsent
        self._out.clear()
        self._unsent = 0
        if transport.get_write_buffer_size() > self._limits.write_limit:
            logger.warning("%s: dropped, as it does not read what it asked for", self._peer)
            transport.abort()

    def _refuse(self, error: RendezvousPermissionError) -> None:
        self._access.throttle.failed(self._peer, error.message)
        self._close(error)

    def _drop(self, error: RendezvousError) -> None:
        logger.warning("%s: dropped: %s", self._peer, error)
        self._close(error)

    def _close(self, error: RendezvousError) -> None:
        """Tells the peer why, and closes the connection."""
        self._send(failure(0, error))
        self._flush()
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def _too_late(self) -> None:
        self._drop(FrameError(f"no hello within {self._limits.handshake_timeout:g} s"))

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def run_summaries(coordinator: Coordinator, grant: Grant = EVERYTHING) -> tuple[RunSummary, ...]:
    """One line about each run that the coordinator keeps and the bearer of `grant` may look at."""
    return tuple(run_summary(run) for run_id, run in coordinator.runs.items() if grant.may_read(run_id))


def run_summary(run: Run) -> RunSummary:
    """One line about a run."""
    state = run.state
    return RunSummary(
        run.run_id,
        state.incarnation,
        state.round,
        state.complete,
        state.closed is not None,
        len(state.participants),
        len(state.wait_list),
        len(state.redundancy_list),
        state.ended,
    )
