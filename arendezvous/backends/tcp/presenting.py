"""Presents this backend's nodes to a coordinator, on a new connection or after it was started anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from arendezvous.backends.feed import ViewFeed
from arendezvous.backends.sayings import Sayings
from arendezvous.law.operations import Close, Join, Operation, Resume
from arendezvous.law.state import Phase


def presentations(
    joins: Mapping[str, Join], feeds: Mapping[str, ViewFeed], leaving: Mapping[str, Join], sayings: Sayings
) -> Iterator[Operation]:
    """Yields the operations that present the nodes that are in the run, whether it still knows them or not.

    Args:
        joins: How each node joined.
        feeds: What each was told last; a member presents the rank that it holds; who waits joins again, and
            says which round it knows, so that a coordinator that forgot the run hears that there is one.
        leaving: How those joined that are leaving: a member is presented, so that its leave is heard as one.
        sayings: What else they have said.
    """
    for node, join in (*joins.items(), *leaving.items()):
        view = feeds[node].latest
        if view is None or view.phase is Phase.GONE:
            continue
        if node in leaving and view.phase is not Phase.MEMBER:
            continue
        if view.phase is Phase.MEMBER:
            held = (view.incarnation, view.round, view.rank, view.world_size, view.digest, view.share)
            yield Resume(join.desc, join.settings, *held)
            if view.closed is not None:
                yield Close.again(view.closed, view.incarnation)
        else:
            yield join.knowing(view.known)
        yield from sayings.of(node, view.generation)
