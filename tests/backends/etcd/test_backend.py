"""The etcd backend: the contract of the port, and what its users see of etcd, against the real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from arendezvous.backends.etcd import backend
from arendezvous.backends.etcd import link as etcd_link
from arendezvous.backends.etcd.backend import EtcdBackend
from arendezvous.errors import (
    RendezvousConnectionError,
    RendezvousSettingsError,
    RendezvousStateError,
    StoreError,
)
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.law.operations import Close, Drain, Join, Leave, Reopen
from arendezvous.law.state import Cause, NodeDesc, Phase, RunSettings
from arendezvous.testing.backend_check_tools import join_until_member, view_where
from arendezvous.testing.backend_checks import check_backend
from tests.kit.etcd_fake import FakeEtcd
from tests.kit.etcd_server import RealEtcd, serve_etcd, text64
from tests.kit.waiting import until_said

PAIR = RunSettings(2, 2)
ALONE = RunSettings(1, 1)


@pytest.mark.parametrize("share", [True, False], ids=["in_one_process", "in_several"])
async def test_the_backend_keeps_the_contract(share: bool) -> None:
    async with serve_etcd() as etcd:
        await check_backend(lambda run_id: EtcdBackend(etcd.urls, run_id, share=share))


async def test_backends_of_one_loop_share_a_lease_and_others_do_not() -> None:
    settings = RunSettings(3, 3)
    async with (
        serve_etcd() as etcd,
        EtcdBackend(etcd.urls, "run") as one,
        EtcdBackend(etcd.urls, "run") as two,
        EtcdBackend(etcd.urls, "run", share=False) as apart,
        anyio.create_task_group() as tasks,
    ):
        for backend, node in ((one, "a"), (two, "b"), (apart, "c")):
            tasks.start_soon(join_until_member, backend, Join(NodeDesc(node), settings))
        await view_where(one, await one.changed("a", -1), lambda view: view.phase is Phase.MEMBER)
        assert len(await leases_of(etcd, "/arendezvous/runs/run/intents/")) == 2
        assert 0 not in await leases_of(etcd, "/")


async def test_a_run_is_steered_by_who_takes_no_part_in_it() -> None:
    async with (
        serve_etcd() as etcd,
        EtcdBackend(etcd.urls, "run") as inside,
        EtcdBackend(etcd.urls, "run", share=False) as outside,
    ):
        with pytest.raises(RendezvousStateError, match="no such run"):
            await outside.propose(Reopen(1, "somebody"))
        view = await join_until_member(inside, Join(NodeDesc("a"), ALONE))
        draining = await outside.propose(Drain("a", 60.0, "upgrade"))
        assert (draining.node, draining.phase) == ("a", Phase.MEMBER)
        view = await view_where(inside, view, lambda view: view.notices)
        assert (view.notices[-1].reason, view.notices[-1].cause) == ("upgrade", None)
        await outside.propose(Close("somebody", "enough"))
        view = await view_where(inside, view, lambda view: view.closed)
        assert view.closed is not None
        assert (view.closed.by, view.closed.reason) == ("somebody", "enough")
        await outside.propose(Reopen(view.incarnation, "somebody"))
        view = await view_where(inside, view, lambda view: view.phase is Phase.GONE)
        assert view.gone is not None
        assert view.gone.cause is Cause.REOPENED


async def test_a_node_name_is_had_by_one_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CLAIM_SLACK", -100.0)  # there is no need to wait: it is alive
    async with (
        serve_etcd() as etcd,
        EtcdBackend(etcd.urls, "run") as one,
        EtcdBackend(etcd.urls, "run") as two,
    ):
        held = await join_until_member(one, Join(NodeDesc("a"), ALONE))
        with pytest.raises(RendezvousStateError, match="'a' is in use"):
            await two.propose(Join(NodeDesc("a"), ALONE))
        assert (await two.propose(Leave("a"))).phase is Phase.GONE
        assert (await two.changed("a", -1)).phase is Phase.GONE
        assert (await one.changed("a", -1)).rank == held.rank
        await one.propose(Leave("a"))
        assert (await join_until_member(two, Join(NodeDesc("a"), ALONE))).rank == 0


async def test_the_name_of_a_process_that_is_silent_is_waited_for() -> None:
    settings = RunSettings(1, 2, 0.0, keep_alive_interval=1.0, keep_alive_max_attempt=2)
    async with serve_etcd() as etcd, EtcdBackend(etcd.urls, "run", share=False) as two:
        async with EtcdBackend(etcd.urls, "run", share=False) as one:
            await join_until_member(one, Join(NodeDesc("a"), settings))
            with anyio.fail_after(60):
                joined = await two.propose(Join(NodeDesc("a"), settings))
        assert joined.phase is not Phase.GONE


async def test_the_status_tells_how_long_ago_nodes_were_heard_of() -> None:
    async with (
        serve_etcd() as etcd,
        EtcdBackend(etcd.urls, "run") as inside,
        EtcdBackend(etcd.urls, "run", share=False) as outside,
    ):
        await inside.propose(Join(NodeDesc("a"), PAIR))
        seen = [await backend.status() for backend in (inside, outside)]
        for status in seen:
            [node] = status.nodes
            assert 0.0 <= node.heartbeat_age <= 1.0
            assert node.since > 0.0
        assert seen[1].nodes[0].since > seen[0].nodes[0].since


async def test_a_run_whose_keys_are_not_ours_is_named_and_left_alone() -> None:
    async with serve_etcd() as etcd, EtcdBackend(etcd.urls, "run") as backend:
        key = "/arendezvous/runs/run/ledger"
        await etcd.post("kv/put", {"key": text64(key), "value": text64("not ours")})
        with pytest.raises(RendezvousStateError, match=f"{key}.* holds no Ledger"):
            await backend.propose(Join(NodeDesc("a"), ALONE))
        ledger = '{"index": 0, "writer": "", "lease": "1", "format": 99}'
        await etcd.post("kv/put", {"key": text64(key), "value": text64(ledger)})
        with pytest.raises(RendezvousStateError, match="format 99, and this version of arendezvous knows"):
            await backend.status()


async def test_intents_that_are_not_ours_disturb_nobody() -> None:
    async with serve_etcd() as etcd, EtcdBackend(etcd.urls, "run") as backend:
        for name in ("x/1/a", "nobody"):
            key = text64(f"/arendezvous/runs/run/intents/{name}")
            await etcd.post("kv/put", {"key": key, "value": text64('{"said": []}')})
            await etcd.post("kv/put", {"key": key, "value": text64("not ours")})
        assert (await join_until_member(backend, Join(NodeDesc("a"), ALONE))).rank == 0


async def test_users_without_permission_or_with_a_wrong_password_are_told_so() -> None:
    async with serve_etcd() as etcd, cluster_with_users(etcd):
        wrong, job = (
            EtcdCluster.of(etcd.urls, user=u, password=p) for u, p in (("root", "no"), ("job", "p"))
        )
        with pytest.raises(RendezvousConnectionError, match="does not let user 'root' in"):
            await EtcdBackend(wrong, "run").__aenter__()
        for prefix in ("/arendezvous", "/elsewhere"):
            with pytest.raises(StoreError, match="user 'job' may not"):
                await EtcdBackend(job, "run", prefix=prefix).__aenter__()
        async with EtcdBackend(job, "run", prefix="/read") as reader:
            assert (await reader.status()).settings is None
            with pytest.raises(StoreError, match="user 'job' may not"):
                await reader.propose(Join(NodeDesc("a"), ALONE))
        async with EtcdBackend(job, "run", prefix="/both") as backend:
            assert (await join_until_member(backend, Join(NodeDesc("a"), ALONE))).rank == 0


async def test_without_etcd_entering_fails_after_the_read_timeout(free_port: int) -> None:
    await until_said(
        lambda seconds: EtcdBackend(f"127.0.0.1:{free_port}", "run", read_timeout=seconds).__aenter__(),
        rf"after (0\.2|3|30) s: http://127.0.0.1:{free_port} cannot",
    )
    with pytest.raises(RendezvousSettingsError, match="endpoints"):
        EtcdBackend("ftp://host", "run")


@pytest.mark.virtual
async def test_an_intent_that_was_long_on_the_way_does_not_bring_back_a_node_that_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of the first requests is given up, sent again, and carried out when the node has left."""
    moment, requests = 0, 1
    while moment < requests:
        etcd = FakeEtcd(moment, [(moment, "is late")] if moment else [])
        monkeypatch.setattr(etcd_link, "EtcdClient", etcd.client)
        async with EtcdBackend("fake", "run", share=False) as backend:
            await backend.propose(Join(NodeDesc("other"), PAIR))
            await backend.propose(Join(NodeDesc("a"), PAIR))
            await backend.propose(Leave("a"))
            if moment == 0:
                requests = etcd.clients[0].requests
            await anyio.sleep(5.0)
            assert [node.desc.name for node in (await backend.status()).nodes] == ["other"]
        moment += 1
    assert requests > 10


