"""Keeps what a server has entrusted to a node of its run, and makes of it what the next server is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from arendezvous.errors import RendezvousError
from arendezvous.law import image
from arendezvous.law.state import NodeView, Notice, Phase

logger = logging.getLogger(__name__)

PART: Final = 32 * 1024  # bytes of a part, about: a server reads twice as much

_encode: Final = msgspec.msgpack.Encoder().encode
_TOLD: Final = (
    Phase.MEMBER,
    Phase.WAITING,
    Phase.REDUNDANT,
)  # in which the round of a view is the complete one


class EntrustedImages:
    """The images that the nodes of one backend keep.

    Its fields:
        _kept: The image of each node that keeps one, with when it came; and the notices that its views had
            since, each with when the first of them came. Times are monotonic.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[bytes, float, dict[Notice, float]]] = {}

    def keep(self, node: str, data: bytes) -> None:
        """Keeps an image in place of an earlier one."""
        self._kept[node] = (data, time.monotonic(), {})

    def hear(self, view: NodeView) -> None:
        """Takes in what a later view tells, if its node keeps an image."""
        kept = self._kept.get(view.node)
        if kept is None:
            return
        if view.phase is Phase.GONE:
            del self._kept[view.node]
            return
        for notice in view.notices:
            kept[2].setdefault(notice, time.monotonic())

    def parts(self, view: NodeView) -> Iterator[image.RunImage]:
        """Yields what a server is to be told that does not know the run, as a node sees it that is in it."""
        kept = self._kept.get(view.node)
        if kept is None or view.phase not in _TOLD:
            return
        data, came, heard = kept
        try:
            whole = image.decode(data)
        except RendezvousError as error:
            logger.warning(
                "%s does not tell the server what another has entrusted to it: %s", view.node, error
            )
            return
        if whole.head.generation != view.generation:
            return
        yield from _cut(_later(whole, time.monotonic() - came, heard))


def _later(whole: image.RunImage, age: float, heard: dict[Notice, float]) -> image.RunImage:
    """Makes the image as it would be now: `age` seconds after it was made, with what was heard since."""
    now, wall = time.monotonic(), time.time()
    names = {member.desc.name for member in whole.members}
    departed, drains = (
        dict(whole.departed),
        {node: msgspec.structs.replace(row, spent=row.spent + age) for node, row in whole.drains.items()},
    )
    for notice, at in heard.items():
        node = notice.node
        if node not in names:
            continue
        if notice.cause is None:
            row = drains.get(node)
            if row is None or row.notice < notice.number:
                drains[node] = image.DrainRow(notice.seconds, notice.reason, notice.number, "", 0.0, now - at)
        else:
            gone = image.DepartureRow(
                notice.cause, notice.reason, whole.head.round, notice.number, wall - (now - at)
            )
            departed.setdefault(node, gone)
    return image.RunImage(whole.head, whole.members, departed, drains)


def _cut(whole: image.RunImage) -> Iterator[image.RunImage]:
    """Cuts an image into parts of bounded size."""
    some: list[image.ImageMember] = []
    size = 0
    for member in whole.members:
        some.append(member)
        rows = (whole.departed.get(member.desc.name), whole.drains.get(member.desc.name))
        size += len(_encode((member, *rows)))
        if size > PART:
            yield _part(whole, some)
            some, size = [], 0
    if some:
        yield _part(whole, some)


def _part(whole: image.RunImage, members: list[image.ImageMember]) -> image.RunImage:
    names = {member.desc.name for member in members}
    departed = {node: row for node, row in whole.departed.items() if node in names}
    drains = {node: row for node, row in whole.drains.items() if node in names}
    return image.RunImage(whole.head, tuple(members), departed, drains)
