"""Nodes that meet again and again in processes of their own, and what a checker makes of their logs.

`python -m tests.kit.nemesis_kit URL NODE FILE` runs one node until its input ends. Between two rounds it sets
its key, reads another's, pushes into a queue and pops from it. It writes a line of JSON for each thing that
it is told, at once, whatever becomes of it later; and before it asks for what it may never be answered.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from bisect import bisect_left
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO, TypeAlias

import anyio

import arendezvous as ar
from arendezvous.stores.port import Store
from tests.kit.agreed import Log, Popped, Pushed, Rank, Read, Told, Wrote

Entry: TypeAlias = Mapping[str, Any]
RUN = "run"
LEAST, MOST = 3, 8
NAMES: Final = [f"node{number}" for number in range(MOST)]
QUEUE: Final = "queue"
UNKNOWN: Final = (ar.RendezvousConnectionError, ar.StoreError)


def log_of(logs: Mapping[str, Iterable[Entry]], left: Iterable[str] = ()) -> Log:
    """Makes one log of those of nodes, by name, for `agreed.faults`.

    Args:
        logs: The logs; their times are of the clock that all processes of a machine share.
        left: What was in the queue in the end.
    """
    entries = sorted(
        (entry["at"], number, node, entry)
        for node, log in logs.items()
        for number, entry in enumerate(_answered(log))
    )
    times = [entry[0] for entry in entries]
    told = [_told(node, entry, times) for _, _, node, entry in entries]
    return Log([one for one in told if one is not None], list(left))


def _answered(log: Iterable[Entry]) -> list[Entry]:
    """The entries, but of those that say what is about to be popped only the ones without an answer."""
    kept: list[Entry] = []
    for entry in log:
        if entry["what"] == "popped" and kept and kept[-1]["what"] == "popping":
            kept.pop()
        kept.append(entry)
    return kept


def _told(node: str, entry: Entry, times: list[float]) -> Told | None:
    match entry["what"]:
        case "rank":
            said = (entry[name] for name in ("incarnation", "round", "rank", "world_size", "digest"))
            return Rank(node, *said)
        case "wrote":
            return Wrote(entry["key"], entry["value"], sure=entry["sure"])
        case "read":
            return Read(entry["key"], entry["value"], bisect_left(times, entry["begun"]))
        case "pushed":
            return Pushed(entry["value"], sure=entry["sure"])
        case "popping":
            return Popped(None)
        case _:
            return None if entry["value"] == "" else Popped(entry["value"])


def read_log(file: Path) -> list[Entry]:
    """The lines of a log; the last may be torn."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def ranks(log: Iterable[Entry]) -> list[Entry]:
    """The ranks that a node was told."""
    return [entry for entry in log if entry["what"] == "rank"]


class Node:
    """One node, and its log."""

    def __init__(self, name: str, log: TextIO) -> None:
        self.name = name
        self._log = log

    def note(self, what: str, **more: object) -> None:
        self._log.write(json.dumps({"what": what, "at": time.monotonic(), **more}) + "\n")

    async def take_part(self, url: str) -> None:
        """Meets, writes down what it is told, and meets again when its world changes, or soon by itself."""
        while True:
            try:
                await self._open_once(url)
            except ar.RendezvousError as error:
                sys.stderr.write(f"{self.name}: {type(error).__name__}: {error}\n")
                await anyio.sleep(0.1)

    async def _open_once(self, url: str) -> None:
        options: dict[str, Any] = {"read_timeout": 5.0, "join_timeout": 60.0, "last_call_timeout": 0.2}
        options |= {"min_nodes": LEAST, "max_nodes": MOST, "keep_alive_interval": 1.0}
        async with ar.open_rendezvous(url, run_id=RUN, node=self.name, **options) as rdzv:
            assert isinstance(rdzv, ar.DynamicRendezvousHandler)
            store = rdzv._backend.store
            assert store is not None
            while True:
                info = await rdzv.next_rendezvous()
                told = ("incarnation", "round", "rank", "world_size", "digest")
                self.note("rank", **{name: getattr(info, name) for name in told})
                with anyio.move_on_after(random.uniform(0.5, 3.0)):
                    await self._use(store)
                    async for _ in rdzv.changes():
                        break

    async def _use(self, store: Store) -> None:
        """Uses the store; may be cancelled at any moment, as a node may be killed."""
        key, value = f"key/{self.name}", time.monotonic_ns()
        self.note("wrote", key=key, value=value, sure=False)
        if await known(store.set(key, str(value))):
            self.note("wrote", key=key, value=value, sure=True)
        other, begun = f"key/{random.choice(NAMES)}", time.monotonic()
        with suppress(*UNKNOWN):
            if await store.check([other]):
                self.note("read", key=other, value=int(await store.get(other)), begun=begun)
        pushed = f"{self.name}.{value}"
        self.note("pushed", value=pushed, sure=False)
        if await known(store.queue_push(QUEUE, pushed)):
            self.note("pushed", value=pushed, sure=True)
        self.note("popping")
        with suppress(ar.RendezvousConnectionError, ar.StoreTimeoutError):
            try:
                self.note("popped", value=(await store.queue_pop(QUEUE, block=False)).decode())
            except ar.StoreQueueEmptyError:
                self.note("popped", value="")


async def known(operation: Awaitable[object]) -> bool:
    """Whether an operation was carried out for sure."""
    try:
        await operation
    except UNKNOWN:
        return False
    return True


async def main(url: str, name: str, log: TextIO) -> None:
    taking_part = asyncio.ensure_future(Node(name, log).take_part(url))
    await asyncio.to_thread(sys.stdin.read)
    taking_part.cancel()


if __name__ == "__main__":
    with Path(sys.argv[3]).open("a", buffering=1) as file:
        asyncio.run(main(sys.argv[1], sys.argv[2], file))
