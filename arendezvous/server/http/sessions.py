"""Sessions over HTTP: what lets a node speak for itself, and no other node.

A session begins when a node joins and ends when the node is in the run no more. Over TCP the connection says
who speaks; here it is a secret that the server gives out, shown in the header ``Arendezvous-Session``.

A session with an open stream of views is present like a native session: when the stream breaks, the node has
the run's grace to come back, with any request that shows the secret. A session without a stream is silent
between two requests without being gone: it lives by its heartbeats alone.

A node that comes under a name that another process has gets a session, too, in which it waits for the name.
That is over when the name is refused, or when its stream breaks.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import web

from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.coordinator.images import NOTHING, Entrusting
from arendezvous.coordinator.late_answers import AWAITING, LateAnswers
from arendezvous.coordinator.run import Attachment
from arendezvous.errors import RendezvousError
from arendezvous.law.image import RunImage
from arendezvous.law.operations import Join, KeepAlive, Leave, Progress, Resume, Update
from arendezvous.law.state import NodeDesc, NodeView, Phase

MIN_SECRET: Final = 32  # characters of a former session's secret: it is one that a server has drawn
MAX_SECRET: Final = 64
MAX_ENDED: Final = 4096  # sessions that are remembered so that whoever comes late is told why they are over


class Session:
    """One node's presence in a run.

    Attributes:
        desc: The node's description of itself.
        secret: What proves that a request is the node's own.
        key: The ``Idempotency-Key`` of the request that began it; empty if there was none.
        view: What the node was told last.
        news: Set by every new view; belongs to those who wait for one.
        _attachment: What ties it to the run; None before it has begun, and once it is over.
        _streams: How many streams of the node's views are open.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        run_id: str,
        desc: NodeDesc,
        secret: str,
        key: str,
        ended: Callable[[Session], None],
    ) -> None:
        self.run_id = run_id
        self.desc = desc
        self.secret = secret
        self.key = key
        self.view = NodeView(desc.name, 0, 0, -1, Phase.GONE)
        self.news: set[asyncio.Event] = set()
        self._coordinator = coordinator
        self._ended = ended
        self._attachment: Attachment | None = None
        self._streams = 0

    @property
    def is_over(self) -> bool:
        """Whether the node is in the run no more."""
        return self._attachment is None

    @property
    def attachment(self) -> Attachment:
        """Ties it to the run; only for a session that is not over."""
        assert self._attachment is not None  # noqa: S101 - the caller has looked
        return self._attachment

    def begin(self, operation: Join | Resume) -> NodeView:
        """Brings the node into the run; it may not come in where that raises a `RendezvousError`."""
        self._attach()
        try:
            return self.propose(operation)
        except RendezvousError:
            self._detach()
            raise

    def propose(self, operation: Join | Resume | KeepAlive | Leave | Update | Progress) -> NodeView:
        """Applies an operation of the node, and returns what the node is to know after it."""
        view = self._coordinator.propose(self.attachment, operation)
        if view is None and self.view.revision == 0:
            view = self._coordinator.view_of(self.attachment)
        if view is not None:
            self.tell(view)
        return self.view

    def tell(self, view: NodeView) -> None:
        """Takes in a new view of the node; one that is gone ends the session."""
        if self.is_over:
            return
        if view.phase is not self.view.phase and view.revision <= self.view.revision:
            view = msgspec.structs.replace(view, revision=self.view.revision + 1)
        self.view = view
        for news in self.news:
            news.set()
        if view.phase is Phase.GONE:
            self._detach()
            self._ended(self)

    def take_image(self) -> Entrusting:
        """Makes what is agreed of the run, if the node is to keep it and does not have it."""
        attachment, images = self._attachment, self._coordinator.images
        if attachment is None or images is None or self.view.rank < 0:
            return NOTHING
        run, node = attachment.run, self.desc.name
        images.choose_first(run)
        return images.take(run, node) if node in run.owed and not attachment.is_stranger else NOTHING

    def recall(self, part: RunImage) -> None:
        """Takes in what the node was entrusted with by an earlier server, unless this one has a record."""
        if self._attachment is not None and self._coordinator.images is not None:
            self._coordinator.images.merge(self._attachment, part)

    def stream_begins(self, news: asyncio.Event) -> None:
        """A stream of the node's views is open; `news` is set at every new one."""
        self._streams += 1
        self.news.add(news)

    def stream_ends(self, news: asyncio.Event) -> None:
        """A stream is gone: if it was the last, the node has the grace to come back."""
        self.news.discard(news)
        self._streams -= 1
        if self.is_over or self._streams > 0:
            return
        if self.view.phase is Phase.CLAIMING:
            self.tell(msgspec.structs.replace(self.view, phase=Phase.GONE))
        else:
            self._detach()
            attachment = self._attach()  # for the views of a node that comes back, or does not
            if attachment.is_stranger:  # somebody has waited for its name
                self.tell(self._coordinator.view_of(attachment))

    def _attach(self) -> Attachment:
        secret = self.secret.encode()
        self._attachment = self._coordinator.attach(self.run_id, self.desc.name, secret, self.tell)
        return self._attachment

    def _detach(self) -> None:
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            self._coordinator.detach(attachment)


