"""The keys of a round go with it."""

from __future__ import annotations

import anyio

import arendezvous as ar
from arendezvous.stores.tcp.store import TcpStore


async def test_the_keys_of_a_round_are_gone_when_the_next_one_opens_and_others_stay() -> None:
    async with ar.serve("127.0.0.1:0") as server, TcpStore("127.0.0.1", server.port) as everything:
        await everything.set("mine", b"stays")
        async with (
            ar.open_rendezvous(server.tcp_url, run_id="a/b", min_nodes=1) as rdzv,
            ar.open_rendezvous(server.tcp_url, run_id="a", min_nodes=1) as other,
        ):
            info, others = await rdzv.next_rendezvous(), await other.next_rendezvous()
            await info.store.set("k", b"v")
            await info.store.queue_push("q", b"v")
            await others.store.set("k", b"v")

            later = await rdzv.next_rendezvous()

            assert not await later.store.check(["k"])
            assert sorted(await everything.list_keys()) == [
                "arendezvous/a/1.0." + others.digest + "/k",
                "mine",
            ]


async def test_the_keys_of_a_closed_run_are_gone_when_the_last_node_leaves() -> None:
    async with ar.serve("127.0.0.1:0") as server, TcpStore("127.0.0.1", server.port) as everything:
        async with ar.open_rendezvous(server.tcp_url, run_id="run", min_nodes=1) as rdzv:
            info = await rdzv.next_rendezvous()
            await info.store.set("k", b"v")
            await rdzv.set_closed("done")

            assert await everything.num_keys() == 1

        with anyio.fail_after(120):
            assert await everything.num_keys() == 0
