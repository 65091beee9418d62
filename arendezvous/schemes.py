"""The schemes of endpoints: one entry for each says everything that depends on it.

An entry, a `Scheme`, says how its URLs are read, which options it takes, how its backend is made, what
``arendezvous doctor`` checks there, and how commands look at a run. One more is added to `OURS`, or, from
another distribution, by an entry point in the group ``arendezvous.schemes``: its name is the scheme, its
value the entry. See ``docs/guides/schemes.md``. What is heavy is imported when it is used.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError
from arendezvous.etcd.settings import etcd_arguments
from arendezvous.law.state import NodeDesc
from arendezvous.net.addresses import is_unspecified
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import Endpoint, join_host_port, parse_host_port
from arendezvous.net.servers import Servers
from arendezvous.rendezvous import option_groups as groups
from arendezvous.rendezvous.handler import AsyncRendezvousHandler
from arendezvous.rendezvous.option_groups import AccessOptions, TokenOptions
from arendezvous.rendezvous.options import Option, picked, settings_of
from arendezvous.rendezvous.settings import RendezvousSettings

if TYPE_CHECKING:
    from arendezvous.backends.feed import RunsItem
    from arendezvous.doctor.checks import Finding
    from arendezvous.observing import RunNews
    from arendezvous.plugins import PlugIns

GROUP: Final = "arendezvous.schemes"

Hosts: TypeAlias = "tuple[tuple[str, int], ...]"
WatchedRun: TypeAlias = "AbstractAsyncContextManager[RunNews]"
WatchedRuns: TypeAlias = "AbstractAsyncContextManager[AsyncIterator[RunsItem]]"


@dataclass(frozen=True, kw_only=True)
class BackendSettings:
    """Gathers what a backend is made from.

    Attributes:
        endpoint: Where it is.
        run_id: The run.
        read_timeout: Seconds that connecting, or a request, may take.
        join_timeout: Seconds that a node waits for a complete round.
        credentials: The token and the TLS settings, of the scheme's options or of a command.
        options: All options of the scheme, checked: as given, or their defaults, or None. Times are seconds.
            A command that looks at a run gives only ``is_host=False``, where that is an option.
    """

    endpoint: Endpoint
    run_id: str
    read_timeout: float
    join_timeout: float
    credentials: Credentials
    options: Mapping[str, Any]

    @property
    def of_session(self) -> dict[str, Any]:
        """The arguments of every session with a server of ours, besides its address and the run."""
        times = {"read_timeout": self.read_timeout, "join_timeout": self.join_timeout}
        return {**times, "credentials": self.credentials}

    @property
    def of_watch(self) -> dict[str, Any]:
        """The arguments of whoever watches a server of ours, besides its address and the run."""
        return {"timeout": self.read_timeout, "credentials": self.credentials}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One entry of the table. Exactly one of `backend` and `handler` is given.

    Attributes:
        name: The name of the backend, in the registry and as its `RendezvousBackend.name`.
        parse: Reads what stands behind ``scheme://`` in a URL; raises `RendezvousSettingsError`.
        options: The groups of options that it takes, besides `CommonOptions`, which all take. A group is a
            `TypedDict`, see `arendezvous.rendezvous.options`.
        backend: Makes a backend, not entered yet.
        handler: Makes a handler, not entered yet, where there is no backend: from the settings, the node, and
            what a backend would be made from.
        also: Other schemes of its URLs than its name.
        is_shared: Whether other processes see its runs, so that commands can look at them through `backend`.
        is_server: Whether its backends are `ServerBackend`s, so that all runs can be listed.
        watch: Watches a run for ``arendezvous watch``; None: nobody there could tell of one.
        watch_runs: Watches all runs of a server that tells of them by itself; None: it does not.
        examine: Makes the checks of ``arendezvous doctor``; with one called ``server`` that is good, the run
            is looked at, too. None: there are none.
        least_join: Seconds that ``timeout``, among torch's parameters, leaves at least to join.
    """

    name: str
    parse: Callable[[str], Hosts]
    options: tuple[type, ...]
    backend: Callable[[BackendSettings], RendezvousBackend] | None = None
    handler: Callable[[RendezvousSettings, NodeDesc, BackendSettings], AsyncRendezvousHandler] | None = None
    also: tuple[str, ...] = ()
    is_shared: bool = True
    is_server: bool = False
    watch: Callable[[BackendSettings], WatchedRun] | None = None
    watch_runs: Callable[[BackendSettings], WatchedRuns] | None = None
    examine: Callable[[BackendSettings], Awaitable[list[Finding]]] | None = None
    least_join: float = 600.0

    def __post_init__(self) -> None:
        if (self.backend is None) is (self.handler is None):
            raise ValueError(f"the scheme {self.name!r} needs a backend or a handler, and not both")

    @property
    def urls(self) -> tuple[str, ...]:
        """The schemes of its URLs."""
        return (self.name, *self.also)

    @property
    def settings(self) -> Mapping[str, Option]:
        """The options that it takes, by name."""
        return settings_of(groups.CommonOptions, *self.options)

    def filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options that were given, and the defaults of the others."""
        return {name: given.get(name, option.default) for name, option in self.settings.items()}

    def credentials(self, options: Mapping[str, Any]) -> Credentials:
        """Makes what a server is shown from the options that are given, and the rest from the environment."""
        for group in (AccessOptions, TokenOptions):
            if group in self.options:
                given = {name.removeprefix("tls_"): value for name, value in picked(options, group).items()}
                found = Credentials.of(**given)
                return found if group is AccessOptions else Credentials(token=found.token)
        return NO_CREDENTIALS


def hosts(default_port: int, *, many: bool = False) -> Callable[[str], Hosts]:
    """Returns a `Scheme.parse` that reads ``host[:port]``, or, if there may be many, several with commas."""

    def parse(rest: str) -> Hosts:
        rest = rest.rstrip("/")
        if any(mark in rest for mark in "/?#@"):
            expected = "host[:port] without path, query or user name"
            raise RendezvousSettingsError.of("endpoint", rest, expected)
        parts = rest.split(",") if many else [rest]
        return tuple(parse_host_port(part, name="endpoint", default_port=default_port) for part in parts)

    return parse


@functools.lru_cache(maxsize=64)  # the many nodes of one process have one endpoint
def parse_endpoint(endpoint: str, backend: str | None = None) -> Endpoint:
    """Parses an endpoint, which must name a host and have a scheme that there is.

    Args:
        endpoint: A URL; or, if `backend` is given, what stands behind its slashes, such as ``host[:port]``.
        backend: The backend of an endpoint that is no URL, and the only one allowed of one that is; None:
            the URL decides.
    """
    if not isinstance(endpoint, str):
        raise RendezvousTypeError.of("endpoint", endpoint, "a URL such as tcp://host:29400")
    refused = functools.partial(RendezvousSettingsError.of, "endpoint", endpoint)
    name, separator, rest = endpoint.partition("://")
    if not separator:
        if backend is None:
            known = _urls(scheme_names(), "and")
            raise refused(f"a URL such as tcp://host:29400; the schemes are {known}")
        name, rest = backend, endpoint
    if name not in _TABLE and name not in scheme_names():
        near = difflib.get_close_matches(name, scheme_names(), 1)
        hint = f"; did you mean {near[0]}://?" if near else ""
        raise refused(f"a URL with one of {_urls(scheme_names(), 'or')}{hint}")
    scheme = scheme_named(name)
    if backend is not None and scheme.name != backend:
        raise refused(f"a URL that begins with {backend}://")
    found = Endpoint(name, scheme.parse(rest))
    for host in (host for host, _ in found.hosts if is_unspecified(host)):
        raise refused(
            f"a URL with a host that nodes can go to, such as its name; {host} is only for servers, which"
            " then listen on all addresses: arendezvous serve --host"
        )
    return found


def scheme_names() -> tuple[str, ...]:
    """Returns the schemes of all URLs: ours, and those of plug-ins, none of which is imported for that."""
    return (*_TABLE, *(name for name in _plugins().names() if name not in _TABLE))


def scheme_named(name: str) -> Scheme:
    """Returns the entry of a URL's scheme, one of `scheme_names`, unless it is a plug-in's that is broken."""
    return _TABLE[name] if name in _TABLE else _load(name)


def schemes() -> Iterable[Scheme]:
    """Yields all entries that can be loaded, for error messages and tables; passes over broken plug-ins."""
    yield from dict.fromkeys(_TABLE.values())
    for name in _plugins().names():
        with suppress(RendezvousSettingsError):  # whoever asks for it by its name is told
            if name not in _TABLE:
                yield _load(name)


def urls_where(has: Callable[[Scheme], object], last: str = "or") -> str:
    """Names, for an error message, the URLs of all schemes that have something: ``tcp:// or http://``."""
    return _urls([url for scheme in schemes() if has(scheme) for url in scheme.urls], last)


