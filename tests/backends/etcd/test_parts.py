"""The parts of the etcd backend one by one: reading the log, following keys, leases, the members' store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import anyio
import pytest

from arendezvous.backends.etcd import leader as etcd_leader
from arendezvous.backends.etcd import link as etcd_link
from arendezvous.backends.etcd.backend import EtcdBackend
from arendezvous.backends.etcd.leases import Leases
from arendezvous.backends.etcd.outbox import Outbox
from arendezvous.backends.etcd.records import Batch, Keys, Ledger, Said, Spoke, encode
from arendezvous.backends.etcd.replica import Replica
from arendezvous.backends.etcd.speaker import Speaker
from arendezvous.errors import RendezvousConnectionError, RendezvousError, RendezvousStateError, StoreError
from arendezvous.etcd.client import EtcdClient
from arendezvous.etcd.http import EndpointTrouble
from arendezvous.etcd.lease import Lease, LeaseEndedError
from arendezvous.etcd.watch import CompactedError, Follower, LoginRenewed
from arendezvous.etcd.wire import LeaseLine, LeaseReply, StreamError, put_op, txn
from arendezvous.law.operations import Close, Join, KeepAlive
from arendezvous.law.state import NodeDesc, Phase, RunSettings
from arendezvous.testing import FaultProxy
from arendezvous.testing.backend_check_tools import join_until_member, view_where
from tests.kit.etcd_fake import FakeClient, FakeEtcd
from tests.kit.etcd_server import RealEtcd, serve_etcd, text64
from tests.kit.waiting import until_seen

KEYS = Keys("/p", "run")
ALONE = RunSettings(1, 1)
PAIR = RunSettings(2, 2, keep_alive_interval=1.0, keep_alive_max_attempt=4)


class Log:
    """A log in a fake etcd, and a replica of it."""

    def __init__(self) -> None:
        self.etcd = FakeEtcd(0, [])
        self.client = cast(EtcdClient, FakeClient(self.etcd, -1, ""))
        self.replica = Replica(self.client, KEYS)
        self.index = 0

    def put(self, key: bytes, value: bytes) -> None:
        self.etcd.do("kv/txn", txn([], [put_op(key, value)]))

    def remove(self, key: bytes) -> None:
        self.etcd.do("kv/txn", txn([], [{"request_delete_range": {"key": key}}]))

    def join(self, node: str, *, snapshot: int = 0, pieces: int = 0) -> None:
        self.index += 1
        said = Said(1, Join(NodeDesc(node), PAIR))
        batch = Batch(float(self.index), (Spoke(f"l/1/{node}", (said,)),))
        self.put(KEYS.log_at(self.index), encode(batch))
        self.put(KEYS.ledger, encode(Ledger(self.index, "w", "1", snapshot, pieces)))

    async def nodes(self) -> list[str]:
        fold = await self.replica.look()
        return [] if fold.state is None else list(fold.state.nodes)


@pytest.mark.virtual
async def test_a_replica_reads_what_is_new_from_the_log_or_a_snapshot() -> None:
    log = Log()
    assert await log.nodes() == []
    log.join("a")
    assert await log.nodes() == ["a"]
    log.join("b")
    image = (await Replica(log.client, KEYS).look()).to_bytes()
    for number in range(2):
        log.put(KEYS.snapshot_at(2) + b"%08d" % number, image[number * 100 : (number + 1) * 100 or None])
    log.put(KEYS.snapshot_at(2) + b"00000001", image[100:])
    log.remove(KEYS.log_at(1))
    log.remove(KEYS.log_at(2))
    log.join("c", snapshot=2, pieces=2)
    assert await log.nodes() == ["a", "b", "c"]
    log.remove(KEYS.ledger)
    assert await log.nodes() == []


@pytest.mark.virtual
async def test_a_log_with_a_gap_is_damaged_and_nothing_of_it_is_believed() -> None:
    log = Log()
    log.join("a")
    log.join("b")
    log.remove(KEYS.log_at(1))
    with pytest.raises(RendezvousStateError, match="entries 1 to 2 of the log should be there, but 1"):
        await log.nodes()
    log.join("c", snapshot=2, pieces=1)
    with pytest.raises(RendezvousStateError, match="1 pieces of snapshot 2 should be there, but 0"):
        await log.nodes()


@pytest.mark.virtual
async def test_an_entry_that_is_no_batch_leaves_the_replica_as_it_was() -> None:
    log = Log()
    log.join("a")
    assert await log.nodes() == ["a"]
    log.join("b")
    log.put(KEYS.log_at(2), b"not ours")
    for _ in range(2):
        with pytest.raises(RendezvousStateError, match="holds no Batch"):
            await log.nodes()
    assert log.replica.fold.state is not None
    assert list(log.replica.fold.state.nodes) == ["a"]


class Lines:
    """A stream of these lines, and a client."""

    name = "etcd"
    endpoint = None
    ready = False

    def __init__(self, *lines: bytes | Exception, has_user: bool = False) -> None:
        self.lines = list(lines)
        self.avoided = 0
        self._has_user = has_user

    async def line(self) -> bytes:
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return line

    def avoid(self, endpoint: object) -> None:
        self.avoided += 1

    async def renew(self, endpoint: object, doing: str) -> bool:
        return self._has_user

    def denied(self, doing: str, said: str) -> StoreError:
        return StoreError(f"{doing}: {said}")


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        (b'{"result": {"compact_revision": "7"}}', CompactedError, "^$"),
        (b'{"result": {"canceled": true, "cancel_reason": "no leader"}}', EndpointTrouble, "no leader"),
        (b'{"error": {"message": "gone", "grpc_code": 14}}', EndpointTrouble, "gone"),
        (b'{"error": {"message": "permission denied", "grpc_code": 7}}', StoreError, "watch: permission"),
        (b"<html>", EndpointTrouble, "no message of a watch"),
        (EndpointTrouble("broke off"), EndpointTrouble, "broke off"),
    ],
)
async def test_whoever_follows_keys_is_told_why_that_ended(
    line: bytes | Exception, kind: type[Exception], said: str
) -> None:
    lines = Lines(b'{"result": {"created": true}}', line)
    follower = Follower(cast(Any, lines), cast(Any, lines), "watch")
    with pytest.raises(kind, match=said):
        await follower.next()
    assert lines.avoided == (kind is EndpointTrouble)


@pytest.mark.parametrize(
    ("events", "error"), [((), StoreError), ((b'{"result": {"events": [{"kv": {}}]}}',), LoginRenewed)]
)
async def test_a_new_login_is_had_once_unless_something_has_come_by_it(
    events: tuple[bytes, ...], error: type[Exception]
) -> None:
    denied = b'{"error": {"message": "permission denied", "grpc_code": 7}}'
    lines = Lines(*events, denied, has_user=True)
    follower = Follower(cast(Any, lines), cast(Any, lines), "watch", renew=False)
    for _ in events:
        assert await follower.next()
    with pytest.raises(error):
        await follower.next()


class Renewals:
    """A client that answers keep-alives with these."""

    name = "etcd"

    def __init__(self, answers: Sequence[LeaseLine | Exception]) -> None:
        self.answers = list(answers)

    async def call(self, *_: object, **__: object) -> LeaseLine:
        await anyio.sleep(0.1)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.virtual
async def test_a_lease_is_counted_from_when_its_renewal_was_sent() -> None:
    begin = anyio.current_time()
    client = Renewals(
        [LeaseLine(LeaseReply(1, 8)), LeaseLine(None, StreamError("no leader", 14)), LeaseLine()]
    )
    lease = Lease(cast(Any, client), 1, 6.0, begin)
    await anyio.sleep(2.0)
    await lease.renew()
    assert (lease.renewed - begin, lease.ttl, lease.deadline - begin) == (2.0, 8.0, 10.0)
    for said in ("no leader", "nothing"):
        with pytest.raises(RendezvousConnectionError, match=said):
            await lease.renew()
    assert lease.trouble is not None
    assert not lease.over
    await anyio.sleep_until(lease.deadline)
    assert lease.over


@pytest.mark.virtual
async def test_keeping_a_lease_ends_when_it_has_ended_or_may_have() -> None:
    begin = anyio.current_time()
    ended = Lease(cast(Any, Renewals([LeaseLine(LeaseReply(1, 0))])), 1, 6.0, begin)
    await ended.keep()
    assert anyio.current_time() - begin < 3.0
    with pytest.raises(LeaseEndedError):
        await Lease(cast(Any, Renewals([LeaseLine(LeaseReply(1, 0))])), 1, 6.0, begin).renew()
    begin = anyio.current_time()
    revoked = Lease(cast(Any, Renewals([RendezvousConnectionError("no")])), 1, 6.0, begin)
    with pytest.raises(RendezvousConnectionError):
        await revoked.revoke()
    await revoked.keep()  # it would be renewed for ever, if nobody had heard that it was to end
    begin = anyio.current_time()
    cut_off = Lease(cast(Any, Renewals([RendezvousConnectionError("no")] * 99)), 1, 6.0, begin)
    await cut_off.keep()
    assert anyio.current_time() - begin == 6.0


@pytest.mark.virtual
async def test_who_waits_for_a_round_is_told_when_etcd_has_been_away_for_the_join_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    etcd = FakeEtcd(0, [])
    monkeypatch.setattr(etcd_link, "EtcdClient", etcd.client)
    async with EtcdBackend("fake", "run", join_timeout=30.0, share=False) as backend:
        joined = await backend.propose(Join(NodeDesc("a"), PAIR))
        etcd.clients[0].refuse = RendezvousConnectionError("nobody is there")
        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat, backend)
            with pytest.raises(RendezvousConnectionError, match="for 30 s: nobody is there"):
                await backend.changed("a", joined.revision)
            tasks.cancel_scope.cancel()
        assert 30.0 <= anyio.current_time() - start < 40.0
        etcd.clients[0].refuse = None
        await anyio.sleep(5.0)
        assert (await backend.propose(Join(NodeDesc("a"), PAIR))).phase is Phase.GATHERING


@pytest.mark.virtual
@pytest.mark.parametrize(
    ("moment", "lease"),
    [(0, 60.0), (1, 60.0), (1, 4.0)],
    ids=["its_lease_is_granted", "its_intent_is_written", "its_lease_ends"],
)
async def test_nothing_is_left_of_who_withdraws_while(moment: int, lease: float) -> None:
    etcd = FakeEtcd(0, [])
    client = cast(EtcdClient, FakeClient(etcd, moment, "is cut off"))  # the answer takes long
    outbox = Outbox(client, KEYS, "l", Leases(client, lambda _: None), lambda _: None)
    speaker = Speaker("l/1/a", outbox.change)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outbox.run)
        settings = RunSettings(2, 2, keep_alive_interval=lease / 4, keep_alive_max_attempt=4)
        speaker.say(Join(NodeDesc("a"), settings), 0.0)
        await anyio.sleep(1.0)
        speaker.withdraw()
        with anyio.fail_after(100):
            await outbox.drained([speaker])
        assert [key for key in etcd.keys if key.startswith(KEYS.intents)] == []
        assert not outbox.holds()
        tasks.cancel_scope.cancel()


@pytest.mark.virtual
async def test_what_etcd_refuses_is_not_asked_for_without_pause() -> None:
    etcd = FakeEtcd(0, [])
    client = FakeClient(etcd, -1, "")
    refused: list[RendezvousError | None] = []
    typed = cast(EtcdClient, client)
    outbox = Outbox(typed, KEYS, "l", Leases(typed, lambda _: None), refused.append)
    speaker = Speaker("l/1/a", outbox.change)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outbox.run)
        joining = speaker.say(Join(NodeDesc("a"), PAIR), 0.0)
        await anyio.sleep(1.0)
        refused.clear()
        client.refuse = StoreError("user 'job' may not")
        outbox.change(speaker)
        with pytest.raises(StoreError, match="may not"):
            await joining
        await anyio.sleep(10.0)
        assert 10 <= len(refused) <= 100  # its intent is still there, and would be removed
        tasks.cancel_scope.cancel()


@pytest.mark.virtual
async def test_the_keys_of_a_round_go_with_the_entry_of_the_log_that_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    etcd = FakeEtcd(0, [])
    monkeypatch.setattr(etcd_link, "EtcdClient", etcd.client)
    monkeypatch.setattr(etcd_leader, "MOST_OPS", 1)  # what is told of it comes in other transactions
    async with EtcdBackend("fake", "run") as backend:
        held = await join_until_member(backend, Join(NodeDesc("a"), ALONE))
        kept = b"/arendezvous/store/k/arendezvous/run/k"
        etcd.do("kv/txn", txn([], [put_op(kept, b"v")]))
        await join_until_member(backend, Join(NodeDesc("a"), ALONE, held.generation))
    [removed] = [at for at, event in etcd.history if event.type == "DELETE" and event.kv.key == kept]
    together = {event.kv.key.rpartition(b"/runs/run/")[2] for at, event in etcd.history if at == removed}
    assert {name.partition(b"/")[0] for name in together - {kept}} == {b"log", b"ledger"}


async def beat(backend: EtcdBackend) -> None:
    while True:
        await anyio.sleep(1.0)
        try:
            await backend.propose(KeepAlive("a"))
        except RendezvousConnectionError:
            continue


async def test_members_share_a_store_that_lasts_as_long_as_the_run() -> None:
    async with serve_etcd() as etcd, EtcdBackend(etcd.urls, "run") as backend:
        store = backend.store
        assert store is not None
        with pytest.raises(StoreError, match="set of 'k': what members share lasts as long as their run"):
            await store.set("k", b"v")
        assert not await store.check(["k"])
        await join_until_member(backend, Join(NodeDesc("a"), ALONE))
        await store.compare_set("k", "", "v")
        assert await store.add("n", 2) == 2
        await store.queue_push("q", b"v")
        ledger = await ledger_of(etcd)
        kept = await etcd.post("kv/range", {"key": text64("/arendezvous/store/"), "range_end": text64("0")})
        assert [item["lease"] for item in kept["kvs"]] == [ledger["lease"]] * 3
        await etcd.post("lease/revoke", {"ID": ledger["lease"]})
        assert not await store.check(["k"])
        await until_seen(lambda: ledger_of(etcd), bool)  # its member makes the run known again
        await store.set("k", b"w")
        assert await store.get("k") == b"w"


async def ledger_of(etcd: RealEtcd) -> dict[str, Any]:
    """The ledger of the run; empty if there is none."""
    answer = await etcd.post("kv/range", {"key": text64("/arendezvous/runs/run/ledger")})
    [ledger] = answer.get("kvs", [{}])
    return cast(dict[str, Any], ledger)


async def test_a_connection_that_is_cut_costs_nobody_a_rank() -> None:
    async with (
        serve_etcd() as etcd,
        FaultProxy("127.0.0.1", int(etcd.urls[0].rpartition(":")[2])) as proxy,
        EtcdBackend(proxy.address, "run") as inside,
        EtcdBackend(etcd.urls, "run") as outside,
    ):
        held = await join_until_member(inside, Join(NodeDesc("a"), ALONE))
        proxy.cut()
        await etcd.compact()
        await outside.propose(Close("somebody", "over"))
        view = await view_where(inside, held, lambda view: view.closed)
        assert (view.phase, view.rank) == (Phase.MEMBER, held.rank)
