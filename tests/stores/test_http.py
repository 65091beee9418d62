"""The store over HTTP keeps the contract of all stores, also where the network does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web

import arendezvous as ar
from arendezvous.keyspace.grants import Grant, Scope
from arendezvous.net.credentials import Credentials
from arendezvous.server.access.authority import Authority
from arendezvous.stores.http.store import HttpStore
from arendezvous.sync import store as sync_store
from arendezvous.sync.loop_thread import loop_thread
from arendezvous.testing.fault_proxy import FaultProxy, Faults
from arendezvous.testing.store_checks import STORE_CHECKS, StoreCheck
from tests.kit.listener_kit import Serving, http_server
from tests.kit.tls_kit import OTHER, TOKEN, make_pki
from tests.kit.waiting import until, until_said


@asynccontextmanager
async def http_store() -> AsyncIterator[HttpStore]:
    async with http_server() as serving, HttpStore(serving.client.url) as store:
        yield store


@asynccontextmanager
async def behind_a_proxy() -> AsyncIterator[tuple[HttpStore, FaultProxy, Serving]]:
    async with (
        http_server() as serving,
        FaultProxy("127.0.0.1", serving.port) as proxy,
        HttpStore(f"http://{proxy.address}", read_timeout=60) as store,
    ):
        yield store, proxy, serving


@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
async def test_the_store_keeps_the_contract(check: StoreCheck) -> None:
    async with http_store() as store:
        await check(store)


@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
async def test_the_store_keeps_the_contract_although_it_has_to_ask_again_and_again(
    check: StoreCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arendezvous.stores.http.store.POLL", 0.02)
    async with http_store() as store:
        await check(store)


# A network that loses things

Step = Callable[[ar.Store], Awaitable[object]]
CHANGES: dict[str, tuple[Step, object, Step, object]] = {
    "set": (lambda s: s.set("t", "x"), None, lambda s: s.get("t"), b"x"),
    "add": (lambda s: s.add("n", 2), 3, lambda s: s.get("n"), b"3"),
    "append": (lambda s: s.append("t", "x"), None, lambda s: s.get("t"), b"tx"),
    "compare_set": (lambda s: s.compare_set("t", "t", "y"), b"y", lambda s: s.get("t"), b"y"),
    "delete_key": (lambda s: s.delete_key("t"), True, lambda s: s.check(["t"]), False),
    "multi_set": (lambda s: s.multi_set(["t"], ["z"]), None, lambda s: s.get("t"), b"z"),
    "queue_push": (lambda s: s.queue_push("q", "3"), None, lambda s: s.queue_len("q"), 3),
    "queue_pop": (lambda s: s.queue_pop("q"), b"1", lambda s: s.queue_len("q"), 1),
    "barrier": (lambda s: s.barrier("n", 2), None, lambda s: s.get("n"), b"2"),
}


def is_spent(faults: Faults) -> bool:
    """Whether a connection has been cut."""
    return faults.cut_after is None


@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_whose_message_is_lost_is_made_once_and_succeeds(change: str, lost: str) -> None:
    step, expected, look, seen = CHANGES[change]
    async with behind_a_proxy() as (store, proxy, _):
        await store.multi_set(["t", "n"], ["t", "1"])
        await store.queue_push("q", "1")
        await store.queue_push("q", "2")
        faults = proxy.to_server if lost == "request" else proxy.to_client
        faults.cut_after = 1
        assert await step(store) == expected
        assert is_spent(faults), "nothing was lost"
        assert await look(store) == seen


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (lambda store: store.add("n", 1), b"2"),
        (lambda store: store.set("n", "x"), b"x"),
        (lambda store: store.delete_key("n"), None),
    ],
    ids=["add", "set", "delete_key"],
)
async def test_a_change_that_may_have_been_made_at_a_server_that_has_ended_is_not_made_at_the_next(
    change: Step, made: bytes | None
) -> None:
    async with behind_a_proxy() as (store, proxy, first), http_server() as second:
        await store.set("n", "1")
        await second.client.put("/v1/kv/n", "other")
        proxy.to_client.cut_after = 1
        proxy.port_of_server = second.port
        with pytest.raises(ar.RendezvousConnectionError, match="has ended since"):
            await change(store)
        answer = await first.client.get("/v1/kv/n")
        assert (None if answer.status == 404 else answer.body) == made
        assert (await second.client.get("/v1/kv/n")).body == b"other"
        await store.set("n", "more")
        assert (await second.client.get("/v1/kv/n")).body == b"more", "the store goes on with the new server"


async def test_waits_outlive_connections_that_break() -> None:
    async with behind_a_proxy() as (store, proxy, serving):
        got: list[object] = []

        async def collect(operation: Awaitable[object]) -> None:
            got.append(await operation)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect, store.get("k", timeout=None))
            tasks.start_soon(collect, store.queue_pop("q", timeout=60))
            tasks.start_soon(collect, store.wait(["k", "l"], 60))
            tasks.start_soon(collect, store.barrier("b", 2, 60))
            for _ in range(3):
                await until(lambda: serving.waits == 4)
                proxy.cut()
                await until(lambda: serving.waits < 4)
            await until(lambda: serving.waits == 4)
            await serving.client.put("/v1/kv/k", "v")
            await serving.client.put("/v1/kv/l", "v")
            await serving.client.post("/v1/queues/q?op=push", "w")
            assert (await serving.client.post("/v1/kv/b?op=barrier&world_size=2")).status == 204
        assert sorted(map(str, got)) == sorted(map(str, [b"v", b"w", None, None]))


async def test_a_server_that_comes_back_is_found_again(free_port: int) -> None:
    async with ar.serve("127.0.0.1:0", http=f"127.0.0.1:{free_port}"):
        store = await HttpStore(f"http://127.0.0.1:{free_port}").__aenter__()
        await store.set("k", "old")
    async with anyio.create_task_group() as tasks:
        found: list[bytes] = []

        async def read() -> None:
            found.append(await store.get("k", timeout=60))

        tasks.start_soon(read)
        async with ar.serve("127.0.0.1:0", http=f"127.0.0.1:{free_port}"):
            await store.set("k", "new")
            await until(lambda: found)
    assert found == [b"new"]
    await store.close()


async def test_a_server_that_does_not_answer_is_told_after_the_read_timeout() -> None:
    async with (
        behind_a_proxy() as (store, proxy, _),
        HttpStore(f"http://{proxy.address}", read_timeout=0.5, connect_timeout=60) as impatient,
    ):
        proxy.freeze()
        for operation in (impatient.add("n", 1), impatient.num_keys(), impatient.get("k", timeout=None)):
            with pytest.raises(ar.RendezvousConnectionError, match="nothing has come within"):
                await operation
        proxy.thaw()
        proxy.cut()
        assert await store.num_keys() <= 1


async def test_a_timeout_is_kept_although_the_server_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arendezvous.stores.http.store.GRACE", 0.05)
    async with behind_a_proxy() as (store, proxy, serving):
        async with anyio.create_task_group() as tasks:

            async def time_out() -> None:
                with pytest.raises(ar.StoreTimeoutError):
                    await store.wait(["k"], 1.0)

            tasks.start_soon(time_out)
            await until(lambda: serving.waits)
            proxy.freeze()
        proxy.thaw()


async def test_nobody_at_the_address_is_told(free_port: int) -> None:
    store = HttpStore(f"http://127.0.0.1:{free_port}", connect_timeout=0.1, read_timeout=0.1)
    with pytest.raises(ar.RendezvousConnectionError):
        await store.__aenter__()
    await until_said(
        lambda s: HttpStore(f"http://127.0.0.1:{free_port}", connect_timeout=s).__aenter__(),
        "could not be reached: .*Connect call failed",
    )
    with pytest.raises(ar.StoreError, match="has been closed"):
        await store.num_keys()


async def test_somebody_else_at_the_address_is_told() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        with pytest.raises(
            ar.RendezvousConnectionError,
            match=r"something answers \(status 200\) that is no arendezvous server",
        ):
            await HttpStore(f"http://127.0.0.1:{runner.addresses[0][1]}").__aenter__()
    finally:
        await runner.cleanup()


async def test_connections_are_used_again() -> None:
    async with behind_a_proxy() as (store, proxy, _):
        for number in range(30):
            await store.set(f"k{number}", "v")
        assert len(await store.list_keys()) == 30
        assert proxy.passed == 1


async def test_a_value_of_megabytes_goes_through_in_pieces() -> None:
    value = bytes(range(256)) * 20_000
    async with http_store() as store:
        await store.set("k", value)
        assert await store.get("k") == value
        assert await store.compare_set("k", value, value[1:]) == value[1:]
        assert await store.compare_set("k", value, b"") == value[1:]
        await store.multi_set(["a", "b"], [value, value])
        assert await store.multi_get(["b", "a"]) == [value, value]


async def test_a_key_that_is_too_long_is_refused() -> None:
    async with http_store() as store:
        for operation in (store.set("k" * 8192, "v"), store.check(["\udcff" * 20_000])):
            with pytest.raises(ar.StoreError, match="at most 8191 are allowed"):
                await operation
        await store.set("\udcff" * 8191, "v")
        assert await store.get("\udcff" * 8191) == b"v"


async def test_many_keys_are_listed_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arendezvous.stores.http.store._LISTED", 7)
    keys = [f"{number}/ä\udcff&+%" for number in range(25)] + [""]
    async with http_store() as store:
        await store.multi_set(keys, ["v"] * len(keys))
        assert sorted(await store.list_keys()) == sorted(keys)


# Tokens, TLS, proxies


async def test_a_token_and_a_certificate_are_shown_and_asked_for(tmp_path: Path) -> None:
    pki = make_pki(tmp_path)
    authority = Authority([(TOKEN, Grant(Scope.SERVER))])
    serving = ar.serve("127.0.0.1:0", http="127.0.0.1:0", authority=authority, tls=pki.server())
    async with serving as server:
        assert server.http_url is not None
        assert server.http_url.startswith("https://")
        async with HttpStore(server.http_url, credentials=pki.client(token=TOKEN)) as store:
            assert await store.add("n", 1) == 1
        for token, said in (("", "none was given"), (OTHER, "does not know the token")):
            with pytest.raises(ar.RendezvousPermissionError, match=said):
                await HttpStore(server.http_url, credentials=pki.client(token=token)).__aenter__()
        with pytest.raises(ar.RendezvousConnectionError, match="certificate there is not trusted"):
            await HttpStore(server.http_url, credentials=Credentials(token=TOKEN)).__aenter__()


async def test_a_token_of_one_run_is_good_for_its_keys_alone() -> None:
    authority = Authority(
        [
            (TOKEN, Grant(Scope.RUN, "mine")),
            (OTHER, Grant(Scope.READ)),
        ]
    )
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0", authority=authority) as server:
        assert server.http_url is not None
        async with (
            HttpStore(server.http_url, credentials=Credentials(token=TOKEN)) as store,
            HttpStore(server.http_url, credentials=Credentials(token=OTHER)) as looking,
        ):
            mine = ar.PrefixStore("arendezvous/mine", store)
            await mine.set("k", "v")
            await mine.queue_push("q", "v")
            assert await mine.list_keys() == ["k"]
            assert await looking.get("arendezvous/mine/k") == b"v"
            for operation in (
                store.set("k", "v"),
                store.get("arendezvous/other/k", timeout=0),
                store.multi_get(["arendezvous/mine/k", "k"], timeout=0),
                store.queue_pop("q", block=False),
                looking.set("k", "v"),
                looking.queue_pop("arendezvous/mine/q"),
            ):
                with pytest.raises(ar.RendezvousPermissionError):
                    await operation


@pytest.mark.parametrize("how", ["given", "environment"])
async def test_a_proxy_is_used(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with http_server() as serving:
        # Our server understands requests as proxies get them, so it can stand in for one.
        if how == "environment":
            monkeypatch.setenv("http_proxy", serving.client.url)
            monkeypatch.setenv("no_proxy", "localhost")
        proxy = serving.client.url if how == "given" else None
        async with HttpStore("http://192.0.2.1:1", proxy=proxy) as store:
            await store.set("a/../b", "v")
            assert await store.get("a/../b") == b"v"


async def test_no_proxy_is_used_where_the_environment_says_so(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    async with http_server() as serving:
        async with HttpStore(serving.client.url, proxy="") as store:
            assert await store.num_keys() == 0
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with HttpStore(serving.client.url) as store:
            assert await store.num_keys() == 0


@pytest.mark.parametrize(
    "url", ["", "host:80", "ftp://host", "http://", "http://host:port", "http://u:p@host", "http://host/?q=1"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="url is"):
        HttpStore(url)


def test_tls_settings_without_https_are_refused() -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="because TLS is asked for"):
        HttpStore("http://127.0.0.1", credentials=Credentials(tls=True))


async def test_a_synchronous_program_uses_it_as_any_store() -> None:
    async with http_server() as serving:

        def program() -> tuple[int, bytes]:
            store = HttpStore(serving.client.url)
            blocking = sync_store.Store(store)
            blocking.set("k", "v")
            try:
                return blocking.add("n", 2), blocking.get("k")
            finally:
                loop_thread().run(store, store.close)

        assert await anyio.to_thread.run_sync(program) == (2, b"v")
