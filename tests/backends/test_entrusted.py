"""What nodes keep of their run for a server that has forgotten it, as it crosses the wire."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import arendezvous as ar
from arendezvous.backends.entrusted import PART, EntrustedImages
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.errors import RendezvousStateError
from arendezvous.law import image
from arendezvous.law.lists import is_stand_in
from arendezvous.law.operations import Drain, Hold, Join, Leave
from arendezvous.law.state import Cause, NodeDesc, NodeView, Notice, Phase, RunSettings
from arendezvous.wire.native.messages import MAX_REQUEST, Recall, encode
from tests.kit.waiting import until_seen

MANY = 600
ADDRESSES = tuple(f"{'a' * 200}{number}" for number in range(16))


def settings(nodes: int) -> RunSettings:
    return RunSettings(nodes, nodes, last_call=0.0, disconnect_grace=2.0, keep_alive_interval=60.0)


def kept(nodes: int) -> tuple[EntrustedImages, NodeView]:
    """An image of a round of so many nodes with many addresses, kept by the first of them."""
    head = image.RunHead(image.VERSION, settings(nodes), 1, 4, complete=True, world_size=nodes, digest="d")
    members = (
        image.ImageMember(rank, NodeDesc(f"n{rank:04}", addresses=ADDRESSES), bytes(16))
        for rank in range(nodes)
    )
    images = EntrustedImages()
    images.keep("n0000", image.encode(image.RunImage(head, tuple(members))))
    return images, NodeView("n0000", 1, 1, 4, Phase.MEMBER, 0, nodes, "d")


def test_each_part_fits_into_a_request_and_together_they_are_the_whole() -> None:
    images, view = kept(100)
    parts = list(images.parts(view))
    assert len(parts) > 3
    frames = [len(encode(Recall(1, "n0000", part))) for part in parts]
    assert PART < max(frames) < MAX_REQUEST
    assert [member.rank for part in parts for member in part.members] == list(range(100))


def test_what_views_have_told_since_is_in_the_parts() -> None:
    images, view = kept(3)
    notices = (
        Notice(1, "n0001", Cause.FINISHED, "done"),
        Notice(2, "n0002", None, "preempted", 30.0),
        Notice(3, "n0002", None, "sooner", 20.0),
    )
    images.hear(NodeView("n0000", 2, 1, 4, Phase.MEMBER, 0, 3, "d", notices=notices))
    (part,) = images.parts(view)
    assert {node: (row.cause, row.reason) for node, row in part.departed.items()} == {
        "n0001": (Cause.FINISHED, "done")
    }
    assert {node: (row.seconds, row.reason) for node, row in part.drains.items()} == {
        "n0002": (20.0, "sooner")
    }


def test_what_is_added_later_is_told_with_the_image_it_adds_to() -> None:
    images, view = kept(3)
    later = image.RunHead(
        image.VERSION, settings(3), 1, 4, complete=True, world_size=3, digest="d", roster="later"
    )
    first = image.ImageMember(0, NodeDesc("n0000"), bytes(16))
    gone = image.DepartureRow(Cause.FINISHED, "done", 4, 1, 0.0)
    drain = image.DrainRow(20.0, "preempted", 2, "", 0.0)
    part = image.RunImage(later, (first,), {"n0001": gone}, {"n0002": drain})
    images.keep("n0000", image.encode(part), adds=True)
    images.keep("n0000", b"\xc1", adds=True)  # is not understood, and changes nothing
    (told,) = images.parts(view)
    assert told.head == later
    assert [member.desc.name for member in told.members] == ["n0000", "n0001", "n0002"]
    assert told.departed == {"n0001": gone}
    assert told.drains["n0002"].seconds == 20.0


def test_nothing_is_told_of_another_round_or_by_a_node_that_is_gone() -> None:
    images, view = kept(3)
    assert not list(images.parts(NodeView("n0000", 2, 1, 5, Phase.MEMBER, 0, 3, "e")))
    assert not list(images.parts(NodeView("n0000", 2, 1, 5, Phase.GATHERING)))
    images.hear(NodeView("n0000", 3, 1, 4, Phase.GONE))
    assert not list(images.parts(view))


def test_an_image_that_is_not_understood_is_not_told_on() -> None:
    images, view = kept(3)
    images.keep("n0000", b"\xc1")
    assert not list(images.parts(view))


async def test_a_round_of_many_is_recalled_in_parts_with_all_names(free_port: int) -> None:
    names = [f"n{number:04}" for number in range(MANY)]
    address = f"127.0.0.1:{free_port}"
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        first = AsyncExitStack()
        await first.enter_async_context(ar.serve(address))
        one = await stack.enter_async_context(SessionBackend("127.0.0.1", free_port, "job"))
        two = await stack.enter_async_context(SessionBackend("127.0.0.1", free_port, "job"))
        joins = [Join(NodeDesc(name), settings(MANY)) for name in names]
        await asyncio.gather(*((one, two)[i % 2].propose(join) for i, join in enumerate(joins)))
        view = await one.changed(names[0], 0)
        while view.phase is not Phase.MEMBER:
            view = await one.changed(names[0], view.revision)
        await two.propose(Leave(names[1], cause=Cause.FINISHED))
        await one.propose(Drain(names[2], 600.0, "preempted"))
        await one.propose(Hold("ann", "storage"))
        await first.aclose()
        two.fail(RendezvousStateError("this test has its nodes end without a word"))
        await stack.enter_async_context(ar.serve(address))
        status = await until_seen(one.status, lambda status: 0 < len(status.nodes) == MANY // 2)
        assert not [node for node in status.nodes if is_stand_in(node.desc.name)]
        gone = {one.node: one.cause for one in status.departed}
        assert len(gone) == MANY // 2
        assert gone.pop(names[1]) is Cause.FINISHED
        assert set(gone.values()) == {Cause.CONNECTION_LOST}
        assert [node.desc.name for node in status.nodes if node.drain_left is not None] == [names[2]]
        assert status.held is not None
