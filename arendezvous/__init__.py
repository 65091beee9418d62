"""An asyncio-native rendezvous for distributed jobs.

Nodes of a job meet, agree on members, ranks and world size, keep each other alive, and meet again when one
dies, leaves or arrives::

    async with arendezvous.open_rendezvous("tcp://node0:29400", run_id="job", min_nodes=2) as rdzv:
        info = await rdzv.next_rendezvous()
        print(info.rank, info.world_size)

`open_rendezvous` gives a node its handler, `serve` runs the server. `arendezvous.sync` is the same for
programs that block, `arendezvous.torch` has what torchrun and torch need, `arendezvous.events` the events,
`arendezvous.testing` checks backends and stores.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arendezvous.backends.port import RendezvousBackend as RendezvousBackend
    from arendezvous.backends.shared_state.compare_and_set import CompareAndSetBackend as CompareAndSetBackend
    from arendezvous.connecting import ServerConnection as ServerConnection
    from arendezvous.connecting import connect as connect
    from arendezvous.connecting import observe as observe
    from arendezvous.errors import FactsDifferError as FactsDifferError
    from arendezvous.errors import QuarantinedError as QuarantinedError
    from arendezvous.errors import RendezvousClosedError as RendezvousClosedError
    from arendezvous.errors import RendezvousConnectionError as RendezvousConnectionError
    from arendezvous.errors import RendezvousError as RendezvousError
    from arendezvous.errors import RendezvousGracefulExitError as RendezvousGracefulExitError
    from arendezvous.errors import RendezvousNotFoundError as RendezvousNotFoundError
    from arendezvous.errors import RendezvousPermissionError as RendezvousPermissionError
    from arendezvous.errors import RendezvousSettingsError as RendezvousSettingsError
    from arendezvous.errors import RendezvousStateError as RendezvousStateError
    from arendezvous.errors import RendezvousTimeoutError as RendezvousTimeoutError
    from arendezvous.errors import RendezvousTypeError as RendezvousTypeError
    from arendezvous.errors import RoundOverError as RoundOverError
    from arendezvous.errors import StoreError as StoreError
    from arendezvous.errors import StoreFullError as StoreFullError
    from arendezvous.errors import StoreQueueEmptyError as StoreQueueEmptyError
    from arendezvous.errors import StoreTimeoutError as StoreTimeoutError
    from arendezvous.etcd.cluster import EtcdCluster as EtcdCluster
    from arendezvous.keyspace.grants import Grant as Grant
    from arendezvous.keyspace.grants import Scope as Scope
    from arendezvous.law.rosters import Member as Member
    from arendezvous.law.rules import Role as Role
    from arendezvous.law.state import Cause as Cause
    from arendezvous.law.state import NodeDesc as NodeDesc
    from arendezvous.law.status import RunStatus as RunStatus
    from arendezvous.net.credentials import Credentials as Credentials
    from arendezvous.net.tls import TlsFiles as TlsFiles
    from arendezvous.observing import Missed as Missed
    from arendezvous.observing import RunChanged as RunChanged
    from arendezvous.observing import RunForgotten as RunForgotten
    from arendezvous.observing import RunObserver as RunObserver
    from arendezvous.observing import ServerObserver as ServerObserver
    from arendezvous.opening import open_rendezvous as open_rendezvous
    from arendezvous.registry import RendezvousHandlerCreator as RendezvousHandlerCreator
    from arendezvous.registry import RendezvousHandlerRegistry as RendezvousHandlerRegistry
    from arendezvous.registry import get_rendezvous_handler as get_rendezvous_handler
    from arendezvous.registry import rendezvous_handler_registry as rendezvous_handler_registry
    from arendezvous.rendezvous.bootstrap import RendezvousStoreInfo as RendezvousStoreInfo
    from arendezvous.rendezvous.changes import Change as Change
    from arendezvous.rendezvous.changes import Closed as Closed
    from arendezvous.rendezvous.changes import Evicted as Evicted
    from arendezvous.rendezvous.changes import NodeDraining as NodeDraining
    from arendezvous.rendezvous.changes import NodeLeft as NodeLeft
    from arendezvous.rendezvous.changes import NodeLost as NodeLost
    from arendezvous.rendezvous.changes import NodeStalled as NodeStalled
    from arendezvous.rendezvous.changes import NodesWaiting as NodesWaiting
    from arendezvous.rendezvous.changes import Outlook as Outlook
    from arendezvous.rendezvous.changes import Resized as Resized
    from arendezvous.rendezvous.changes import StateChanged as StateChanged
    from arendezvous.rendezvous.driver import DynamicRendezvousHandler as DynamicRendezvousHandler
    from arendezvous.rendezvous.handler import AsyncRendezvousHandler as AsyncRendezvousHandler
    from arendezvous.rendezvous.handler import HistoryEntry as HistoryEntry
    from arendezvous.rendezvous.handler import RendezvousInfo as RendezvousInfo
    from arendezvous.rendezvous.handler import is_stale as is_stale
    from arendezvous.rendezvous.option_groups import RendezvousTimeout as RendezvousTimeout
    from arendezvous.rendezvous.parameters import RendezvousParameters as RendezvousParameters
    from arendezvous.rendezvous.rounds import Round as Round
    from arendezvous.rendezvous.settings import RendezvousSettings as RendezvousSettings
    from arendezvous.server.access.authority import Authority as Authority
    from arendezvous.server.access.limits import ServerLimits as ServerLimits
    from arendezvous.server.serve import Server as Server
    from arendezvous.server.serve import serve as serve
    from arendezvous.server.tls import ServerTls as ServerTls
    from arendezvous.stores.etcd.v2 import EtcdV2Store as EtcdV2Store
    from arendezvous.stores.etcd.v3 import EtcdStore as EtcdStore
    from arendezvous.stores.http.store import HttpStore as HttpStore
    from arendezvous.stores.memory import MemoryStore as MemoryStore
    from arendezvous.stores.port import PrefixStore as PrefixStore
    from arendezvous.stores.port import Store as Store
    from arendezvous.stores.tcp.store import TcpStore as TcpStore

_NAMES = {
    "backends.port": "RendezvousBackend",
    "backends.shared_state.compare_and_set": "CompareAndSetBackend",
    "connecting": "ServerConnection connect observe",
    "errors": (
        "FactsDifferError QuarantinedError RendezvousClosedError RendezvousConnectionError "
        "RendezvousError RendezvousGracefulExitError RendezvousNotFoundError "
        "RendezvousPermissionError RendezvousSettingsError RendezvousStateError "
        "RendezvousTimeoutError RendezvousTypeError RoundOverError StoreError StoreFullError "
        "StoreQueueEmptyError StoreTimeoutError"
    ),
    "etcd.cluster": "EtcdCluster",
    "keyspace.grants": "Grant Scope",
    "law.rosters": "Member",
    "law.rules": "Role",
    "law.state": "Cause NodeDesc",
    "law.status": "RunStatus",
    "net.credentials": "Credentials",
    "net.tls": "TlsFiles",
    "observing": "Missed RunChanged RunForgotten RunObserver ServerObserver",
    "opening": "open_rendezvous",
    "registry": (
        "RendezvousHandlerCreator RendezvousHandlerRegistry get_rendezvous_handler "
        "rendezvous_handler_registry"
    ),
    "rendezvous.bootstrap": "RendezvousStoreInfo",
    "rendezvous.changes": (
        "Change Closed Evicted NodeDraining NodeLeft NodeLost NodeStalled NodesWaiting Outlook "
        "Resized StateChanged"
    ),
    "rendezvous.driver": "DynamicRendezvousHandler",
    "rendezvous.handler": "AsyncRendezvousHandler HistoryEntry RendezvousInfo is_stale",
    "rendezvous.option_groups": "RendezvousTimeout",
    "rendezvous.parameters": "RendezvousParameters",
    "rendezvous.rounds": "Round",
    "rendezvous.settings": "RendezvousSettings",
    "server.access.authority": "Authority",
    "server.access.limits": "ServerLimits",
    "server.serve": "Server serve",
    "server.tls": "ServerTls",
    "stores.etcd.v2": "EtcdV2Store",
    "stores.etcd.v3": "EtcdStore",
    "stores.http.store": "HttpStore",
    "stores.memory": "MemoryStore",
    "stores.port": "PrefixStore Store",
    "stores.tcp.store": "TcpStore",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - sorted() of str keys is a list of str


def __getattr__(name: str) -> Any:
    """Imports a public name from its module on first use, so that importing the package stays quick."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("arendezvous")
        except PackageNotFoundError:  # it runs from a folder that is not installed
            value = "0+unknown"
    elif name in _HOMES:
        value = getattr(import_module(f"arendezvous.{_HOMES[name]}"), name)
    else:
        from arendezvous.guesses import PACKAGE, meant

        hint = "" if name.startswith("_") else meant(name, _HOMES, PACKAGE)
        raise AttributeError(f"module 'arendezvous' has no attribute {name!r}{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
