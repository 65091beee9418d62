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
    from arendezvous.backends.compare_and_set import CompareAndSetBackend as CompareAndSetBackend
    from arendezvous.bootstrap import RendezvousStoreInfo as RendezvousStoreInfo
    from arendezvous.changes import Change as Change
    from arendezvous.changes import Closed as Closed
    from arendezvous.changes import Evicted as Evicted
    from arendezvous.changes import NodeDraining as NodeDraining
    from arendezvous.changes import NodeLeft as NodeLeft
    from arendezvous.changes import NodeLost as NodeLost
    from arendezvous.changes import NodesWaiting as NodesWaiting
    from arendezvous.changes import Outlook as Outlook
    from arendezvous.credentials import Credentials as Credentials
    from arendezvous.errors import RendezvousClosedError as RendezvousClosedError
    from arendezvous.errors import RendezvousConnectionError as RendezvousConnectionError
    from arendezvous.errors import RendezvousError as RendezvousError
    from arendezvous.errors import RendezvousGracefulExitError as RendezvousGracefulExitError
    from arendezvous.errors import RendezvousPermissionError as RendezvousPermissionError
    from arendezvous.errors import RendezvousSettingsError as RendezvousSettingsError
    from arendezvous.errors import RendezvousStateError as RendezvousStateError
    from arendezvous.errors import RendezvousTimeoutError as RendezvousTimeoutError
    from arendezvous.errors import StoreError as StoreError
    from arendezvous.errors import StoreQueueEmptyError as StoreQueueEmptyError
    from arendezvous.errors import StoreTimeoutError as StoreTimeoutError
    from arendezvous.explain import RunStatus as RunStatus
    from arendezvous.grants import Grant as Grant
    from arendezvous.grants import Scope as Scope
    from arendezvous.handler import AsyncRendezvousHandler as AsyncRendezvousHandler
    from arendezvous.handler import HistoryEntry as HistoryEntry
    from arendezvous.handler import RendezvousInfo as RendezvousInfo
    from arendezvous.opening import open_rendezvous as open_rendezvous
    from arendezvous.parameters import RendezvousParameters as RendezvousParameters
    from arendezvous.registry import RendezvousHandlerCreator as RendezvousHandlerCreator
    from arendezvous.registry import RendezvousHandlerRegistry as RendezvousHandlerRegistry
    from arendezvous.registry import get_rendezvous_handler as get_rendezvous_handler
    from arendezvous.registry import rendezvous_handler_registry as rendezvous_handler_registry
    from arendezvous.rendezvous import DynamicRendezvousHandler as DynamicRendezvousHandler
    from arendezvous.server.auth import Authority as Authority
    from arendezvous.server.limits import ServerLimits as ServerLimits
    from arendezvous.server.serve import Server as Server
    from arendezvous.server.serve import serve as serve
    from arendezvous.server.tls import ServerTls as ServerTls
    from arendezvous.settings import RendezvousSettings as RendezvousSettings
    from arendezvous.settings import RendezvousTimeout as RendezvousTimeout
    from arendezvous.state import Cause as Cause
    from arendezvous.state import NodeDesc as NodeDesc
    from arendezvous.store import PrefixStore as PrefixStore
    from arendezvous.store import Store as Store
    from arendezvous.stores.etcd import EtcdStore as EtcdStore
    from arendezvous.stores.etcd_v2 import EtcdV2Store as EtcdV2Store
    from arendezvous.stores.http import HttpStore as HttpStore
    from arendezvous.stores.memory import MemoryStore as MemoryStore
    from arendezvous.stores.tcp import TcpStore as TcpStore

_HOMES = {
    "AsyncRendezvousHandler": "handler",
    "Authority": "server.auth",
    "Cause": "state",
    "Change": "changes",
    "Closed": "changes",
    "CompareAndSetBackend": "backends.compare_and_set",
    "Credentials": "credentials",
    "DynamicRendezvousHandler": "rendezvous",
    "EtcdStore": "stores.etcd",
    "EtcdV2Store": "stores.etcd_v2",
    "Evicted": "changes",
    "Grant": "grants",
    "HistoryEntry": "handler",
    "HttpStore": "stores.http",
    "MemoryStore": "stores.memory",
    "NodeDesc": "state",
    "NodeDraining": "changes",
    "NodeLeft": "changes",
    "NodeLost": "changes",
    "NodesWaiting": "changes",
    "Outlook": "changes",
    "PrefixStore": "store",
    "RendezvousBackend": "backend",
    "RendezvousClosedError": "errors",
    "RendezvousConnectionError": "errors",
    "RendezvousError": "errors",
    "RendezvousGracefulExitError": "errors",
    "RendezvousHandlerCreator": "registry",
    "RendezvousHandlerRegistry": "registry",
    "RendezvousInfo": "handler",
    "RendezvousParameters": "parameters",
    "RendezvousPermissionError": "errors",
    "RendezvousSettings": "settings",
    "RendezvousSettingsError": "errors",
    "RendezvousStateError": "errors",
    "RendezvousStoreInfo": "bootstrap",
    "RendezvousTimeout": "settings",
    "RendezvousTimeoutError": "errors",
    "RunStatus": "explain",
    "Scope": "grants",
    "Server": "server.serve",
    "ServerLimits": "server.limits",
    "ServerTls": "server.tls",
    "Store": "store",
    "StoreError": "errors",
    "StoreQueueEmptyError": "errors",
    "StoreTimeoutError": "errors",
    "TcpStore": "stores.tcp",
    "get_rendezvous_handler": "registry",
    "open_rendezvous": "opening",
    "rendezvous_handler_registry": "registry",
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
