"""Events: what happened in a rendezvous and to a job, as data.

Every event is kept in a bounded history (`history`) and handed to live streams (`stream`)::

    from arendezvous import events

    async for recorded in events.stream():
        print(recorded.time, recorded.event.name)

As in ``torch.distributed.elastic.events``, whose names and JSON these are, events are also sent as text to a
named destination, which is silent by default. ``ARENDEZVOUS_EVENTS=console``, ``null`` or ``jsonl:PATH``
chooses, and `register_logging_handler` gives a destination any `logging.Handler`. Whatever records raises
`RendezvousSettingsError` if that variable has a bad value, or there is no such destination.
"""

from arendezvous.events.api import (
    AnyEvent,
    Event,
    EventMetadataValue,
    EventSource,
    NodeState,
    RdzvEvent,
    RecordedEvent,
)
from arendezvous.events.live import EventStream
from arendezvous.events.recorder import (
    construct_and_record_rdzv_event,
    get_logging_handler,
    history,
    record,
    record_rdzv_event,
    register_logging_handler,
    set_history_size,
    stream,
)

__all__ = [
    "AnyEvent",
    "Event",
    "EventMetadataValue",
    "EventSource",
    "EventStream",
    "NodeState",
    "RdzvEvent",
    "RecordedEvent",
    "construct_and_record_rdzv_event",
    "get_logging_handler",
    "history",
    "record",
    "record_rdzv_event",
    "register_logging_handler",
    "set_history_size",
    "stream",
]
