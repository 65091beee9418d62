"""What users hand in is checked by type: a TypeError names the argument, and nothing is done."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import arendezvous as ar
from arendezvous.coordinator.budget import CoordinatorLimits
from arendezvous.keyspace.grants import Scope
from arendezvous.keyspace.regions import KeyspaceLimits
from arendezvous.net.credentials import Credentials

KEYS = ar.MemoryStore
Make = Callable[..., Any]


def at(make: Make, *given: Any, **others: Any) -> Make:
    return lambda **wrong: make(*given, **others, **wrong)


SERVE = at(ar.serve, "127.0.0.1:0")
TCP = at(ar.TcpStore, "127.0.0.1", 1)
HTTP = at(ar.HttpStore, "http://127.0.0.1:1")
ETCD = at(ar.EtcdStore, "127.0.0.1:1")
ETCD_V2 = at(ar.EtcdV2Store, "127.0.0.1:1")


@pytest.mark.parametrize(
    ("make", "name", "wrong"),
    [
        (ar.serve, "address", 29400),
        (ar.serve, "address", None),
        (SERVE, "http", True),
        (SERVE, "http", 29401),
        (SERVE, "insecure", "no"),
        (SERVE, "embedded", 1),
        (SERVE, "follows", "x"),
        (SERVE, "limits", {}),
        (SERVE, "authority", "a token"),
        (SERVE, "tls", True),
        (SERVE, "plain_stores", "no"),
        (at(ar.TcpStore, "127.0.0.1"), "port", "1"),
        (at(ar.TcpStore, "127.0.0.1"), "port", True),
        *((make, name, wrong)
          for make in (TCP, HTTP, ETCD, ETCD_V2)
          for name in ("timeout", "read_timeout", "connect_timeout")
          for wrong in ("5", b"5", True)),
        (TCP, "credentials", "a token"),
        (HTTP, "credentials", "a token"),
        (HTTP, "proxy", 1),
        (ar.HttpStore, "url", 5),
        (ar.EtcdStore, "cluster", 5),
        (ar.EtcdStore, "cluster", [5]),
        (ETCD, "prefix", b"x"),
        (ar.EtcdV2Store, "cluster", 5),
        (ETCD_V2, "ttl", "60"),
        (ar.EtcdCluster.of, "endpoints", 5),
        (at(ar.EtcdCluster.of, "a:1"), "user", 5),
        (at(ar.EtcdCluster.of, "a:1"), "tls", "ca.pem"),
        (ar.MemoryStore, "host", 5),
        (ar.MemoryStore, "timeout", "5"),
        (lambda **wrong: ar.PrefixStore(store=KEYS(), **wrong), "prefix", 5),
        (at(ar.PrefixStore, "p"), "store", 5),
        (ar.ServerTls, "cert", 5),
        (ar.TlsFiles, "ca", 5),
        (Credentials, "token", 5),
        (Credentials, "tls", "yes"),
        (ar.get_rendezvous_handler, "params", "tcp://"),
        (ar.ServerLimits, "max_body", "64MiB"),
        (ar.ServerLimits, "max_connections", True),
        (ar.ServerLimits, "connection_rate", "5"),
        (ar.ServerLimits, "store", {}),
        (lambda **wrong: ar.ServerLimits(store=KeyspaceLimits(**wrong)), "max_value", "1"),
        (lambda **wrong: ar.ServerLimits(coordinator=CoordinatorLimits(**wrong)), "max_nodes", 1.5),
        (ar.Authority.from_file, "path", 5),
        (ar.Authority.from_file, "path", None),
        (at(ar.Grant, Scope.READ), "run_id", 5),
        (ar.Grant, "scope", "read"),
        (at(ar.NodeDesc, "a"), "rank", "1"),
        (at(ar.NodeDesc, "a"), "addresses", ["h"]),
        (at(ar.RendezvousParameters, endpoint="h", run_id="r", min_nodes=1, max_nodes=1), "backend", 5),
        (at(ar.RendezvousParameters, "c10d", run_id="r", min_nodes=1, max_nodes=1), "endpoint", 5),
        (at(ar.RendezvousParameters, "c10d", "h", min_nodes=1, max_nodes=1), "run_id", 5),
        (at(ar.RendezvousParameters, "c10d", "h", "r", 1, 1), "local_addr", 5),
    ],
)  # fmt: skip
def test_an_argument_of_another_type_is_named(make: Make, name: str, wrong: object) -> None:
    with pytest.raises(TypeError, match=rf"^{name} is .*, but must be "):
        make(**{name: wrong})


@pytest.mark.parametrize("wrong", [5, None, ("a",), ["node"]])
def test_a_node_whose_name_or_an_address_is_no_text_is_refused_by_name(wrong: Any) -> None:
    for field in ("name", "addr", "label"):
        with pytest.raises(TypeError, match=r" is .*, but must be text"):
            ar.NodeDesc(**{"name": "a", field: wrong})
    with pytest.raises(TypeError, match=r"^pid and local_id is .*, but must be whole"):
        ar.NodeDesc("a", pid=wrong if wrong != 5 else "5")  # type: ignore[arg-type]  # as said
    with pytest.raises(TypeError, match=r"^node address is .*, but must be text"):
        ar.NodeDesc("a", addresses=(wrong,))


@pytest.mark.parametrize(
    "wrong", ["the token itself " * 2, ["the token itself " * 2], [("a", "read-only")], 5]
)
def test_tokens_of_another_type_are_refused_and_not_shown(wrong: Any) -> None:
    for make in (ar.Authority, ar.Authority.of):
        if make == ar.Authority.of and isinstance(wrong, str):
            continue
        with pytest.raises(TypeError) as caught:
            make(wrong)
        assert "itself" not in str(caught.value)


async def test_a_static_handler_refuses_such_arguments_too() -> None:
    async with ar.open_rendezvous("static://127.0.0.1:0", run_id="job", nnodes="1", rank=0) as node:
        for call in (node.set_closed(5), node.leave(5), node.leave("done", cause="finished")):  # type: ignore[arg-type]
            with pytest.raises(TypeError, match=r"^(reason|cause) is .*, but must be "):
                await call


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda node: node.set_closed(5), "reason"),
        (lambda node: node.leave(5), "reason"),
        (lambda node: node.leave("done", cause="finished"), "cause"),
        (lambda node: node.drain("60"), "deadline"),
        (lambda node: node.drain(True), "deadline"),
        (lambda node: node.drain(60, 5), "reason"),
        (lambda node: node.drain(60, wait="yes"), "wait"),
    ],
)
async def test_a_handler_refuses_such_arguments_and_does_nothing(call: Make, name: str) -> None:
    async with ar.open_rendezvous("memory://typed", run_id="job", nnodes="1") as node:
        await node.next_rendezvous()
        with pytest.raises(TypeError, match=rf"^{name} is .*, but must be "):
            await call(node)
        status = await node.explain()
        assert (status.closed, [one.drain_left for one in status.nodes]) == (None, [None])


async def test_a_drain_takes_a_timedelta_as_times_do_everywhere() -> None:
    async with ar.open_rendezvous("memory://typed", run_id="job", nnodes="1") as node:
        await node.next_rendezvous()
        await node.drain(timedelta(minutes=1))
        assert (await node.explain()).nodes[0].drain_left


def test_what_python_itself_refuses_it_says_itself() -> None:
    with pytest.raises(TypeError, match=r"serve\(\) got an unexpected keyword argument 'port'"):
        ar.serve(port=29400)  # type: ignore[call-arg]
