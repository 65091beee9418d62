"""Recording: the functions that the rest of the program, and users, call.

As in torch there is one record for a process. An event is kept in a bounded history and handed to live
streams, as an object; it becomes text only when its destination has a handler that is not null.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import socket
import sys
import traceback

from arendezvous.events.api import AnyEvent, Event, NodeState, RdzvEvent, RecordedEvent
from arendezvous.events.handlers import Destinations
from arendezvous.events.live import BUFFER_SIZE, EventStream, Feed

_RENDEZVOUS = "dynamic_rendezvous"
_feed = Feed()
os.register_at_fork(after_in_child=_feed.after_fork)


@functools.cache
def _destinations() -> Destinations:
    """The destinations of this process; a failure is not cached, so every call says what is wrong."""
    return Destinations(os.environ)


def get_logging_handler(destination: str = "null") -> logging.Handler:
    """Returns the handler that writes the events sent to `destination`.

    Raises:
        RendezvousSettingsError: There is no such destination, or ``ARENDEZVOUS_EVENTS`` has a bad value.
    """
    return _destinations().handler(destination)


def register_logging_handler(name: str, handler: logging.Handler) -> logging.Handler | None:
    """Makes `handler` write the events sent to destination `name`, which may be new or known.

    Rendezvous events are sent to ``dynamic_rendezvous``. The handler gets records whose message is the JSON
    of an event, at level INFO. Whatever exception it raises is logged once and stops neither the rendezvous
    nor other handlers. It is called where the event is recorded, often on the event loop, so it should not
    block.

    Returns:
        The handler it takes the place of, which is left open; None if the name is new.

    Raises:
        RendezvousSettingsError: The name is empty, `handler` is not a `logging.Handler`, or
            ``ARENDEZVOUS_EVENTS`` has a bad value.
    """
    return _destinations().register(name, handler)


def record(event: Event, destination: str = "null") -> None:
    """Records `event`: a copy is kept in the history and given to streams, and `destination` gets its JSON.

    The destination ``null`` is silent unless ``ARENDEZVOUS_EVENTS`` says otherwise.

    Raises:
        RendezvousSettingsError: There is no such destination, or ``ARENDEZVOUS_EVENTS`` has a bad value.
    """
    _record(event, destination)


def record_rdzv_event(event: RdzvEvent) -> None:
    """Records `event` as `record` does, for the destination ``dynamic_rendezvous``.

    Raises:
        RendezvousSettingsError: ``ARENDEZVOUS_EVENTS`` has a bad value.
    """
    _record(event, _RENDEZVOUS)


def construct_and_record_rdzv_event(
    run_id: str,
    message: str,
    node_state: NodeState,
    name: str = "",
    hostname: str = "",
    pid: int | None = None,
    master_endpoint: str = "",
    local_id: int | None = None,
    rank: int | None = None,
) -> None:
    """Makes a rendezvous event and records it; does nothing without a history, a stream or a handler.

    With `node_state` FAILED, the traceback of the exception that is being handled goes with it, or
    ``NoneType: None`` when there is none, as in torch.

    Args:
        run_id: The run.
        message: What happened, in words.
        node_state: Where the node is on its way.
        name: What was going on; the caller's function if empty. The caller's file is put before it.
        hostname: The node's host; this machine's own name if empty. Unlike in torch no name server is
            asked, because that may stop the event loop for seconds.
        pid: The node's process id; this process's if None or 0.
        master_endpoint: The endpoint of the rendezvous store, if known.
        local_id: Tells apart the nodes of one process.
        rank: The node's rank, None if it has none yet.

    Raises:
        RendezvousSettingsError: ``ARENDEZVOUS_EVENTS`` has a bad value.
    """
    destinations = _destinations()
    heard = destinations.heard(_RENDEZVOUS)
    if not heard and not _feed.wanted:
        return
    code = sys._getframe(1).f_code  # noqa: SLF001 - one frame; the public way reads the whole stack and its sources
    event = RdzvEvent(  # by position: twice as fast
        f"{_file_name(code.co_filename)}:{name or code.co_name}",
        run_id,
        message,
        hostname or _hostname(),
        pid or os.getpid(),
        node_state,
        master_endpoint,
        rank,
        local_id,
        traceback.format_exc() if node_state == NodeState.FAILED else "",
    )
    if _feed.wanted:
        _feed.publish(event)
    if heard:
        destinations.emit(_RENDEZVOUS, event)


def history() -> list[RecordedEvent]:
    """Returns the events that this process has recorded last, oldest first; 1000 at most unless resized."""
    return _feed.history()


def set_history_size(size: int) -> None:
    """Keeps the last `size` events in memory from now on; 0 keeps none.

    Raises:
        RendezvousSettingsError: `size` is negative.
    """
    _feed.resize(size)


def stream(*, buffer: int = BUFFER_SIZE, after: int | None = None) -> EventStream:
    """Opens a stream of the events that are recorded from now on, in whatever thread.

    Example::

        async for recorded in events.stream():
            print(recorded.event.name)

    Args:
        buffer: How many events wait for a slow reader; then the oldest are dropped and counted in
            `EventStream.dropped`.
        after: Begin with what the history has after this `RecordedEvent.number`; 0 for all of it,
            None for nothing of it.

    Raises:
        RendezvousSettingsError: `buffer` is not positive, or `after` is negative.
    """
    return _feed.stream(buffer, after)


def _record(event: AnyEvent, destination: str) -> None:
    _destinations().handler(destination)  # an unknown destination is refused before anything is kept
    heard = _destinations().heard(destination)
    if not heard and not _feed.wanted:
        return
    kept = _copy(event)
    if _feed.wanted:
        _feed.publish(kept)
    if heard:
        _destinations().emit(destination, kept)


def _copy(event: AnyEvent) -> AnyEvent:
    """Copies an event: what is kept must not change when the caller uses its event again."""
    kept = copy.copy(event)
    if isinstance(kept, Event):
        kept.metadata = dict(kept.metadata)
    return kept


@functools.lru_cache(maxsize=64)
def _file_name(path: str) -> str:
    return os.path.basename(path)


@functools.cache
def _hostname() -> str:
    return socket.gethostname()
