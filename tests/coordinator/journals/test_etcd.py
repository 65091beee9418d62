"""The journal in etcd: the contract, the fence, and what etcd refuses, forgets or does not answer."""

from __future__ import annotations

import os
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.coordinator.journal import Batch
from arendezvous.coordinator.journals import etcd as journal_module
from arendezvous.coordinator.journals.etcd import EtcdJournal
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.etcd.wire import DeleteReply, PutReply, RangeReply, TxnReply, created, put_op, txn
from arendezvous.stores.tcp.store import TcpStore
from arendezvous.testing import JOURNAL_CHECKS
from arendezvous.testing.journal_checks import JournalCheck, batch_of, committed, rows_of
from tests.kit.etcd_server import RealEtcd, add_users, serve_etcd

PREFIX = b"arendezvous/journal/"
OFFICE = b"arendezvous/office"


async def elected(etcd: RealEtcd) -> tuple[bytes, int]:
    """Puts the key of a leader, if there is none; returns the fence, which does not hold if there was one."""
    client = EtcdClient(etcd.urls)
    try:
        request = txn([created(OFFICE, 0)], [put_op(OFFICE, b"leader")])
        reply = await client.call("kv/txn", request, TxnReply, doing="electing", repeat=False)
        return OFFICE, reply.header.revision if reply.succeeded else 1
    finally:
        await client.close()


async def deposed(etcd: RealEtcd) -> None:
    client = EtcdClient(etcd.urls)
    try:
        await client.call("kv/deleterange", {"key": OFFICE}, DeleteReply, doing="deposing", repeat=True)
    finally:
        await client.close()


class ElectedJournal(EtcdJournal):
    """Is elected as it is opened, and resigns as it is closed."""

    def __init__(self, etcd: RealEtcd) -> None:
        super().__init__(EtcdCluster.of(etcd.urls), PREFIX, (b"", 0))
        self._etcd = etcd

    async def __aenter__(self) -> ElectedJournal:
        self._fence = await elected(self._etcd)
        await super().__aenter__()
        return self

    async def __aexit__(self, *how: Any) -> None:
        await super().__aexit__(*how)
        await deposed(self._etcd)


@asynccontextmanager
async def opened(etcd: RealEtcd) -> AsyncIterator[EtcdJournal]:
    async with EtcdJournal(EtcdCluster.of(etcd.urls), PREFIX, await elected(etcd)) as journal:
        yield journal


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("check", JOURNAL_CHECKS, ids=lambda check: check.__name__)
async def test_it_keeps_the_contract(check: JournalCheck, members: int) -> None:
    async with serve_etcd(members) as etcd:
        await check(lambda: ElectedJournal(etcd))


async def test_a_server_that_was_deposed_changes_nothing_any_more() -> None:
    async with serve_etcd() as etcd, opened(etcd) as one:
        await committed(one, batch_of(a=b"1"))
        await deposed(etcd)
        with pytest.raises(RendezvousStateError, match=r"another server leads; .* changes nothing any more"):
            await committed(one, batch_of(a=b"2"))
        async with opened(etcd) as two:
            with pytest.raises(RendezvousStateError, match="another server leads"):
                await committed(one, batch_of(a=b"3"))
            assert await rows_of(two) == {b"a": b"1"}


@pytest.mark.parametrize("options", [("--max-txn-ops", "16"), ("--max-request-bytes", "200000")], ids=str)
async def test_a_batch_is_cut_to_what_etcd_takes(options: tuple[str, ...]) -> None:
    rows = {f"{number:04}": bytes([number % 256]) * 3000 for number in range(500)}
    async with serve_etcd(options=options) as etcd, opened(etcd) as journal:
        await committed(journal, batch_of(**rows))
        assert await rows_of(journal) == {key.encode(): value for key, value in rows.items()}


async def test_rows_of_all_kinds_come_back_and_long_ones_take_less_room() -> None:
    odd = {
        "short": b"\xc1",
        "long": b"\xc1" * 600,
        "noise": os.urandom(600),
        "text": b"node-17 " * 500,
        "none": b"",
    }
    async with serve_etcd() as etcd, opened(etcd) as journal:
        await committed(journal, batch_of(**odd))
        assert await rows_of(journal) == {key.encode(): value for key, value in odd.items()}
        client = EtcdClient(etcd.urls)
        try:
            request = {"key": PREFIX + b"rows/text"}
            reply = await client.call("kv/range", request, RangeReply, doing="looking", repeat=True)
            assert len(reply.kvs[0].value) < 100
            earlier = {"key": PREFIX + b"rows/short", "value": b"\xc1 of a release that compressed nothing"}
            await client.call("kv/put", earlier, PutReply, doing="putting", repeat=True)
            assert (await rows_of(journal))[b"short"] == earlier["value"]
        finally:
            await client.close()


