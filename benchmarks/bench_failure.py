"""From the SIGKILL of a member to the survivors being told, and to their next complete round.

The server and the member that is killed are processes of their own; the survivors are tasks of one other
process. Each is told by its `changes()`, and calls `next_rendezvous()` at once. Medians of several runs.

    python benchmarks/bench_failure.py [--nodes 64] [--grace 1 0]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import time

from bench_rendezvous import our_server

import arendezvous as ar

VICTIM = """
import asyncio, sys
import arendezvous as ar

async def main(url, run_id, nodes, grace):
    async with ar.open_rendezvous(url, run_id=run_id, min_nodes=nodes - 1, max_nodes=nodes,
                                  disconnect_grace=grace, is_host=False) as rdzv:
        await rdzv.next_rendezvous()
        await asyncio.get_running_loop().create_future()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
"""


async def one_run(url: str, run_id: str, nodes: int, grace: float) -> tuple[float, float]:
    """Kills one of `nodes` members; returns the seconds until all are told, and until all have met."""
    arguments = [url, run_id, str(nodes), str(grace)]
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", VICTIM, *arguments)
    told: list[float] = []
    again: list[float] = []
    members = 0
    all_met, all_met_again = asyncio.Event(), asyncio.Event()

    async def survivor() -> None:
        nonlocal members
        async with ar.open_rendezvous(
            url, run_id=run_id, min_nodes=nodes - 1, max_nodes=nodes, disconnect_grace=grace, is_host=False
        ) as rdzv:
            await rdzv.next_rendezvous()
            members += 1
            if members == nodes - 1:
                all_met.set()
            async for change in rdzv.changes():
                if isinstance(change, ar.NodeLost):
                    told.append(time.perf_counter())
                    break
            info = await rdzv.next_rendezvous()
            again.append(time.perf_counter())
            assert info.world_size == nodes - 1
            if len(again) == nodes - 1:
                all_met_again.set()
            await all_met_again.wait()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(nodes - 1):
            tasks.create_task(survivor())
        await all_met.wait()
        start = time.perf_counter()
        os.kill(victim.pid, signal.SIGKILL)
        await victim.wait()
    return max(told) - start, max(again) - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--grace", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with our_server("asyncio") as url:
        for grace in arguments.grace:
            runs = [
                asyncio.run(one_run(url, f"failure-{grace}-{i}", arguments.nodes, grace))
                for i in range(arguments.repeats)
            ]
            told, met = (statistics.median(run[k] for run in runs) * 1e3 for k in (0, 1))
            print(
                f"{arguments.nodes} nodes, grace {grace:g} s: told {told:.1f} ms, "
                f"next round complete {met:.1f} ms after the kill (medians of {arguments.repeats})"
            )


if __name__ == "__main__":
    main()