def _urls(names: Sequence[str], last: str) -> str:
    shown = [f"{name}://" for name in names]
    return f" {last} ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


@functools.cache
def _plugins() -> PlugIns:
    from arendezvous.plugins import PlugIns

    return PlugIns(GROUP, "scheme")


@functools.cache
def _load(name: str) -> Scheme:
    scheme = _plugins().load(name)
    refused = functools.partial(RendezvousSettingsError.of, f"what the {_plugins().describe(name)} gives")
    if not isinstance(scheme, Scheme):
        raise refused(scheme, "an arendezvous.schemes.Scheme")
    if name not in scheme.urls:
        raise refused(scheme.name, f"the scheme {name!r}, as its entry point is called")
    return scheme


# Ours, one after the other


def _tcp(where: BackendSettings) -> RendezvousBackend:
    host, port, is_host = where.endpoint.host, where.endpoint.port, where.options["is_host"]
    several = Servers(where.endpoint.hosts) if len(where.endpoint.hosts) > 1 else None
    if several is not None and is_host:
        expected = "left out for several servers, as none of the nodes hosts them"
        raise RendezvousSettingsError.of("is_host", is_host, expected)
    if several is not None or (is_host is False and port):
        from arendezvous.backends.tcp.session import SessionBackend  # without the server

        return SessionBackend(host, port, where.run_id, **where.of_session, servers=several)
    from arendezvous.backends.tcp.embedded import EmbeddedBackend

    return EmbeddedBackend(host, port, where.run_id, **where.of_session, is_host=is_host)