@pytest.mark.parametrize(
    "damage", [b"\xc1x\x01", b"\xc1x\x01abc", b"\xc1" + zlib.compress(bytes(1 << 20), 1)], ids=len
)
async def test_a_compressed_row_that_is_damaged_or_far_too_long_is_refused(damage: bytes) -> None:
    async with serve_etcd() as etcd, opened(etcd) as journal:
        client = EtcdClient(etcd.urls)
        try:
            request = {"key": PREFIX + b"rows/a", "value": damage}
            await client.call("kv/put", request, PutReply, doing="damaging", repeat=True)
        finally:
            await client.close()
        with pytest.raises(
            RendezvousStateError, match=r"the journal in etcd .* is damaged: .*; restore a snapshot"
        ):
            await rows_of(journal)


async def test_a_cluster_that_is_full_fails_the_commit_and_says_so() -> None:
    async with serve_etcd(options=["--quota-backend-bytes", "1000000"]) as etcd, opened(etcd) as journal:
        with pytest.raises(RendezvousError, match="database space exceeded"):
            await _fill(journal)
        assert await rows_of(journal)


async def test_history_that_is_compacted_is_not_missed() -> None:
    async with serve_etcd() as etcd, opened(etcd) as journal:
        await committed(journal, batch_of(a=b"1"))
        await etcd.compact()
        await committed(journal, batch_of(b=b"2"))
        assert await rows_of(journal) == {b"a": b"1", b"b": b"2"}


async def test_authentication_that_is_switched_on_meanwhile_is_obeyed() -> None:
    async with serve_etcd() as etcd:
        fence = await elected(etcd)
        cluster = EtcdCluster.of(etcd.urls, user="ann", password="ann's")
        async with EtcdJournal(cluster, PREFIX, fence) as journal:
            await committed(journal, batch_of(a=b"1"))
            await add_users(etcd, "arendezvous/")
            await committed(journal, batch_of(b=b"2"))
            assert await rows_of(journal) == {b"a": b"1", b"b": b"2"}
        with pytest.raises(RendezvousError, match="it wants a user"):
            async with EtcdJournal(EtcdCluster.of(etcd.urls), PREFIX, fence):
                pass


async def test_without_a_quorum_a_commit_fails_in_bounded_time_and_later_ones_come_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "PATIENCE", 1.0)
    async with serve_etcd(3) as etcd, opened(etcd) as journal:
        await committed(journal, batch_of(a=b"1"))
        for member in etcd.members[1:]:
            member.kill()
        with pytest.raises(RendezvousError), anyio.fail_after(30):
            await committed(journal, batch_of(a=b"lost, or not"))
        for member in etcd.members[1:]:
            member.start()
        await etcd.ready()
        await _until_committed(journal, batch_of(a=b"3"))
        assert await rows_of(journal) == {b"a": b"3"}


async def test_the_leader_of_etcd_may_be_killed_between_commits() -> None:
    async with serve_etcd(3) as etcd, opened(etcd) as journal:
        for number in range(3):
            leader = await etcd.leader()
            leader.kill()
            await _until_committed(journal, batch_of(a=b"%d" % number))
            leader.start()
            await etcd.ready()
        assert await rows_of(journal) == {b"a": b"2"}


async def _fill(journal: EtcdJournal) -> None:
    for number in range(10):
        await committed(journal, batch_of(**{f"k{number}": bytes(500_000)}))


async def _until_committed(journal: EtcdJournal, batch: Batch) -> None:
    with anyio.fail_after(60):
        while True:
            try:
                await committed(journal, batch)
            except RendezvousError:
                continue
            return


async def test_a_server_with_the_journal_in_etcd_goes_on_where_another_was(free_port: int) -> None:
    address = f"127.0.0.1:{free_port}"
    pair: dict[str, Any] = {"run_id": "job", "min_nodes": 2, "is_host": False}
    async with serve_etcd() as etcd, AsyncExitStack() as running:
        await running.enter_async_context(ar.serve(address, journal=ElectedJournal(etcd)))
        async with (
            ar.open_rendezvous(f"tcp://{address}", node="a", **pair) as a,
            ar.open_rendezvous(f"tcp://{address}", node="b", **pair) as b,
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a.next_rendezvous)
                tasks.start_soon(b.next_rendezvous)
            before = await a.explain()
            async with TcpStore("127.0.0.1", free_port) as store:
                await store.set("key", b"x" * 3_000_000)
            await running.aclose()
            await running.enter_async_context(ar.serve(address, journal=ElectedJournal(etcd)))
            after = await b.explain()
            assert (after.complete, after.round, after.digest) == (True, before.round, before.digest)
            assert after.departed == ()
            async with TcpStore("127.0.0.1", free_port) as store:
                assert await store.get("key") == b"x" * 3_000_000
