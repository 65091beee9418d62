"""The store in etcd's v2 key space, against the real etcd and torch's own store in it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from aiohttp import ClientSession, encode_basic_auth, web

import arendezvous
from arendezvous.errors import RendezvousConnectionError, RendezvousSettingsError, StoreError
from arendezvous.etcd import client_v2 as etcd_v2_client
from arendezvous.stores.etcd.v2 import EtcdV2Store
from arendezvous.stores.port import Store
from arendezvous.testing.store_checks import check_store
from tests.kit import torch_python
from tests.kit.etcd_server import EtcdMember, RealEtcd, serve_etcd, serve_http, v2_paths
from tests.kit.script_kit import script
from tests.kit.waiting import until, until_said, until_seen

LONG = 60.0
V2 = ("--enable-v2",)


def polled(store: EtcdV2Store) -> int:
    """How many long polls are under way."""
    return len(store.client._polls)


def in_use(etcd: RealEtcd, store: EtcdV2Store) -> EtcdMember:
    return next(member for member in etcd.members if member.url == store.client.current.url)


async def test_the_store_keeps_the_contract() -> None:
    async with serve_etcd(options=V2) as etcd:

        @asynccontextmanager
        async def make() -> AsyncIterator[Store]:
            async with arendezvous.EtcdV2Store(etcd.urls, timeout=LONG) as store:
                yield store

        await check_store(make)


STOCK = """
import sys
from datetime import timedelta

import etcd
from torch.distributed.elastic.rendezvous.etcd_store import EtcdStore

