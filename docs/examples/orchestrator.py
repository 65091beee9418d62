"""An orchestrator that lives in one event loop: it serves, and is a member of two runs at once.

    python orchestrator.py

A trainer leaves the run "train" in the middle. The others are told, and meet again without it; the run "eval"
notices nothing.
"""

# ruff: noqa: T201 - an example prints what it finds

import asyncio

import arendezvous as ar


async def trainer(url: str, name: str, *, leaves: bool) -> str:
    """Meets until the run is closed; the member that `leaves` goes after the first round."""
    async with ar.open_rendezvous(url, run_id="train", min_nodes=2, max_nodes=3, node=name) as rdzv:
        while True:
            info = await rdzv.next_rendezvous()
            if leaves:
                await rdzv.leave("its machine is needed elsewhere")
                return f"{name} left"
            if info.world_size == 2:
                await info.store.barrier("trained", info.world_size)
                return f"{name}: round {info.round}, world size {info.world_size}"
            async for change in rdzv.changes():
                if isinstance(change, ar.NodeLeft):
                    break


async def evaluator(url: str, name: str) -> str:
    """Meets once, and shares a result."""
    async with ar.open_rendezvous(url, run_id="eval", min_nodes=2, node=name) as rdzv:
        info = await rdzv.next_rendezvous()
        total = await info.store.add("score", info.rank + 1)
        await info.store.barrier("evaluated", info.world_size)
        return f"{name}: rank {info.rank}, at most {total} so far"


async def main() -> None:
    """Runs both at once."""
    async with ar.serve("127.0.0.1:0") as server, asyncio.TaskGroup() as tasks:
        trainers = [
            tasks.create_task(trainer(server.tcp_url, name, leaves=name == "t2"))
            for name in ("t0", "t1", "t2")
        ]
        evaluators = [tasks.create_task(evaluator(server.tcp_url, name)) for name in ("e0", "e1")]
    for task in (*trainers, *evaluators):
        print(task.result())


if __name__ == "__main__":
    asyncio.run(main())
