"""`open_rendezvous`: from a URL to a handler; the one place that knows which backend a scheme stands for."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, Final, cast

from arendezvous.backends.port import RendezvousBackend
from arendezvous.errors import RendezvousSettingsError
from arendezvous.etcd.settings import ETCD_OPTIONS, ETCD_SCHEMES, EtcdSettings
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.endpoint import Endpoint, parse_endpoint
from arendezvous.rendezvous.driver import DynamicRendezvousHandler
from arendezvous.rendezvous.node import describe_node
from arendezvous.rendezvous.parameters import RendezvousParameters, reject_unknown
from arendezvous.rendezvous.settings import RendezvousSettings, RendezvousTimeout, run_settings, seconds
from arendezvous.rendezvous.static import open_static

OPTIONS: Final = frozenset(
    {
        "close_timeout",
        "disconnect_grace",
        "heartbeat_timeout",
        "is_host",
        "join_timeout",
        "keep_alive_interval",
        "keep_alive_max_attempt",
        "label",
        "last_call_timeout",
        "node",
        "rank",
        "rank_policy",
        "read_timeout",
        "timeout",
        "tls",
        "tls_ca",
        "tls_cert",
        "tls_key",
        "tls_server_name",
        "token",
        "token_file",
    }
)


def open_rendezvous(
    endpoint: str,
    *,
    run_id: str,
    min_nodes: int,
    max_nodes: int | None = None,
    local_addr: str | None = None,
    node: str | None = None,
    label: str = "",
    rank: int | None = None,
    timeout: RendezvousTimeout | None = None,
    read_timeout: float = 60.0,
    keep_alive_interval: float = 5.0,
    keep_alive_max_attempt: int = 3,
    disconnect_grace: float = 1.0,
    rank_policy: str = "sticky",
    is_host: bool | None = None,
    token: str | None = None,
    token_file: str = "",
    tls: bool | None = None,
    tls_ca: str = "",
    tls_cert: str = "",
    tls_key: str = "",
    tls_server_name: str = "",
    **etcd: Any,
) -> DynamicRendezvousHandler:
    """Opens a rendezvous for one node of a run; to be used in an ``async with`` statement.

    Args:
        endpoint: Where the run is kept, as a URL: ``tcp://host:29400``, ``http://host:29401``, ``memory://``.
            With ``static://host:29400`` every node needs its `rank`, and only `max_nodes`, `local_addr`,
            `node`, `label` and ``timeout.join`` matter besides.
        run_id: The run; nodes with the same one at the same place meet.
        min_nodes: A round never completes with fewer nodes.
        max_nodes: A round completes at once with as many, and never has more; None: the same as `min_nodes`.
        local_addr: The address by which other nodes reach this one; None: found out from the connection.
        node: This node's name, unique in the run; None makes one up.
        label: Where the node stands in the topology, for the rank policy ``topology``.
        rank: The rank that it asks for, with the rank policy ``given``; with ``static://`` the one it has.
        timeout: The time-outs; None: the defaults of `RendezvousTimeout`.
        read_timeout: Seconds that connecting, or a request, may take.
        keep_alive_interval: Seconds between two heartbeats.
        keep_alive_max_attempt: A node that misses so many heartbeats is dead.
        disconnect_grace: Seconds that a node whose connection broke has to come back.
        rank_policy: ``sticky``, ``natural``, ``given`` or ``topology``.
        is_host: Whether this process serves the endpoint if nobody does; None: if the endpoint's address is
            one of this machine.
        token: The bearer token, where the server asks for one; None: from `token_file` or the environment,
            see `Credentials.of`; empty: none. A server that this process hosts asks the others for the same.
        token_file: A file whose first word is the token.
        tls: Whether to speak TLS, trusting the system's authorities without `tls_ca`; None: if there are
            files for it.
        tls_ca: A file with the certificates of the authorities to trust.
        tls_cert: A file with this node's certificate, to show to the server, or to serve with.
        tls_key: A file with the key of `tls_cert`; empty: it is in the same file.
        tls_server_name: The name that the server's certificate must have; empty: the endpoint's host.
        etcd: With ``etcd://`` and ``etcd-v2://``, how to reach the cluster: ``user``, and ``password`` or
            ``password_file``; ``protocol``; the files ``cacert``, ``cert`` and ``key``; and ``etcd_prefix``.
            See `etcd_settings`. Nothing else is allowed.

    Returns:
        The handler. Entering the block connects, and raises `RendezvousConnectionError` if the endpoint could
        not be reached within `read_timeout`. Leaving the block, by any way, leaves the run. For ``static://``
        it is a `StaticRendezvousHandler`, which has the same methods.

    Raises:
        RendezvousSettingsError: A value, or the name of one, is not allowed.
    """
    parsed = parse_endpoint(endpoint)
    _reject_unknown(parsed.scheme, etcd)
    given = {"ca": tls_ca, "cert": tls_cert, "key": tls_key, "server_name": tls_server_name}
    credentials = _credentials(parsed, token=token, token_file=token_file, tls=tls, **given)
    timeout = timeout or RendezvousTimeout()
    max_nodes = min_nodes if max_nodes is None else max_nodes
    desc = describe_node(local_addr, name=node, label=label, rank=rank)
    if parsed.scheme == "static":
        static = open_static(parsed, run_id, timeout, (min_nodes, max_nodes), desc)
        return cast(DynamicRendezvousHandler, static)  # it has the same methods; types cannot see the scheme
    run = run_settings(
        timeout,
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        keep_alive_interval=keep_alive_interval,
        keep_alive_max_attempt=keep_alive_max_attempt,
        disconnect_grace=disconnect_grace,
        rank_policy=rank_policy,
    )
    settings = RendezvousSettings(run_id, timeout, run)
    options: dict[str, Any] = {
        "read_timeout": seconds("read_timeout", read_timeout),
        "join_timeout": timeout.join,
        "is_host": is_host,
        "credentials": credentials,
    }
    if parsed.scheme in ETCD_SCHEMES:
        options["etcd"] = EtcdSettings.of(etcd)
    return DynamicRendezvousHandler(settings, open_backend(parsed, run_id, options), desc)


def create_handler(params: RendezvousParameters) -> DynamicRendezvousHandler:
    """Makes a handler, not entered yet, from the parameters that torch's registry knows.

    The options are those of `OPTIONS`; all times are seconds. ``timeout``, which torchrun always passes, is
    taken for the join time-out if there is no ``join_timeout``, but never shortens it below the default.

    Raises:
        RendezvousSettingsError: A parameter, or the name of an option, is not allowed.
    """
    options = ETCD_OPTIONS if params.backend in ETCD_SCHEMES else frozenset()
    if options and "password" in params.config:
        expected = "left out: options are shown in logs and lists of processes. Give password_file instead"
        raise RendezvousSettingsError(
            f"password must be {expected}, or ARENDEZVOUS_ETCD_PASSWORD in the environment",
            name="password",
            expected=expected,
        )
    reject_unknown(params, OPTIONS | options)
    join = params.get_as_float("join_timeout")
    if join is None:
        join = max(params.get_as_float("timeout", 0.0), RendezvousTimeout().join)
    timeout = RendezvousTimeout(
        join=join,
        last_call=params.get_as_float("last_call_timeout"),
        close=params.get_as_float("close_timeout"),
        heartbeat=params.get_as_float("heartbeat_timeout"),
    )
    return open_rendezvous(
        str(parse_endpoint(params.endpoint, params.backend)),
        run_id=params.run_id,
        min_nodes=params.min_nodes,
        max_nodes=params.max_nodes,
        local_addr=params.local_addr,
        node=params.get("node"),
        label=params.get("label", ""),
        rank=params.get_as_int("rank"),
        timeout=timeout,
        read_timeout=params.get_as_float("read_timeout", 60.0),
        keep_alive_interval=params.get_as_float("keep_alive_interval", 5.0),
        keep_alive_max_attempt=params.get_as_int("keep_alive_max_attempt", 3),
        disconnect_grace=params.get_as_float("disconnect_grace", 1.0),
        rank_policy=params.get("rank_policy", "sticky"),
        is_host=params.get_as_bool("is_host"),
        token=params.get("token"),
        token_file=params.get("token_file", ""),
        tls=params.get_as_bool("tls"),
        tls_ca=params.get("tls_ca", ""),
        tls_cert=params.get("tls_cert", ""),
        tls_key=params.get("tls_key", ""),
        tls_server_name=params.get("tls_server_name", ""),
        **{name: params.get(name) for name in options},
    )


def open_backend(endpoint: Endpoint, run_id: str, options: dict[str, Any]) -> RendezvousBackend:
    """Makes the backend, not entered yet, that `endpoint` stands for.

    Raises:
        RendezvousSettingsError: There is none for its scheme.
    """
    maker = _BACKENDS.get(endpoint.scheme)
    if maker is None:
        schemes = ", ".join(f"{name}://" for name in _BACKENDS)
        raise RendezvousSettingsError.of("endpoint", str(endpoint), f"a URL with one of {schemes}")
    return maker(endpoint, run_id, options)


def _open_tcp(endpoint: Endpoint, run_id: str, options: dict[str, Any]) -> RendezvousBackend:
    from arendezvous.backends.tcp.embedded import EmbeddedBackend

    return EmbeddedBackend(endpoint.host, endpoint.port, run_id, **options)


def _open_c10d(endpoint: Endpoint, run_id: str, options: dict[str, Any]) -> RendezvousBackend:
    from arendezvous.backends.shared_state.c10d import C10dBackend

    wanted = {name: options[name] for name in ("read_timeout", "is_host")}
    return C10dBackend(endpoint.host, endpoint.port, run_id, **wanted)


def _open_etcd(endpoint: Endpoint, run_id: str, options: dict[str, Any]) -> RendezvousBackend:
    from arendezvous.backends.etcd.backend import EtcdBackend

    wanted = {name: options[name] for name in ("read_timeout", "join_timeout")}
    return EtcdBackend(run_id=run_id, **wanted, **_etcd_arguments(endpoint, options))


def _open_etcd_v2(endpoint: Endpoint, run_id: str, options: dict[str, Any]) -> RendezvousBackend:
    from arendezvous.backends.shared_state.etcd_v2 import EtcdV2Backend

    wanted = {"read_timeout": options["read_timeout"]}
    return EtcdV2Backend(run_id=run_id, **wanted, **_etcd_arguments(endpoint, options))


def _etcd_arguments(endpoint: Endpoint, options: dict[str, Any]) -> dict[str, Any]:
    if options.get("is_host") is not None:
        expected = f"left out for {endpoint.scheme}://, because nodes never host etcd"
        raise RendezvousSettingsError.of("is_host", options["is_host"], expected)
    settings = options.get("etcd") or EtcdSettings.of({})
    return settings.arguments(endpoint)


def _open_http(endpoint: Endpoint, run_id: str, options: dict[str, Any]) -> RendezvousBackend:
    from arendezvous.backends.http.backend import HttpBackend

    if options.get("is_host"):
        expected = f"left out for {endpoint.scheme}://, because nodes host no server that is reached by HTTP"
        raise RendezvousSettingsError.of("is_host", options["is_host"], expected)
    wanted = {name: options[name] for name in ("read_timeout", "join_timeout", "credentials")}
    return HttpBackend(endpoint.host, endpoint.port, run_id, tls=endpoint.scheme == "https", **wanted)


def _open_memory(endpoint: Endpoint, run_id: str, options: dict[str, Any]) -> RendezvousBackend:
    from arendezvous.backends.memory import LocalBackend

    return LocalBackend(run_id, endpoint.host)


_BACKENDS: Final[dict[str, Callable[[Endpoint, str, dict[str, Any]], RendezvousBackend]]] = {
    "tcp": _open_tcp,
    "http": _open_http,
    "https": _open_http,
    "c10d": _open_c10d,
    "etcd": _open_etcd,
    "etcd-v2": _open_etcd_v2,
    "memory": _open_memory,
}


def _credentials(endpoint: Endpoint, **given: Any) -> Credentials:
    """What is given, and the rest from the environment; a scheme that takes none may be given none."""
    if endpoint.scheme in _TAKES_CREDENTIALS:
        return Credentials.of(**given)
    for name, value in given.items():
        if value:
            option = name if name in ("token", "token_file", "tls") else f"tls_{name}"
            instead = _INSTEAD.get(endpoint.scheme, "tcp:// and http:// do")
            expected = f"left out for {endpoint.scheme}://, which takes none; {instead}"
            raise RendezvousSettingsError(f"{option} must be {expected}", name=option, expected=expected)
    return NO_CREDENTIALS


_TAKES_CREDENTIALS: Final = frozenset({"tcp", "http", "https"})
_INSTEAD: Final = {
    "etcd": "etcd takes user and password, and the files cacert, cert and key",
    "etcd-v2": "etcd takes user and password, and the files cacert, cert and key",
}


def _reject_unknown(scheme: str, options: dict[str, Any]) -> None:
    etcd = [*sorted(ETCD_OPTIONS), "password"]
    name = next((key for key in options if scheme not in ETCD_SCHEMES or key not in etcd), None)
    if name is None:
        return
    if name in etcd:
        expected = f"left out for {scheme}://: it is an option of etcd:// and etcd-v2://"
        raise RendezvousSettingsError(f"{name} must be {expected}", name=name, expected=expected)
    known = [key for key in inspect.signature(open_rendezvous).parameters if key != "etcd"]
    known += etcd if scheme in ETCD_SCHEMES else []
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise RendezvousSettingsError(
        f"{name} is no setting of open_rendezvous{hint} Known: {', '.join(known)}",
        name=name,
        expected=", ".join(known),
    )
