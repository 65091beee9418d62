"""One trainer and three generators, who find each other by the roster; one generator dies on the way.

python rl.py
"""

# ruff: noqa: T201, A001 - an example prints what it finds, and calls a round a round

import asyncio

import arendezvous as ar

ROLES = {"trainer": ar.Role(1), "generator": ar.Role(2, 8)}


def join(url: str, name: str) -> ar.AsyncRendezvousHandler:
    """Makes the handler of one node; all agree on the newest version of the weights that anybody has."""
    return ar.open_rendezvous(
        url, run_id="rl", node=name, roles=ROLES, facts={"version": "max"}, last_call_timeout=0.5
    )


async def trainer(url: str) -> None:
    """Has the weights from version to version, once all generators have worked with the last one."""
    mine = {"version": 0}  # brought to each round as it is then
    async with join(url, "trainer") as rdzv:
        async for round in rdzv.rounds(role="trainer", facts=mine):
            urls = sorted(one.data["url"] for one in await round.members() if one.role == "generator")
            print(f"trainer: {', '.join(urls)} from version {round.facts['version']}")
            with round.scope:
                for version in range(round.facts["version"], 4):
                    mine["version"] = await round.agree(f"version {version}", version, "max")
                await round.barrier("done")


async def generator(url: str, name: str, *, dies: bool = False) -> None:
    """Works with each version of the weights; without the trainer there is no round, and it waits."""
    mine = {"version": 0}
    async with join(url, name) as rdzv:
        async for round in rdzv.rounds(role="generator", data={"url": f"http://{name}"}, facts=mine):
            with round.scope:
                for version in range(round.facts["version"], 4):
                    mine["version"] = await round.agree(f"version {version}", 0, "max")
                    if dies and version == 2:
                        await rdzv.leave("out of memory", cause=ar.Cause.FAILED)
                        return
                await round.barrier("done")
    print(f"{name}: has worked with version {mine['version']}")


async def main() -> None:
    """Runs them all, in one process."""
    async with ar.serve("127.0.0.1:0") as server, asyncio.TaskGroup() as tasks:
        tasks.create_task(trainer(server.tcp_url))
        for name in ("g0", "g1", "g2"):
            tasks.create_task(generator(server.tcp_url, name, dies=name == "g2"))


asyncio.run(main())
