"""The rendezvous for synchronous programs: the same names as in `arendezvous`, blocking.

::

    from arendezvous.sync import open_rendezvous

    with open_rendezvous("tcp://node0:29400", run_id="job1", min_nodes=2, max_nodes=4) as rdzv:
        info = rdzv.next_rendezvous()
        info.store.set("k", b"v")

All handlers of a process share one event loop in one background thread, which is started when it is first
needed. Ctrl-C, or an exception from any signal handler, during a call cancels what the call was doing:
a node that was joining is withdrawn at once. Must not be used from inside a running event loop.
"""

from __future__ import annotations

from arendezvous.sync.connecting import RunObserver, ServerConnection, connect, observe
from arendezvous.sync.handler import (
    RendezvousHandler,
    RendezvousInfo,
    Round,
    get_rendezvous_handler,
    open_rendezvous,
)
from arendezvous.sync.store import Store

__all__ = [
    "RendezvousHandler",
    "RendezvousInfo",
    "Round",
    "RunObserver",
    "ServerConnection",
    "Store",
    "connect",
    "get_rendezvous_handler",
    "observe",
    "open_rendezvous",
]
