"""Nodes that meet again and again in processes of their own, and a checker over what they wrote down.

`python -m tests.kit.nemesis_kit URL NODE FILE` runs one node until its input ends. It writes a line of JSON
for each round that it is told of, at once, whatever becomes of it later.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import anyio

import arendezvous as ar

Entry: TypeAlias = Mapping[str, Any]
RUN = "run"
LEAST, MOST = 3, 8


def faults(logs: Mapping[str, Iterable[Entry]]) -> list[str]:
    """What in the logs of nodes, by name, is at variance with what a rendezvous promises.

    No two member lists for one round of one incarnation, no two nodes with one rank in one round, no rank
    out of range, and at no node a round that does not come after the one before.
    """
    found: list[str] = []
    lists: dict[tuple[int, int], set[tuple[str, int]]] = defaultdict(set)
    holders: dict[tuple[int, int, int], set[str]] = defaultdict(set)
    for node, entries in logs.items():
        before = (0, -1)
        for entry in entries:
            generation = (entry["incarnation"], entry["round"])
            if generation <= before:
                found.append(f"{node} is told of round {generation} after {before}")
            before = generation
            lists[generation].add((entry["digest"], entry["world_size"]))
            holders[(*generation, entry["rank"])].add(node)
            if not 0 <= entry["rank"] < entry["world_size"]:
                found.append(f"{node} has rank {entry['rank']} of {entry['world_size']}")
    found += [f"round {key} has {len(seen)} member lists" for key, seen in lists.items() if len(seen) > 1]
    found += [f"rank {key} is held by {sorted(names)}" for key, names in holders.items() if len(names) > 1]
    return found


def read_log(file: Path) -> list[Entry]:
    """The lines of a log; the last may be torn."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


async def take_part(url: str, node: str, file: Path) -> None:
    """Meets, writes down what it is told, and meets again when its world changes, or soon by itself."""
    with file.open("a", buffering=1) as log:
        while True:
            try:
                await _open_once(url, node, log)
            except ar.RendezvousError as error:
                sys.stderr.write(f"{node}: {type(error).__name__}: {error}\n")
                await anyio.sleep(0.1)


async def _open_once(url: str, node: str, log: Any) -> None:
    options: dict[str, Any] = {"read_timeout": 5.0, "join_timeout": 60.0, "last_call_timeout": 0.2}
    async with ar.open_rendezvous(
        url, run_id=RUN, node=node, min_nodes=LEAST, max_nodes=MOST, keep_alive_interval=1.0, **options
    ) as rdzv:
        while True:
            info = await rdzv.next_rendezvous()
            entry = {
                name: getattr(info, name) for name in ("incarnation", "round", "rank", "world_size", "digest")
            }
            log.write(json.dumps(entry) + "\n")
            with anyio.move_on_after(random.uniform(0.5, 3.0)):
                async for _ in rdzv.changes():
                    break


async def main() -> None:
    url, node, file = sys.argv[1:]
    taking_part = asyncio.ensure_future(take_part(url, node, Path(file)))
    await asyncio.to_thread(sys.stdin.read)
    taking_part.cancel()


if __name__ == "__main__":
    asyncio.run(main())