def _watch_tcp(where: BackendSettings) -> WatchedRun:
    from arendezvous.backends.tcp.watching import RunWatch, watch_server

    return watch_server(Servers(where.endpoint.hosts), RunWatch, where.run_id, **where.of_watch)


def _watch_tcp_runs(where: BackendSettings) -> WatchedRuns:
    from arendezvous.backends.tcp.watching import RunsWatch, watch_server

    return watch_server(Servers(where.endpoint.hosts), RunsWatch, **where.of_watch)


async def _examine_tcp(where: BackendSettings) -> list[Finding]:
    from arendezvous.doctor.tcp import examine_tcp

    return await _of_each_host(where, examine_tcp)


async def _of_each_host(
    where: BackendSettings, examine: Callable[[Endpoint, Credentials], Awaitable[list[Finding]]]
) -> list[Finding]:
    """Makes the checks of servers that stand in for each other, one after the other."""
    alone = (Endpoint(where.endpoint.scheme, (host,)) for host in where.endpoint.hosts)
    return [check for endpoint in alone for check in await examine(endpoint, where.credentials)]


def _http(where: BackendSettings) -> RendezvousBackend:
    from arendezvous.backends.http.backend import HttpBackend

    tls = where.endpoint.scheme == "https"
    first, *others = where.endpoint.hosts
    return HttpBackend(*first, where.run_id, tls=tls, **where.of_session, others=others)