@pytest.mark.virtual
@pytest.mark.parametrize("in_charge", [False, True], ids=["another_writes", "it_writes_for_both"])
async def test_nothing_of_a_cancelled_join_comes_up_when_one_of_its_requests_arrives_late(
    monkeypatch: pytest.MonkeyPatch, in_charge: bool
) -> None:
    """Two backends share what they send; one of the requests is carried out when one of the two has left."""
    moment, requests = 0, 1
    while moment < requests:
        etcd = FakeEtcd(0, [(moment, "is kept")] if moment else [])
        monkeypatch.setattr(etcd_link, "EtcdClient", etcd.client)
        there, ready, gone = anyio.Event(), anyio.Event(), anyio.Event()

        async def visit(there: anyio.Event, ready: anyio.Event, gone: anyio.Event) -> None:
            async with EtcdBackend("fake", "run") as backend:
                there.set()
                await ready.wait()
                with anyio.move_on_after(0.5):
                    await backend.propose(Join(NodeDesc("a"), PAIR))
            gone.set()

        async with anyio.create_task_group() as tasks:
            if in_charge:  # who comes first does the work
                tasks.start_soon(visit, there, ready, gone)
                await there.wait()
            async with EtcdBackend("fake", "run") as backend:
                if not in_charge:
                    tasks.start_soon(visit, there, ready, gone)
                await backend.propose(Join(NodeDesc("b"), PAIR))
                ready.set()
                await gone.wait()
                etcd.clients[0].deliver()
                await anyio.sleep(5.0)
                requests = requests if moment else etcd.clients[0].requests
                assert [node.desc.name for node in (await backend.status()).nodes] == ["b"]
                assert [key for key in etcd.keys if key.endswith(b"/a")] == []
        moment += 1
    assert requests > 10


