"""Keeps what a server has entrusted to a node of its run, and makes of it what the next server is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from arendezvous.errors import RendezvousError
from arendezvous.law import image
from arendezvous.law.state import NodeView, Notice, Phase

logger = logging.getLogger(__name__)

PART: Final = 32 * 1024  # bytes of a part, about: a server reads twice as much

_encode: Final = msgspec.msgpack.Encoder().encode
_TOLD: Final = (Phase.MEMBER, Phase.WAITING, Phase.REDUNDANT)  # whose view has the complete round


@dataclass(slots=True)
class Kept:
    """Holds the image that one node keeps. Times are monotonic.

    Attributes:
        data: The image that came last, and was no part.
        came: When.
        heard: The notices that views had since, each with when the first of them came.
        head: The head of the part that came last since.
        departed: Who had departed by the parts that came since.
        drains: Likewise who drained, each with when the part came.
    """

    data: bytes
    came: float = field(default_factory=time.monotonic)
    heard: dict[Notice, float] = field(default_factory=dict)
    head: image.RunHead | None = None
    departed: dict[str, image.DepartureRow] = field(default_factory=dict)
    drains: dict[str, tuple[image.DrainRow, float]] = field(default_factory=dict)

    def add(self, part: image.RunImage) -> None:
        now = time.monotonic()
        self.head = part.head
        self.departed |= part.departed
        self.drains |= {node: (row, now) for node, row in part.drains.items()}

    def whole(self) -> image.RunImage:
        """Makes the image as it would be now; raises `RendezvousError` if it is damaged, or a later one's."""
        whole, now, wall = image.decode(self.data), time.monotonic(), time.time()
        names = {member.desc.name for member in whole.members}
        departed = {**whole.departed, **self.departed}
        drains = {node: _aged(row, now - self.came) for node, row in whole.drains.items()}
        drains |= {node: _aged(row, now - came) for node, (row, came) in self.drains.items()}
        for notice, at in self.heard.items():
            node, row = notice.node, drains.get(notice.node)
            if node not in names:
                continue
            if notice.cause is not None:
                ended = (whole.head.round, notice.number, wall - (now - at))
                gone = image.DepartureRow(notice.cause, notice.reason, *ended)
                departed.setdefault(node, gone)
            elif row is None or row.notice < notice.number:
                drains[node] = image.DrainRow(notice.seconds, notice.reason, notice.number, "", 0.0, now - at)
        return image.RunImage(self.head or whole.head, whole.members, departed, drains)


def _aged(row: image.DrainRow, seconds: float) -> image.DrainRow:
    return msgspec.structs.replace(row, spent=row.spent + seconds)


class EntrustedImages:
    """The images that the nodes of one backend keep.

    Its fields:
        _kept: What each node keeps.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def keep(self, node: str, data: bytes, *, adds: bool = False) -> None:
        """Keeps an image in place of an earlier one, or a part that `adds` something to that."""
        if not adds:
            self._kept[node] = Kept(data)
        elif node in self._kept:
            try:
                self._kept[node].add(image.decode(data))
            except RendezvousError as error:
                logger.warning("%s does not keep what a server has entrusted to it: %s", node, error)

    def hear(self, view: NodeView) -> None:
        """Takes in what a later view tells, if its node keeps an image."""
        kept = self._kept.get(view.node)
        if kept is None:
            return
        if view.phase is Phase.GONE:
            del self._kept[view.node]
            return
        for notice in view.notices:
            kept.heard.setdefault(notice, time.monotonic())

    def parts(self, view: NodeView) -> Iterator[image.RunImage]:
        """Yields what a server is to be told that does not know the run, as a node sees it that is in it."""
        kept = self._kept.get(view.node)
        if kept is None or view.phase not in _TOLD:
            return
        try:
            whole = kept.whole()
        except RendezvousError as error:
            said = "%s does not tell the server what another has entrusted to it: %s"
            logger.warning(said, view.node, error)
            return
        if whole.head.generation == view.generation:
            yield from _cut(whole)


def _cut(whole: image.RunImage) -> Iterator[image.RunImage]:
    """Cuts an image into parts of bounded size."""
    some: list[image.ImageMember] = []
    size = 0
    for at, member in enumerate(whole.members, 1):
        some.append(member)
        rows = (whole.departed.get(member.desc.name), whole.drains.get(member.desc.name))
        size += len(_encode((member, *rows)))
        if size > PART or at == len(whole.members):
            names = {member.desc.name for member in some}
            departed = {node: row for node, row in whole.departed.items() if node in names}
            drains = {node: row for node, row in whole.drains.items() if node in names}
            yield image.RunImage(whole.head, tuple(some), departed, drains)
            some, size = [], 0