def _urls_of(endpoint: Endpoint) -> list[str]:
    return [f"{endpoint.scheme}://{join_host_port(*host)}" for host in endpoint.hosts]


def _watch_http(where: BackendSettings) -> WatchedRun:
    from arendezvous.backends.http.watching import watch_run

    url, *others = _urls_of(where.endpoint)
    return watch_run(url, where.run_id, **where.of_watch, others=others)


def _watch_http_runs(where: BackendSettings) -> WatchedRuns:
    from arendezvous.backends.http.watching import watch_runs

    url, *others = _urls_of(where.endpoint)
    return watch_runs(url, **where.of_watch, others=others)


async def _examine_http(where: BackendSettings) -> list[Finding]:
    from arendezvous.doctor.http import examine_http

    return await _of_each_host(where, examine_http)


def _c10d(where: BackendSettings) -> RendezvousBackend:
    from arendezvous.backends.shared_state.c10d import C10dBackend

    host, port, is_host = where.endpoint.host, where.endpoint.port, where.options["is_host"]
    return C10dBackend(host, port, where.run_id, read_timeout=where.read_timeout, is_host=is_host)


async def _examine_c10d(where: BackendSettings) -> list[Finding]:
    from arendezvous.doctor.tcp import examine_c10d

    guest = replace(where, options={**where.options, "is_host": False})
    return await examine_c10d(where.endpoint, lambda: _c10d(guest))


def _cluster(where: BackendSettings) -> dict[str, Any]:
    """Returns the arguments by which a backend or a store reaches an etcd cluster."""
    credentials, scheme = where.credentials, where.endpoint.scheme
    if credentials.server_name:
        expected = f"left out for {scheme}://, where certificates have to be for the URL's hosts"
        raise RendezvousSettingsError.of(credentials.names.server_name, credentials.server_name, expected)
    protocol = {"protocol": "https"} if credentials.uses_tls else {}
    return etcd_arguments({**where.options, **protocol}, where.endpoint, tls=credentials.files)


def _etcd(where: BackendSettings) -> RendezvousBackend:
    from arendezvous.backends.tcp.elected import ElectedBackend

    port = where.options.get("port") or 0
    if not 0 <= port <= 65535:
        raise RendezvousSettingsError.of("port", port, "from 1 to 65535, or left out")
    of_session = where.of_session | {"credentials": Credentials(token=where.credentials.token)}
    is_host = where.options["is_host"]
    return ElectedBackend(run_id=where.run_id, is_host=is_host, port=port, **of_session, **_cluster(where))


def _elected(where: BackendSettings) -> dict[str, Any]:
    return {"timeout": where.read_timeout, "token": where.credentials.token, **_cluster(where)}


def _watch_etcd(where: BackendSettings) -> WatchedRun:
    from arendezvous.backends.tcp.elected import watch_elected
    from arendezvous.backends.tcp.watching import RunWatch

    return watch_elected(RunWatch, where.run_id, **_elected(where))


def _watch_etcd_runs(where: BackendSettings) -> WatchedRuns:
    from arendezvous.backends.tcp.elected import watch_elected
    from arendezvous.backends.tcp.watching import RunsWatch

    return watch_elected(RunsWatch, "", **_elected(where))


async def _examine_etcd(where: BackendSettings) -> list[Finding]:
    from arendezvous.backends.tcp.elected import find_leader
    from arendezvous.doctor.etcd import LEASES, examine_etcd

    async def ask() -> str:
        leader = await find_leader(timeout=where.read_timeout, **_cluster(where))
        serves = f"{leader.tcp} serves" if leader else "nobody serves yet: a node will"
        return f"lets this node in; {serves}"

    return await examine_etcd(where.endpoint, ask, LEASES)


