"""The etcd store, against the real etcd: the contract, and what etcd may do to it."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from aiohttp import ClientSession, web

import arendezvous
from arendezvous.errors import (
    RendezvousConnectionError,
    RendezvousSettingsError,
    StoreError,
    StoreTimeoutError,
)
from arendezvous.etcd.wire import txn
from arendezvous.stores.etcd.v3 import EtcdStore
from arendezvous.stores.port import Store
from arendezvous.testing.store_checks import check_store
from tests.kit.etcd_server import EtcdMember, RealEtcd, add_users, serve_etcd, serve_http, text64
from tests.kit.waiting import until, until_said

LONG = 60.0


async def test_the_store_keeps_the_contract() -> None:
    async with serve_etcd() as etcd:

        @asynccontextmanager
        async def make() -> AsyncIterator[Store]:
            async with arendezvous.EtcdStore(etcd.urls, timeout=LONG) as store:
                yield store

        await check_store(make)


async def test_stores_of_one_prefix_share_keys_and_those_of_another_do_not() -> None:
    async with (
        serve_etcd() as etcd,
        EtcdStore(etcd.urls) as one,
        EtcdStore(etcd.urls[0].removeprefix("http://")) as two,
        EtcdStore(etcd.urls, prefix="/elsewhere/") as other,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(one.barrier, "b", 2, LONG)
        await two.barrier("b", 2, LONG)
        await one.set("k", "v")
        assert sorted(await two.list_keys()) == ["b", "k"]
        assert await other.num_keys() == 0
        await other.set("k", "w")
        assert await one.get("k") == b"v"
        expected = ["/arendezvous/store/k/b", "/arendezvous/store/k/k", "/elsewhere/k/k"]
        assert await etcd.keys() == expected


async def test_nothing_is_left_in_etcd_of_what_was_deleted_and_taken() -> None:
    async with serve_etcd() as etcd, EtcdStore(etcd.urls) as store:
        await store.multi_set(["a", "b/c"], ["1", "2"])
        await store.add("n", 1)
        for value in ("1", "2", "3"):
            await store.queue_push("q", value)
        assert len(await etcd.keys()) == 6
        for key in ("a", "b/c", "n"):
            assert await store.delete_key(key)
        for _ in range(3):
            await store.queue_pop("q")
        with pytest.raises(StoreTimeoutError):
            await store.wait(["x"], 0.01)
        assert await etcd.keys() == []


async def test_hundreds_who_wait_for_one_key_share_one_stream_and_give_it_back() -> None:
    async with serve_etcd() as etcd, EtcdStore(etcd.urls) as store:
        values: list[bytes] = []
        scopes: list[anyio.CancelScope] = []

        async def read() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                values.append(await store.get("leader", timeout=LONG))

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(read)
            await until(lambda: watched(store) == 200)
            assert len(store._watches) == 1
            for scope in scopes[:100]:
                scope.cancel()  # among them the one that reads for all
            await until(lambda: watched(store) == 100)
            await store.set("leader", "node7")
        assert values == [b"node7"] * 100
        assert len(store._watches) == 0


def watched(store: EtcdStore) -> int:
    """How many tasks wait for a change in etcd."""
    return sum(len(shared._watchers) for shared in store._watches._shared.values())


async def test_more_keys_than_etcd_takes_in_one_transaction_are_stored_and_read_at_one_moment() -> None:
    keys = [f"k{number}" for number in range(1500)]
    values: list[str | bytes] = [str(number) for number in range(1500)]
    async with (
        serve_etcd() as etcd,
        EtcdStore(etcd.urls, read_timeout=LONG) as store,  # 1500 operations in each request
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(store.wait, keys, LONG)
        await until(lambda: watched(store))
        before = int((await etcd.post("kv/range", {"key": text64("none")}))["header"]["revision"])
        await store.multi_set(keys, values)
        after = int((await etcd.post("kv/range", {"key": text64("none")}))["header"]["revision"])
        assert after == before + 1
        assert await store.multi_get(keys) == [b"%d" % number for number in range(1500)]
        assert await store.check(keys)
        await store.multi_set(["twice", "twice"], ["1", "2"])
        assert await store.get("twice") == b"2"


def test_a_transaction_has_at_most_31_operations_on_each_level() -> None:
    ops = [{"request_range": {"key": b"%d" % number}} for number in range(31 * 31 + 1)]
    top = txn([], ops)["success"]
    assert len(top) == 2
    assert len(top[0]["request_txn"]["success"]) == 31
    assert top[0]["request_txn"]["success"][0]["request_txn"]["success"] == ops[:31]


async def test_what_is_too_large_is_refused_and_nothing_changes() -> None:
    async with serve_etcd() as etcd, EtcdStore(etcd.urls) as store:
        await store.set("k", "v")
        for size in (1_600_000, 4_000_000):
            with pytest.raises(
                StoreError, match=r"set of 'k' at http://127.*: etcd refuses it: .*(large|max)"
            ):
                await store.set("k", b"x" * size)
        assert await store.get("k") == b"v"


async def test_queues_of_several_stores_give_each_value_once() -> None:
    taken: list[bytes] = []
    async with serve_etcd() as etcd, EtcdStore(etcd.urls) as one, EtcdStore(etcd.urls) as two:

        async def take(store: EtcdStore) -> None:
            for _ in range(10):
                taken.append(await store.queue_pop("q", timeout=LONG))

        async with anyio.create_task_group() as tasks:
            for store in (one, two, one, two):
                tasks.start_soon(take, store)
            for number in range(40):
                await one.queue_push("q", f"{number:02}")
        assert sorted(taken) == [b"%02d" % number for number in range(40)]
        assert await two.queue_len("q") == 0


async def test_a_queue_pop_cancelled_by_asyncio_at_any_moment_loses_nothing() -> None:
    async with serve_etcd() as etcd, EtcdStore(etcd.urls) as store:
        for turns in range(0, 60, 3):
            await store.queue_push("q", str(turns))
            task = asyncio.ensure_future(store.queue_pop("q", timeout=LONG))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            [result] = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, asyncio.CancelledError):
                result = await store.queue_pop("q", timeout=LONG)
            assert result == b"%d" % turns
            assert await store.queue_len("q") == 0


# Changes that are late


async def see_nothing_of_it(store: EtcdStore) -> None:
    """Looks for what was given up; what it sees has to stay."""
    assert await store.num_keys() + await store.queue_len("k") == 0


Step = Callable[[EtcdStore], Coroutine[Any, Any, Any]]

OVERTAKEN: dict[str, tuple[Step, Step]] = {
    "set": (lambda store: store.set("k", "late"), lambda store: store.set("k", "v")),
    "compare_set": (lambda store: store.compare_set("k", "", "late"), see_nothing_of_it),
    "add": (lambda store: store.add("k", 1), lambda store: store.delete_key("k")),
    "multi_set": (lambda store: store.multi_set(["k"], ["late"]), see_nothing_of_it),
    "queue_push": (lambda store: store.queue_push("k", "late"), see_nothing_of_it),
}


@pytest.mark.parametrize("operation", OVERTAKEN)
@pytest.mark.parametrize("how", ["cancelled", "given up"])
async def test_a_change_that_nobody_waits_for_is_not_carried_out_behind_what_comes_next(
    operation: str, how: str
) -> None:
    change, following = OVERTAKEN[operation]
    async with serve_etcd() as etcd, ClientSession() as session:
        late, held, free, over = b'"%b"' % base64.b64encode(b"late"), *(anyio.Event() for _ in range(3))

        async def forward(request: web.BaseRequest) -> web.StreamResponse:
            data = await request.read()
            if not held.is_set() and (late in data or b'"MOD"' in data):
                held.set()
                await free.wait()
            async with session.post(etcd.urls[0] + request.path, data=data) as answer:
                body = await answer.read()
            if free.is_set():
                over.set()
            return web.Response(status=answer.status, body=body)

        async with serve_http(forward) as url, EtcdStore(url, read_timeout=LONG) as store:
            if how == "cancelled":
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(change, store)
                    await held.wait()
                    tasks.cancel_scope.cancel()
            else:
                store.client.read_timeout = 1.5  # within it the change gets as far as the one who holds it
                with pytest.raises(RendezvousConnectionError, match="may have been carried out or not"):
                    await change(store)
                store.client.read_timeout = LONG
            await following(store)
            before = [key for key in await etcd.keys() if "/f/" not in key]
            free.set()
            await over.wait()
            assert [key for key in await etcd.keys() if "/f/" not in key] == before
            if before:
                assert await store.get("k") == b"v"


# Members that go away


def in_use(etcd: RealEtcd, store: EtcdStore) -> EtcdMember:
    return next(member for member in etcd.members if member.url == store.client.current.url)


def use(store: EtcdStore, member: EtcdMember) -> None:
    """Makes the store ask this member from now on."""
    store.client.current = next(each for each in store.client.endpoints if each.url == member.url)


@pytest.mark.parametrize("which", ["in use", "leader"])
async def test_when_a_member_is_killed_waits_and_operations_go_on_at_another(which: str) -> None:
    async with serve_etcd(3) as etcd, EtcdStore(etcd.urls, timeout=LONG) as store:
        got: list[bytes] = []

        async def read() -> None:
            got.append(await store.get("k"))

        async def take() -> None:
            got.append(await store.queue_pop("q"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            tasks.start_soon(take)
            tasks.start_soon(store.barrier, "b", 2)
            await until(lambda: watched(store) == 3)
            if which == "leader":
                leader = await etcd.leader()
                use(store, leader)
            in_use(etcd, store).kill()
            assert not await store.check(["k"])  # a read goes on, with a new leader if need be
            await etcd.ready()
            await store.set("k", "v")
            await store.queue_push("q", "w")
            await store.barrier("b", 2)
        assert sorted(got) == [b"v", b"w"]


async def test_a_change_in_flight_at_a_silent_member_is_not_repeated_and_a_read_is() -> None:
    async with serve_etcd(3) as etcd, EtcdStore(etcd.urls, read_timeout=LONG) as store:
        await store.set("n", "1")
        member = in_use(etcd, store)
        member.stop()
        store.client.read_timeout = 2.0
        with pytest.raises(RendezvousConnectionError, match="may have been carried out or not") as caught:
            await store.set("n", "2")
        assert str(caught.value).startswith(f"set of 'n': {member.url} did not answer within")
        assert caught.value.doing == "set of 'n'"
        assert caught.value.endpoint == ",".join(etcd.urls)
        store.client.read_timeout = LONG
        assert await store.get("n") == b"1"
        assert in_use(etcd, store) is not member
        await store.set("n", "3")
        assert await store.get("n") == b"3"


async def test_a_wait_leaves_a_member_that_falls_silent() -> None:
    async with (
        serve_etcd(3) as etcd,
        EtcdStore(etcd.urls, timeout=LONG, read_timeout=1.0) as store,
        anyio.create_task_group() as tasks,
    ):
        leader = await etcd.leader()
        silent = next(member for member in etcd.members if member is not leader)
        use(store, silent)
        tasks.start_soon(store.get, "k")
        await until(lambda: watched(store))
        silent.stop()
        await until(lambda: in_use(etcd, store) is not silent)
        async with EtcdStore([url for url in etcd.urls if url != silent.url]) as other:
            await other.set("k", "v")


async def test_without_a_quorum_operations_say_so_and_go_on_when_it_is_back() -> None:
    async with (
        serve_etcd(3) as etcd,
        EtcdStore(etcd.urls, timeout=LONG, read_timeout=LONG) as waiting,
        EtcdStore(etcd.urls, timeout=LONG, read_timeout=1.0) as store,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(waiting.get, "k")
        await until(lambda: watched(waiting))
        for member in etcd.members[:2]:
            member.kill()
        said: list[str] = []
        while not said or "no leader" not in said[-1]:
            with pytest.raises(RendezvousConnectionError) as caught:
                await store.get("k")
            said.append(str(caught.value))
        assert "get of 'k' failed after 1 s: " in said[-1]
        assert said[-1].endswith("the cluster has no quorum: start more of its members")
        for url in etcd.urls:
            assert f"{url} " in said[-1]
        while "quorum" not in said[-1]:
            with pytest.raises(RendezvousConnectionError) as caught:
                await store.set("k", "v")
            said.append(str(caught.value))
        store.client.read_timeout = LONG
        etcd.members[0].start()
        await etcd.ready()
        await store.set("k", "v")


async def test_a_store_may_be_opened_before_etcd_is_started() -> None:
    async with serve_etcd(wait=False) as etcd, EtcdStore(etcd.urls, connect_timeout=LONG) as store:
        await store.set("k", "v")
        assert await store.get("k") == b"v"


# Compaction


OPERATIONS: dict[str, Callable[[EtcdStore], Awaitable[Any]]] = {
    "get": lambda store: store.get("k"),
    "wait": lambda store: store.wait(["k", "q"]),
    "queue_pop": lambda store: store.queue_pop("q"),
    "barrier": lambda store: store.barrier("b", 2),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_wait_whose_revision_is_compacted_away_reads_again(operation: str) -> None:
    async with serve_etcd() as etcd, EtcdStore(etcd.urls, timeout=LONG) as store:
        stream = store.client.stream
        asked: list[bytes] = []

        async def late(method: str, body: bytes, *, doing: str) -> Any:
            asked.append(body)
            if len(asked) == 1:
                await store.set("k", "v")
                await store.queue_push("q", "w")
                await store.add("b", 1)
                await etcd.compact()
            return await stream(method, body, doing=doing)

        store.client.stream = late  # type: ignore[method-assign]  # what happens between look and watch
        with anyio.fail_after(LONG):
            assert await OPERATIONS[operation](store) in (None, b"v", b"w")
        assert len(asked) == 1


async def test_a_wait_for_something_else_goes_on_after_a_compaction() -> None:
    async with (
        serve_etcd() as etcd,
        EtcdStore(etcd.urls, timeout=LONG) as store,
        anyio.create_task_group() as tasks,
    ):
        stream = store.client.stream
        asked: list[bytes] = []

        async def late(method: str, body: bytes, *, doing: str) -> Any:
            asked.append(body)
            if len(asked) == 1:
                await store.set("other", "v")
                await store.set("other", "w")
                await etcd.compact()
            return await stream(method, body, doing=doing)

        store.client.stream = late  # type: ignore[method-assign]  # as above
        tasks.start_soon(store.get, "k")
        await until(lambda: len(asked) == 2)
        await store.set("k", "v")


# Users


def user(etcd: RealEtcd, password: str = "ann's") -> arendezvous.EtcdCluster:
    return arendezvous.EtcdCluster.of(etcd.urls, user="ann", password=password)


async def test_users_get_in_with_their_password_and_do_what_they_may() -> None:
    async with serve_etcd() as etcd:
        async with EtcdStore(user(etcd, "any")) as store:
            await store.set("k", "before there were users")
        await add_users(etcd, "/arendezvous/store/")
        async with EtcdStore(user(etcd), timeout=LONG) as store:
            assert await store.get("k") == b"before there were users"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.get, "late")
                await until(lambda: watched(store))
                await store.set("late", "v")
        with pytest.raises(StoreError, match=r"'etcdserver: permission denied': user 'ann' may not; grant"):
            await EtcdStore(user(etcd), prefix="/x/").__aenter__()
        with pytest.raises(
            RendezvousConnectionError, match="user 'ann' in: the name or the password is wrong"
        ):
            await EtcdStore(user(etcd, "bad")).__aenter__()
        with pytest.raises(RendezvousConnectionError, match="it wants a user: give user and password"):
            await EtcdStore(etcd.urls).__aenter__()


async def test_a_login_that_etcd_has_forgotten_is_replaced_for_operations_and_waits() -> None:
    async with serve_etcd() as etcd:
        await add_users(etcd, "/arendezvous/store/")
        async with EtcdStore(user(etcd), timeout=LONG) as store:
            store.client._login = "forgotten.1"
            assert await store.num_keys() == 0
            assert store.client._login not in ("forgotten.1", None, "")
            stream = store.client.stream
            asked: list[bytes] = []

            async def forgetful(method: str, body: bytes, *, doing: str) -> Any:
                asked.append(body)
                if len(asked) == 1:
                    store.client._login = "forgotten.2"
                return await stream(method, body, doing=doing)

            store.client.stream = forgetful  # type: ignore[method-assign]  # between look and watch
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.get, "k")
                await until(lambda: len(asked) == 2)
                assert store.client._login not in ("forgotten.2", None, "")
                await store.set("k", "v")


# Gateways


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (b'{"etcdserver":"2.3.8"}', "is etcd 2.3.8, which speaks only the v2 API: use etcd-v2://"),
        (b'{"etcdserver":"3.5.1"}', "is etcd 3.5.1, but has no JSON gateway"),
        (b"welcome", "is no etcd: /version answers with status 200"),
    ],
)
async def test_a_server_without_the_gateway_is_told_at_once_what_it_is(version: bytes, said: str) -> None:
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        if request.path == "/version":
            return web.Response(body=version)
        return web.Response(status=404, text="404 page not found")

    async with serve_http(answer) as url:
        with pytest.raises(RendezvousConnectionError, match=re.escape(f"{url} {said}")):
            await EtcdStore(url).__aenter__()
    assert asked == ["/v3/kv/range", "/v3beta/kv/range", "/v3alpha/kv/range", "/version"]


async def test_the_prefix_of_an_older_gateway_is_found() -> None:
    async with serve_etcd() as etcd, ClientSession() as session:
        asked: list[str] = []

        async def forward(request: web.BaseRequest) -> web.StreamResponse:
            asked.append(request.path)
            if not request.path.startswith("/v3beta/"):
                return web.Response(status=404, text="404 page not found")
            async with session.post(etcd.urls[0] + request.path, data=await request.read()) as answer:
                return web.Response(status=answer.status, body=await answer.read())

        async with serve_http(forward) as url, EtcdStore(url) as store:
            await store.set("k", "v")
            assert await store.get("k") == b"v"
        assert asked == ["/v3/kv/range", "/v3beta/kv/range", "/v3beta/kv/txn", "/v3beta/kv/txn"]


async def test_an_answer_that_is_no_reply_of_etcd_is_reported() -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"<html>")

    async with serve_http(answer) as url:
        store = EtcdStore(url)

        async def get(seconds: float) -> None:
            store.client.read_timeout = seconds
            await store.get("k")

        await until_said(get, f"{url} sent what is no reply of etcd")
        with pytest.raises(RendezvousConnectionError, match="may have been carried out or not"):
            await store.set("k", "v")
        await store.close()


# Settings


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("endpoints", {"cluster": ""}),
        ("endpoints", {"cluster": "ftp://host:1"}),
        ("endpoints", {"cluster": ["host:port"]}),
        ("prefix", {"prefix": ""}),
        ("read_timeout", {"read_timeout": 0}),
        ("timeout", {"timeout": -1}),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(RendezvousSettingsError) as caught:
        EtcdStore(**{"cluster": "localhost", **settings})
    assert caught.value.name == name


def test_endpoints_are_completed() -> None:
    store = EtcdStore("a, https://b:1/,[::1]:3,a:2379")
    expected = "EtcdStore('http://a:2379,https://b:1,http://[::1]:3', prefix='/arendezvous/store/')"
    assert repr(store) == expected
