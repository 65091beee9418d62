"""Three nodes agree, in the join itself, on the checkpoint from which all of them go on.

python checkpoint.py
"""

# ruff: noqa: T201 - an example prints what it finds

import asyncio

import arendezvous as ar

SAVED = {"a": 120, "b": 100, "c": 120}  # the newest step that each node has on its disk


async def node(name: str) -> None:
    """Brings the step that it has, and restores the one that all have."""
    async with ar.open_rendezvous(
        "memory://", run_id="job", nnodes=3, node=name, facts={"step": "min"}
    ) as rdzv:
        info = await rdzv.next_rendezvous(facts={"step": SAVED[name]})
        print(f"{name}: restores step {info.facts['step']}")


async def main() -> None:
    """Runs them all, in one loop."""
    await asyncio.gather(*map(node, SAVED))


asyncio.run(main())
