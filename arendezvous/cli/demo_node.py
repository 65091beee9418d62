"""One node of the demo, as a process of its own: ``python -m arendezvous.cli.demo_node --help``.

It takes part in the run until the run is closed, and meets again whenever its world has changed. It reports
what happens to it as JSON lines on stdout, and obeys stdin: the line ``close REASON`` closes the run; the end
of stdin, by whatever cause, ends the process. SIGTERM means that the machine is to be taken away: it drains.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import Any, Final

import anyio
import msgspec

from arendezvous.law.state import Cause
from arendezvous.opening import open_rendezvous
from arendezvous.rendezvous.changes import Closed, Evicted, NodeDraining
from arendezvous.rendezvous.handler import AsyncRendezvousHandler
from arendezvous.rendezvous.option_groups import RendezvousTimeout

DRAIN_SECONDS: Final = 5.0
DRAIN_REASON: Final = "preempted: this machine goes away"


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened to a node.

    Attributes:
        what: ``joining``, ``member`` (of a complete round), ``change`` or ``left``.
        at: When, in seconds of the system's monotonic clock, which all processes of a machine share.
        round: Of a member: its round; likewise the rank, the world size and the member list's digest.
        change: The kind of the change.
        about: The node that the change is about, if it is about one.
        text: The change in words.
    """

    what: str
    at: float
    round: int = -1
    rank: int = -1
    world_size: int = 0
    digest: str = ""
    change: str = ""
    about: str = ""
    text: str = ""


class DemoNode:
    """The node between its start and its end."""

    def __init__(self) -> None:
        self._closing = anyio.Event()
        self._closed = False
        self._reason = ""
        self.released = anyio.Event()

    async def live(self, rdzv: AsyncRendezvousHandler) -> None:
        """Meets until the run is closed, or this node has been drained."""
        while True:
            report("joining")
            info = await rdzv.next_rendezvous()
            numbers = {"round": info.round, "rank": info.rank, "world_size": info.world_size}
            report("member", **numbers, digest=info.digest)
            if await self._until_the_round_is_over(rdzv):
                report("left")
                return

    async def _until_the_round_is_over(self, rdzv: AsyncRendezvousHandler) -> bool:
        """Returns whether the node's part is over, rather than the round alone."""
        draining = False
        async for change in rdzv.changes():
            about = getattr(change, "node", "")
            report("change", change=type(change).__name__, about=about, text=str(change))
            if isinstance(change, Closed):
                self._closed = True
                await rdzv.leave("all done", cause=Cause.FINISHED)
                return True
            if isinstance(change, Evicted):
                return change.cause is Cause.DRAINED
            if isinstance(change, NodeDraining) and about == rdzv.node:
                draining = True  # it stays until the others have met without it
            elif not draining:
                return False
        return False

    async def close_when_told(self, rdzv: AsyncRendezvousHandler) -> None:
        """Closes the run once stdin has said so."""
        await self._closing.wait()
        await rdzv.set_closed(self._reason)

    async def obey(self, scope: anyio.CancelScope) -> None:
        """Reads stdin; its end ends the process."""
        line = b""
        while True:
            await anyio.wait_readable(sys.stdin.fileno())
            data = os.read(sys.stdin.fileno(), 4096)
            if not data:
                self.released.set()
                if not self._closed:
                    scope.cancel()
                return
            line += data
            if line.endswith(b"\n"):
                word, _, self._reason = line.decode().strip().partition(" ")
                line = b""
                if word == "close":
                    self._closing.set()


async def drain_on_sigterm(rdzv: AsyncRendezvousHandler) -> None:
    """Announces the departure when the system says that it is near."""
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            await rdzv.drain(DRAIN_SECONDS, DRAIN_REASON)


async def take_part(args: argparse.Namespace) -> None:
    """Takes part in the run, from the first join to the end; the one that hosts the server ends last."""
    node = DemoNode()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.obey, tasks.cancel_scope)
        async with open_rendezvous(
            args.endpoint,
            run_id=args.run_id,
            min_nodes=args.min_nodes,
            max_nodes=args.max_nodes,
            local_addr="127.0.0.1",
            node=args.name,
            is_host=args.host,
            token="",  # whatever the environment says: the demo is a world of its own
            tls=False,
            timeout=RendezvousTimeout(join=120.0, last_call=60.0, close=2.0),  # nobody is to be too late
            read_timeout=60.0,
        ) as rdzv:
            tasks.start_soon(drain_on_sigterm, rdzv)
            tasks.start_soon(node.close_when_told, rdzv)
            await node.live(rdzv)
            if args.host:
                await node.released.wait()
        tasks.cancel_scope.cancel()


def report(what: str, **more: Any) -> None:
    """Writes what happens now, as one line, to stdout."""
    event = Report(what, time.monotonic(), **more)
    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    sys.stdout.flush()


def main() -> None:
    """Reads the command line, and takes part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("run_id")
    parser.add_argument("name")
    parser.add_argument("--min-nodes", type=int, required=True)
    parser.add_argument("--max-nodes", type=int, required=True)
    parser.add_argument("--host", action="store_true", help="serve the endpoint in this process")
    anyio.run(take_part, parser.parse_args())


if __name__ == "__main__":
    main()