def _etcd_v2(where: BackendSettings) -> RendezvousBackend:
    from arendezvous.backends.shared_state.etcd_v2 import EtcdV2Backend

    return EtcdV2Backend(run_id=where.run_id, read_timeout=where.read_timeout, **_cluster(where))


async def _examine_etcd_v2(where: BackendSettings) -> list[Finding]:
    from arendezvous.doctor.checks import STAMPS
    from arendezvous.doctor.etcd import examine_etcd

    async def ask() -> str:
        async with _etcd_v2(where) as backend:
            await backend.status()
        return "lets this node read the state of a run"

    return await examine_etcd(where.endpoint, ask, STAMPS)


def _memory(where: BackendSettings) -> RendezvousBackend:
    from arendezvous.backends.memory import LocalBackend

    return LocalBackend(where.run_id, where.endpoint.host)


def _watch_memory(where: BackendSettings) -> WatchedRun:
    from arendezvous.backends.memory import watch_local

    return watch_local(where.run_id, where.endpoint.host)


def _watch_memory_runs(where: BackendSettings) -> WatchedRuns:
    from arendezvous.backends.memory import watch_local_runs

    return watch_local_runs(where.endpoint.host)


def _static(settings: RendezvousSettings, node: NodeDesc, where: BackendSettings) -> AsyncRendezvousHandler:
    from arendezvous.rendezvous.static import StaticRendezvousHandler
    from arendezvous.server.store_server import serve_store

    run = msgspec.structs.replace(settings.run, rank_policy="given")
    given = msgspec.structs.replace(settings, run=run)
    return StaticRendezvousHandler(where.endpoint, given, node, serve_store)


def _static_hosts(rest: str) -> Hosts:
    if not rest.strip():
        expected = "host:port, where rank 0 serves the store (torchrun: --master-addr and --master-port)"
        raise RendezvousSettingsError.of("endpoint", rest, expected)
    return hosts(29400)(rest.strip())


DYNAMIC: Final = (groups.RunOptions, groups.TimeOptions)  # what a rendezvous takes in which nodes meet again
OURS_ALONE: Final = (*DYNAMIC, groups.RuleOptions, groups.ReopenOptions)  # in which no stock node takes part

OURS: Final = (
    Scheme(
        name="tcp", parse=hosts(29400, many=True), options=(*OURS_ALONE, groups.HostOptions, AccessOptions),
        backend=_tcp, is_server=True, watch=_watch_tcp, watch_runs=_watch_tcp_runs, examine=_examine_tcp,
    ),
    Scheme(
        name="http", also=("https",), parse=hosts(29401, many=True), options=(*OURS_ALONE, AccessOptions),
        backend=_http, is_server=True, watch=_watch_http, watch_runs=_watch_http_runs, examine=_examine_http,
    ),
    Scheme(
        name="c10d", parse=hosts(29400), options=(*DYNAMIC, groups.HostOptions), backend=_c10d,
        examine=_examine_c10d,
    ),
    Scheme(
        name="etcd", parse=hosts(2379, many=True),
        options=(*OURS_ALONE, groups.HostOptions, groups.ElectionOptions, TokenOptions, groups.EtcdOptions),
        backend=_etcd, is_server=True, watch=_watch_etcd, watch_runs=_watch_etcd_runs, examine=_examine_etcd,
    ),
    Scheme(
        name="etcd-v2", parse=hosts(2379, many=True), options=(*DYNAMIC, groups.EtcdOptions),
        backend=_etcd_v2, examine=_examine_etcd_v2,
    ),
    Scheme(
        name="memory", parse=lambda rest: ((rest.rstrip("/"), 0),), options=OURS_ALONE, backend=_memory,
        is_shared=False, is_server=True, watch=_watch_memory, watch_runs=_watch_memory_runs,
    ),
    Scheme(
        name="static", parse=_static_hosts, options=(), handler=_static, least_join=0.0,
    ),
)  # fmt: skip
_TABLE: Final = {url: scheme for scheme in OURS for url in scheme.urls}