class Sessions:
    """The sessions of one server, by run and node; and those that ended of late.

    Fields:
        _open: The sessions that are not over.
        _ended: The latest `MAX_ENDED` that are, the one that ended first in front.
        _late: Tells when few nodes join any more; None before the first node waited for a round.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._open: dict[tuple[str, str], list[Session]] = {}
        self._ended: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._late: LateAnswers | None = None

    async def settled(self, session: Session, news: asyncio.Event) -> None:
        """Of a node that awaits a round, waits for `news`, or until few join. Cancellation: safe."""
        if session.view.phase not in AWAITING:
            return
        if self._late is None:
            self._late = LateAnswers(self._coordinator, asyncio.get_running_loop())
        waits = True
        self._late.hold(lambda _: news.set() if waits else None, "")
        try:
            await news.wait()
        finally:
            waits = False
        news.clear()

    def close(self) -> None:
        """Stops the timers."""
        if self._late is not None:
            self._late.close()

    def find(self, run_id: str, node: str, shown: str, key: str) -> Session | None:
        """The session of a node whose secret is shown, or the key of the request that began it.

        Failing that, the first of those that are open; or the latest that is over; None: none is remembered.
        """
        where = (run_id, node)
        found = [*self._open.get(where, ()), *filter(None, [self._ended.get(where)])]
        own = (one for one in found if is_same(shown, one.secret) or (one.key and is_same(key, one.key)))
        return next(own, found[0] if found else None)

    def begin(
        self, run_id: str, desc: NodeDesc, key: str, operation: Join | Resume, former: str = ""
    ) -> Session:
        """Begins a session; beside one that is open, it waits for the name.

        With the secret of a `former` session the node is who had that at a server that was started anew.
        """
        goes_on = _goes_on(self._coordinator, run_id, desc.name, former)
        secret = former if goes_on else secrets.token_urlsafe(24)
        session = Session(self._coordinator, run_id, desc, secret, key, self._end)
        session.begin(operation)
        if session.is_over:
            self._remember(session)
        else:
            self._open.setdefault((run_id, desc.name), []).append(session)
        return session

    def _end(self, session: Session) -> None:
        where = (session.run_id, session.desc.name)
        sessions = self._open.get(where, [])
        if session in sessions:
            sessions.remove(session)
            self._remember(session)
        if not sessions:
            self._open.pop(where, None)

    def _remember(self, session: Session) -> None:
        self._ended[session.run_id, session.desc.name] = session
        self._ended.move_to_end((session.run_id, session.desc.name))
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)


def _goes_on(coordinator: Coordinator, run_id: str, node: str, former: str) -> bool:
    """Whether the secret of a former session is to be that of a new one, as this server was started anew.

    It is if it is known to be the node's; or if nobody is known by the name, and members are still to tell.
    """
    run = coordinator.runs.get(run_id)
    if not MIN_SECRET <= len(former) <= MAX_SECRET:
        return False
    if run is None or run.is_proven(node, former.encode("utf-8", "surrogateescape")):
        return True
    return node not in run.secrets and run.state.recovery is not None


def is_same(shown: str, secret: str) -> bool:
    """Whether two secrets are the same; how long it takes does not depend on where they differ."""
    return hmac.compare_digest(*(text.encode("utf-8", "surrogateescape") for text in (shown, secret)))


SESSIONS: Final = web.AppKey("sessions", Sessions)