@pytest.mark.virtual
async def test_backends_that_are_left_at_the_same_time_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    etcd = FakeEtcd(0, [])
    monkeypatch.setattr(etcd_link, "EtcdClient", etcd.client)
    took: list[float] = []

    async def visit(number: int) -> None:
        async with EtcdBackend("fake", "run") as backend:
            await backend.propose(Join(NodeDesc(f"n{number}"), RunSettings(20, 20)))
            start = anyio.current_time()
        took.append(anyio.current_time() - start)

    async with EtcdBackend("fake", "run"), anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(visit, number)
    assert len(took) == 10
    assert max(took) < 0.1  # a few round trips of 4 ms at most


@pytest.mark.virtual
async def test_a_node_that_is_gone_does_not_lead_by_a_request_that_arrives_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment, requests = 0, 1
    while moment < requests:
        etcd = FakeEtcd(0, [(moment, "is kept")] if moment else [])
        monkeypatch.setattr(etcd_link, "EtcdClient", etcd.client)
        async with EtcdBackend("fake", "run") as backend:
            with anyio.move_on_after(0.5):
                await backend.propose(Join(NodeDesc("a"), PAIR))
        requests = requests if moment else etcd.clients[0].requests
        etcd.clients[0].deliver()
        live = [key for key in etcd.keys if key.endswith(b"/leader") or b"/intents/" in key]
        assert live == [], f"request {moment}"
        moment += 1
    assert requests > 5


async def leases_of(etcd: RealEtcd, prefix: str) -> set[int]:
    """The leases of all keys that begin with `prefix`; 0 for those that have none."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    answer = await etcd.post("kv/range", {"key": text64(prefix), "range_end": text64(end)})
    return {int(item.get("lease", 0)) for item in answer["kvs"]}


@asynccontextmanager
async def cluster_with_users(etcd: RealEtcd) -> AsyncIterator[None]:
    """The user job may read what begins with ``/read`` and ``/both``, and write the latter."""
    await etcd.post("auth/user/add", {"name": "root", "password": "r"})
    await etcd.post("auth/user/grant", {"user": "root", "role": "root"})
    await etcd.post("auth/role/add", {"name": "job"})
    for prefix, kind in (("/read", "READ"), ("/both", "READWRITE")):
        permission = {"permType": kind, "key": text64(f"{prefix}/"), "range_end": text64(f"{prefix}0")}
        await etcd.post("auth/role/grant", {"name": "job", "perm": permission})
    await etcd.post("auth/user/add", {"name": "job", "password": "p"})
    await etcd.post("auth/user/grant", {"user": "job", "role": "job"})
    await etcd.post("auth/enable", {})
    yield