client = etcd.Client("127.0.0.1", int(sys.argv[1]), allow_reconnect=True)
store = EtcdStore(client, "/torch/elastic/store", timedelta(seconds=60))
print(store.get("from us"), store.check(["from us", "absent"]), store.add("counter", 5), flush=True)
store.set("from stock", bytes(range(256)))
store.wait(["to wait for"])
print(store.get("to wait for"), store.add("counter", 1), flush=True)
"""


async def test_torchs_own_store_reads_ours_and_we_read_torchs() -> None:
    async with serve_etcd(options=V2) as etcd, EtcdV2Store(etcd.urls, timeout=LONG) as store:
        await store.set("from us", b"\x00\xff")
        await store.add("counter", 2)
        async with script(
            "-c", STOCK, etcd.urls[0].rpartition(":")[2], python=torch_python.command()
        ) as process:
            assert await process.line() == r"b'\x00\xff' False 7"
            assert await store.get("from stock") == bytes(range(256))
            assert await store.add("counter", 3) == 10
            await store.set("to wait for", "this")
            assert await process.line() == "b'this' 11"
            assert await process.end() == 0, process.output
        assert sorted(await store.list_keys()) == ["counter", "from stock", "from us", "to wait for"]


async def test_a_key_whose_base64_has_a_slash_is_one_name_and_the_empty_key_is_a_key() -> None:
    async with serve_etcd(options=V2) as etcd, EtcdV2Store(etcd.urls) as store:
        keys = ["ab?", "", "ab", "\udcff\udcff\udcff", "/"]  # the first is YWI/ in base64
        await store.multi_set(keys, [*keys[:3], "ff", "slash"])
        assert await store.multi_get(keys) == [b"ab?", b"", b"ab", b"ff", b"slash"]
        assert sorted(await store.list_keys()) == sorted(keys)
        assert await store.num_keys() == 5


async def test_a_value_that_is_no_base64_is_reported_and_a_foreign_name_is_not_listed() -> None:
    async with serve_etcd(options=V2) as etcd, EtcdV2Store(etcd.urls) as store, ClientSession() as session:
        url = f"{etcd.urls[0]}/v2/keys/torch/elastic/store"
        for name in ("aw==", "no base64"):
            async with session.put(f"{url}/{name}", data={"value": "no base64"}) as response:
                assert response.status == 201
        with pytest.raises(StoreError, match="/store/aw==' holds 'no base64', which is no value in base64"):
            await store.get("k")
        assert await store.list_keys() == ["k"]


async def test_nothing_is_left_in_etcd_of_what_was_deleted_and_taken() -> None:
    async with serve_etcd(options=V2) as etcd, EtcdV2Store(etcd.urls) as store:
        await store.set("k", "v")
        await store.queue_push("q", "1")
        await store.queue_push("q", "2")
        assert await store.delete_key("k")
        assert [await store.queue_pop("q"), await store.queue_pop("q")] == [b"1", b"2"]
        assert await v2_paths(etcd) == []
        assert await v2_paths(etcd, "/torch/elastic/store/_queues") == []


async def test_hundreds_who_wait_for_one_key_share_one_long_poll() -> None:
    async with serve_etcd(options=V2) as etcd, EtcdV2Store(etcd.urls, timeout=LONG) as store:
        got: list[bytes] = []

        async def read() -> None:
            got.append(await store.get("k"))

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(read)
            await until(lambda: polled(store) == 1)
            with anyio.move_on_after(0.01):
                await store.get("k")  # whoever gives up leaves the poll to the others
            await store.set("k", "v")
        assert got == [b"v"] * 200
        assert polled(store) == 0


@pytest.mark.parametrize("operation", ["get", "wait", "queue_pop", "barrier"])
async def test_a_wait_whose_index_etcd_has_forgotten_reads_again(operation: str) -> None:
    async with serve_etcd(options=V2) as etcd, EtcdV2Store(etcd.urls, timeout=LONG) as store:
        watch, asked = store.client.watch, 0

        async def late(*args: Any, **options: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked == 1:  # between the look and the poll, more happens than etcd remembers
                async with EtcdV2Store(etcd.urls) as other:
                    if operation in ("get", "wait"):
                        await other.set("k", "v")
                    elif operation == "queue_pop":
                        await other.queue_push("k", "v")
                    else:
                        await other.add("k", 1)
                    for number in range(1001):
                        await other.set("else", str(number))
            return await watch(*args, **options)

        store.client.watch = late  # type: ignore[method-assign]  # nothing else can be late on purpose
        done: dict[str, Any] = {
            "get": lambda: store.get("k"),
            "wait": lambda: store.wait(["k"]),
            "queue_pop": lambda: store.queue_pop("k"),
            "barrier": lambda: store.barrier("k", 2),
        }
        assert await done[operation]() == (b"v" if operation in ("get", "queue_pop") else None)


# Time to live


async def test_what_a_store_with_a_ttl_has_written_vanishes_unless_it_is_kept() -> None:
    async with (
        serve_etcd(options=V2) as etcd,
        EtcdV2Store(etcd.urls, ttl=1) as kept,
        EtcdV2Store(etcd.urls, ttl=1) as left,
        EtcdV2Store(etcd.urls) as lasting,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(kept.keep)
        await kept.set("kept", "v")
        await kept.queue_push("kept", "v")
        await left.set("left", "v")
        await left.add("left too", 1)
        await left.queue_push("left", "v")
        await lasting.set("lasting", "v")
        await until_seen(lasting.list_keys, lambda keys: sorted(keys) == ["kept", "lasting"])
        await until_seen(lambda: lasting.queue_len("left"), lambda length: length == 0)
        assert await lasting.queue_pop("kept") == b"v"
        tasks.cancel_scope.cancel()
    assert kept._written.keys() >= {"/torch/elastic/store/a2VwdA=="}


# Members that fail


@pytest.mark.parametrize("which", ["in use", "leader"])
async def test_when_a_member_is_killed_waits_and_operations_go_on_at_another(which: str) -> None:
    async with serve_etcd(3, options=V2) as etcd, EtcdV2Store(etcd.urls, timeout=LONG) as store:
        got: list[bytes] = []

        async def read() -> None:
            got.append(await store.get("k"))

        async def take() -> None:
            got.append(await store.queue_pop("q"))

        if which == "leader":
            leader = await etcd.leader()
            store.client.current = next(
                endpoint for endpoint in store.client.endpoints if endpoint.url == leader.url
            )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            tasks.start_soon(take)
            tasks.start_soon(store.barrier, "b", 2)
            await until(lambda: polled(store) == 3)
            in_use(etcd, store).kill()
            assert not await store.check(["k"])  # a read goes on, with a new leader if need be
            await etcd.ready()
            await store.set("k", "v")
            await store.queue_push("q", "w")
            await store.barrier("b", 2)
        assert sorted(got) == [b"v", b"w"]


async def test_a_change_in_flight_at_a_silent_member_is_not_repeated_and_a_read_is() -> None:
    async with serve_etcd(3, options=V2) as etcd, EtcdV2Store(etcd.urls, read_timeout=LONG) as store:
        await store.set("n", "1")
        member = in_use(etcd, store)
        member.stop()
        store.client.read_timeout = 2.0
        with pytest.raises(RendezvousConnectionError, match="may have been carried out or not") as caught:
            await store.set("n", "2")
        assert str(caught.value).startswith(f"set of 'n': {member.url} did not answer within")
        store.client.read_timeout = LONG
        assert await store.get("n") == b"1"
        assert in_use(etcd, store) is not member


async def test_a_change_whose_answer_is_lost_is_never_sent_again() -> None:
    async with serve_etcd(options=V2) as etcd, ClientSession() as session:
        sent: list[str] = []

        async def forward(request: web.BaseRequest) -> web.StreamResponse:
            url, data = f"{etcd.urls[0]}{request.path_qs}", await request.read()
            async with session.request(request.method, url, data=data, headers=request.headers) as answer:
                body = await answer.read()
            if request.method != "GET":
                sent.append(request.method)
                if len(sent) == 2:
                    assert request.transport is not None
                    request.transport.abort()
            return web.Response(status=answer.status, body=body)

        async with serve_http(forward) as url, EtcdV2Store(url, read_timeout=LONG) as store:
            await store.add("n", 1)  # by a connection that is used again
            with pytest.raises(RendezvousConnectionError, match=r"add of 'n': .* may have been carried out"):
                await store.add("n", 2)
            assert sent == ["PUT", "PUT"]
            assert await store.get("n") == b"3"


async def test_without_a_quorum_operations_say_so_and_go_on_when_it_is_back() -> None:
    async with (
        serve_etcd(3, options=V2) as etcd,
        EtcdV2Store(etcd.urls, timeout=LONG, read_timeout=LONG) as waiting,
        EtcdV2Store(etcd.urls, read_timeout=25.0) as store,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(waiting.get, "k")
        await until(lambda: polled(waiting))
        for member in etcd.members[:2]:
            member.kill()
        store.client.current = store.client.endpoints[2]
        with pytest.raises(RendezvousConnectionError, match="perhaps the cluster has no quorum") as caught:
            await store.set("k", "v")
        assert str(caught.value).startswith(f"set of 'k': {etcd.urls[2]} says 'Raft Internal Error: ")
        etcd.members[0].start()
        await etcd.ready()
        await store.set("k", "v")


# Who is let in, and to what


async def add_users(etcd: RealEtcd) -> None:
    """Makes a user ann, who may read and write what torch keeps, and a root; then nobody else gets in."""
    root = {"Authorization": encode_basic_auth("root", "root's")}
    role = {"role": "nodes", "permissions": {"kv": {"read": ["/torch/*"], "write": ["/torch/*"]}}}
    requests: list[tuple[str, str, dict[str, Any] | None]] = [
        ("PUT", "users/root", {"user": "root", "password": "root's"}),
        ("PUT", "roles/nodes", role),
        ("PUT", "users/ann", {"user": "ann", "password": "ann's", "roles": ["nodes"]}),
        ("PUT", "enable", None),
        ("DELETE", "roles/guest", None),
    ]
    async with ClientSession() as session:
        for verb, path, body in requests:
            url = f"{etcd.urls[0]}/v2/auth/{path}"
            data = None if body is None else json.dumps(body)
            async with session.request(verb, url, data=data, headers=root) as response:
                assert response.status in (200, 201), await response.text()


def user(etcd: RealEtcd, password: str = "ann's") -> arendezvous.EtcdCluster:
    return arendezvous.EtcdCluster.of(etcd.urls, user="ann", password=password)


async def test_users_get_in_with_their_password_and_do_what_they_may() -> None:
    async with serve_etcd(options=V2) as etcd:
        await add_users(etcd)
        async with (
            EtcdV2Store(user(etcd), timeout=LONG) as store,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(store.get, "late")
            await until(lambda: polled(store))
            await store.set("late", "v")
        for password, prefix in (("bad", "/torch/elastic/store"), ("ann's", "/elsewhere")):
            with pytest.raises(
                RendezvousConnectionError, match="password of user 'ann' is wrong, or it has no role that may"
            ) as caught:
                await EtcdV2Store(user(etcd, password), prefix=prefix).__aenter__()
            assert "ann's" not in str(caught.value)
        with pytest.raises(RendezvousConnectionError, match="it wants a user: give user and password"):
            await EtcdV2Store(etcd.urls).__aenter__()


async def test_a_server_without_the_v2_api_is_told_at_once_what_it_is() -> None:
    async with serve_etcd() as etcd:
        said = r"is etcd 3\.5\.\d+, which does not serve the v2 API: use etcd://, or start"
        with pytest.raises(RendezvousConnectionError, match=said):
            await EtcdV2Store(etcd.urls).__aenter__()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("endpoints", {"cluster": ""}),
        ("prefix", {"prefix": "/"}),
        ("read_timeout", {"read_timeout": 0}),
        ("ttl", {"ttl": 0}),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(RendezvousSettingsError) as caught:
        EtcdV2Store(**{"cluster": "localhost", **settings})
    assert caught.value.name == name


# What goes wrong


async def test_a_directory_in_place_of_a_value_is_reported_and_left_alone() -> None:
    async with serve_etcd(options=V2) as etcd, EtcdV2Store(etcd.urls) as store, ClientSession() as session:
        url = f"{etcd.urls[0]}/v2/keys/torch/elastic/store/aw==/below"
        async with session.put(url, data={"value": "v"}) as response:
            assert response.status == 201
        for operation in (store.get("k"), store.add("k", 1), store.compare_set("k", "", "v")):
            with pytest.raises(StoreError, match="/store/aw==' is a directory"):
                await operation
        for change in (store.set("k", "v"), store.delete_key("k")):
            with pytest.raises(StoreError, match=r"etcd refuses it: Not a file: /torch/elastic/store/aw=="):
                await change


async def test_a_wait_of_somebody_who_is_not_let_in_any_more_ends_with_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(etcd_v2_client, "_LONGEST_POLL", 0.2)  # it asks again soon
    async with serve_etcd(options=V2) as etcd, EtcdV2Store(etcd.urls, read_timeout=LONG) as store:
        with anyio.fail_after(LONG):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(add_users, etcd)
                with pytest.raises(RendezvousConnectionError, match="it wants a user"):
                    await store.wait(["k", "q"])


async def test_keys_are_renewed_again_after_etcd_was_away_and_forgotten_when_they_are_deleted(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "arendezvous")
    async with serve_etcd(options=V2) as etcd, anyio.create_task_group() as tasks:
        store = EtcdV2Store(etcd.urls, ttl=60)
        await store.multi_set(["kept", "deleted"], ["v", "v"])
        async with EtcdV2Store(etcd.urls) as other:
            await other.delete_key("deleted")
        store._ttl = 6  # it renews every 2 s
        store.client.read_timeout = 0.2
        store.client.endpoints[0].url = f"http://127.0.0.1:{free_port}"
        tasks.start_soon(store.keep)
        await until(lambda: "could not be renewed" in caplog.text)
        store.client.read_timeout = LONG
        store.client.endpoints[0].url = etcd.urls[0]
        await until(lambda: len(store._written) == 1)
        assert await store.list_keys() == ["kept"]
        tasks.cancel_scope.cancel()
        await store.close()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "sent what is no reply of etcd"),
        (200, b"{}", "answers with status 200 and '{}'"),
        (404, b"<html>", "is no etcd: /version answers with status 404: this will not change by waiting"),
        (502, b"bad gateway", "answers with status 502 and 'bad gateway'"),
        (500, b'{"errorCode":300,"message":"Raft Internal Error","cause":"no leader"}', "Error: no leader'"),
    ],
)
async def test_an_answer_that_is_none_of_etcds_is_reported(status: int, body: bytes, said: str) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    async with serve_http(answer) as url:
        store = EtcdV2Store(url)

        async def get(seconds: float) -> None:
            store.client.read_timeout = seconds
            await store.get("k")

        await until_said(get, re.escape(said))
        await store.close()
