"""Backend ``etcd-v2``: the contract of the port, and what becomes of it when etcd fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from aiohttp import ClientSession, web

import arendezvous as ar
from arendezvous.backends.shared_state.etcd_v2 import EtcdV2Backend, EtcdV2FencedKey
from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.etcd.client_v2 import KeysReply
from arendezvous.etcd.client_v2 import Node as EtcdNode
from arendezvous.law.operations import Join
from arendezvous.law.state import NodeDesc, Phase, RunSettings
from arendezvous.rendezvous.driver import DynamicRendezvousHandler
from arendezvous.rendezvous.option_groups import RendezvousTimeout
from arendezvous.stores.etcd.v2 import EtcdV2Store
from arendezvous.testing import backend_checks
from arendezvous.testing.backend_checks import BACKEND_CHECKS, run_check
from arendezvous.wire.torch_state.state import Annex, StockState, decode_state, encode_state
from tests.kit.etcd_server import RealEtcd, serve_etcd, serve_http, v2_paths
from tests.kit.waiting import until_said, until_seen

V2 = ("--enable-v2",)
HOST = "127.0.0.1"

INEXPRESSIBLE = (
    backend_checks.check_a_spare_is_promoted_when_a_member_drains,
    backend_checks.check_a_drained_member_is_not_brought_back,
    backend_checks.check_closed_is_final_until_reopened,
)
EXPRESSIBLE = [check for check in BACKEND_CHECKS if check not in INEXPRESSIBLE]


async def test_it_keeps_the_contract_and_refuses_what_the_format_has_no_place_for() -> None:
    async with serve_etcd(options=V2) as etcd:

        def make(run_id: str) -> EtcdV2Backend:
            return EtcdV2Backend(etcd.urls, run_id)

        for check in EXPRESSIBLE:
            await run_check(check, make)
        for refused in INEXPRESSIBLE:
            with pytest.raises(RendezvousStateError, match="in the format of stock agents"):
                await run_check(refused, make)


class Changes:
    """Stands for a client: tells of changes of the state at given times, each with the pulse it leaves."""

    def __init__(self, *changes: tuple[float, str]) -> None:
        self.begin = anyio.current_time()
        self.events = []
        for index, (at, pulse) in enumerate(changes, 11):
            value = encode_state(StockState(annex=Annex(pulse=pulse))).decode()
            node = EtcdNode(value=value, modified_index=index)
            self.events.append((at, KeysReply("set", node, index=index)))

    async def watch(self, _path: str, index: int, _doing: str) -> KeysReply:
        for at, event in self.events:
            if event.node.modified_index >= index:
                await anyio.sleep(max(0.0, self.begin + at - anyio.current_time()))
                return event
        await anyio.sleep_forever()
        raise AssertionError


@pytest.mark.virtual
async def test_heartbeats_are_told_of_once_a_second_and_news_at_once() -> None:
    client = Changes((1.0, "a"), (1.2, "a"), (1.4, "a"), (3.0, "a"), (3.1, "a"), (3.2, "b"), (9.0, "0"))
    fenced = EtcdV2FencedKey(client, "/key")  # type: ignore[arg-type]  # it does what is needed of one
    told: list[tuple[float, int]] = []
    with anyio.move_on_after(10):
        known, pulse = 10, "a"
        while True:
            await fenced.wait(fenced.topic(known, pulse))
            now = anyio.current_time() - client.begin
            latest = [event for at, event in client.events if at <= now][-1]
            state = decode_state(latest.node.value.encode())
            assert state is not None
            known, pulse = latest.index, state.annex.pulse
            told.append((round(now, 3), known))
    assert told == [(1.0, 11), (2.0, 13), (3.0, 14), (3.2, 16), (9.0, 17)]


# What becomes of it when etcd fails, and when the run ends


def quick(etcd: RealEtcd, run_id: str, size: int, **options: Any) -> DynamicRendezvousHandler:
    """A node of a run of `size` nodes, with quick keep-alives."""
    backend = EtcdV2Backend(etcd.urls, run_id, **options)
    timeout = RendezvousTimeout(join=120, last_call=0.2)
    return DynamicRendezvousHandler.from_backend(
        run_id, backend, size, size, HOST, timeout, keep_alive_interval=1, keep_alive_max_attempt=10
    )


async def meet(handlers: Sequence[DynamicRendezvousHandler]) -> list[ar.RendezvousInfo]:
    """All of them join at once; they must end up in one world."""
    async with asyncio.TaskGroup() as tasks:
        joining = [tasks.create_task(handler.next_rendezvous()) for handler in handlers]
    infos = [task.result() for task in joining]
    assert sorted(info.rank for info in infos) == list(range(len(handlers)))
    assert len({(info.round, info.digest) for info in infos}) == 1
    return infos


async def test_after_a_closed_run_and_one_time_to_live_no_key_of_it_remains() -> None:
    async with serve_etcd(options=V2) as etcd:
        async with quick(etcd, "job", 1, ttl=2) as handler:
            info = await handler.next_rendezvous()
            await info.store.set("k", "v")
            await info.store.queue_push("q", "v")
            await info.bootstrap_store_info()
            await handler.set_closed("done")
        assert len(await v2_paths(etcd)) >= 4  # who comes now is told that the run is closed
        await until_seen(lambda: v2_paths(etcd), lambda found: found == [])
        assert await v2_paths(etcd, "/torch/elastic/store/_queues") == []


@pytest.mark.parametrize("moment", ["while nodes join", "while they hold a round"])
async def test_when_the_leader_of_etcd_is_killed_all_nodes_end_with_one_round(moment: str) -> None:
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(serve_etcd(3, options=V2))
        handlers = [
            await stack.enter_async_context(quick(etcd, "job", 6, read_timeout=6.0)) for _ in range(6)
        ]
        if moment == "while they hold a round":
            await meet(handlers)
        leader = await etcd.leader()
        async with asyncio.TaskGroup() as tasks:
            meeting = tasks.create_task(meet(handlers))
            leader.kill()
        assert len(await meeting.result()[0].members()) == 6


async def test_a_join_without_a_quorum_completes_when_it_is_back() -> None:
    async with serve_etcd(3, options=V2) as etcd, quick(etcd, "job", 1, read_timeout=25.0) as handler:
        for member in etcd.members[:2]:
            member.kill()
        async with asyncio.TaskGroup() as tasks:
            joining = tasks.create_task(handler.next_rendezvous())
            await until_said(
                lambda seconds: EtcdV2Backend(etcd.urls, "job", read_timeout=seconds).__aenter__(),
                r"connect failed after [\d.]+ s: .* did not",
            )
            etcd.members[0].start()
        assert (joining.result().rank, joining.result().world_size) == (0, 1)


async def test_a_join_whose_answer_is_lost_is_made_once() -> None:
    async with serve_etcd(options=V2) as etcd, ClientSession() as session:
        lost: list[str] = []

        async def forward(request: web.BaseRequest) -> web.StreamResponse:
            data, url = await request.read(), f"{etcd.urls[0]}{request.path_qs}"
            async with session.request(request.method, url, data=data, headers=request.headers) as answer:
                body = await answer.read()
            if request.method == "PUT" and not lost:
                lost.append(request.path)
                assert request.transport is not None
                request.transport.abort()
            kept = {"X-Etcd-Index": answer.headers["X-Etcd-Index"]}
            return web.Response(status=answer.status, body=body, headers=kept)

        async with serve_http(forward) as url, EtcdV2Backend(url, "job") as backend:
            view = await backend.propose(Join(NodeDesc("a"), RunSettings(1, 1)))
            assert lost == ["/v2/keys/torch/elastic/rendezvous/job"]
            assert (view.phase, view.round, view.rank) == (Phase.MEMBER, 0, 0)
            assert len((await backend.status()).nodes) == 1


async def test_a_key_that_is_no_state_is_reported_and_so_is_a_run_that_makes_no_key() -> None:
    with pytest.raises(RendezvousSettingsError, match="a name that makes a key of etcd"):
        EtcdV2Backend("localhost", "a/../b")
    async with serve_etcd(options=V2) as etcd:
        async with EtcdV2Store(etcd.urls, prefix="/torch/elastic/rendezvous/taken") as store:
            await store.set("k", "v")
        with pytest.raises(RendezvousStateError, match="/rendezvous/taken' is a directory"):
            await EtcdV2Backend(etcd.urls, "taken").__aenter__()
