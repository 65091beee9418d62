"""An asyncio-native rendezvous for distributed jobs.

Nodes of a job meet, agree on members, ranks and world size, keep each other alive, and meet again when one
dies, leaves or arrives. The parts: `open_rendezvous` gives a node its handler; `serve` runs the server;
`machine` is the law that both obey; `arendezvous.testing` checks backends and stores.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arendezvous.backend import RendezvousBackend as RendezvousBackend
    from arendezvous.changes import Change as Change
    from arendezvous.changes import Closed as Closed
    from arendezvous.changes import Evicted as Evicted
    from arendezvous.changes import NodeDraining as NodeDraining
    from arendezvous.changes import NodeLeft as NodeLeft
    from arendezvous.changes import NodeLost as NodeLost
    from arendezvous.changes import NodesWaiting as NodesWaiting
    from arendezvous.errors import RendezvousClosedError as RendezvousClosedError
    from arendezvous.errors import RendezvousConnectionError as RendezvousConnectionError
    from arendezvous.errors import RendezvousError as RendezvousError
    from arendezvous.errors import RendezvousGracefulExitError as RendezvousGracefulExitError
    from arendezvous.errors import RendezvousSettingsError as RendezvousSettingsError
    from arendezvous.errors import RendezvousStateError as RendezvousStateError
    from arendezvous.errors import RendezvousTimeoutError as RendezvousTimeoutError
    from arendezvous.errors import StoreError as StoreError
    from arendezvous.errors import StoreTimeoutError as StoreTimeoutError
    from arendezvous.explain import RunStatus as RunStatus
    from arendezvous.handler import AsyncRendezvousHandler as AsyncRendezvousHandler
    from arendezvous.handler import RendezvousInfo as RendezvousInfo
    from arendezvous.opening import open_rendezvous as open_rendezvous
    from arendezvous.rendezvous import DynamicRendezvousHandler as DynamicRendezvousHandler
    from arendezvous.server.serve import Server as Server
    from arendezvous.server.serve import serve as serve
    from arendezvous.settings import RendezvousSettings as RendezvousSettings
    from arendezvous.settings import RendezvousTimeout as RendezvousTimeout
    from arendezvous.state import Cause as Cause
    from arendezvous.state import NodeDesc as NodeDesc
    from arendezvous.store import PrefixStore as PrefixStore
    from arendezvous.store import Store as Store

_HOMES = {
    "AsyncRendezvousHandler": "handler",
    "Cause": "state",
    "Change": "changes",
    "Closed": "changes",
    "DynamicRendezvousHandler": "rendezvous",
    "Evicted": "changes",
    "NodeDesc": "state",
    "NodeDraining": "changes",
    "NodeLeft": "changes",
    "NodeLost": "changes",
    "NodesWaiting": "changes",
    "PrefixStore": "store",
    "RendezvousBackend": "backend",
    "RendezvousClosedError": "errors",
    "RendezvousConnectionError": "errors",
    "RendezvousError": "errors",
    "RendezvousGracefulExitError": "errors",
    "RendezvousInfo": "handler",
    "RendezvousSettings": "settings",
    "RendezvousSettingsError": "errors",
    "RendezvousStateError": "errors",
    "RendezvousTimeout": "settings",
    "RendezvousTimeoutError": "errors",
    "RunStatus": "explain",
    "Server": "server.serve",
    "Store": "store",
    "StoreError": "errors",
    "StoreTimeoutError": "errors",
    "open_rendezvous": "opening",
    "serve": "server.serve",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - sorted() of str keys is a list of str


def __getattr__(name: str) -> Any:
    """Imports a public name from its module on first use, so that importing the package stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'arendezvous' has no attribute {name!r}")
    value = getattr(import_module(f"arendezvous.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
