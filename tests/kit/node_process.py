"""A node of run "job" as a process of its own: says what happens to it, one JSON object a line.

It meets again whenever its round changes, but for changes that only announce something.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time

import anyio

import arendezvous as ar


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what, default=str) + "\n")
    sys.stdout.flush()


async def live(options: argparse.Namespace) -> None:
    settings = {
        "keep_alive_interval": options.interval,
        "keep_alive_max_attempt": options.attempts,
        "disconnect_grace": options.grace,
        "timeout": ar.RendezvousTimeout(last_call=options.last_call),
    }
    async with ar.open_rendezvous(
        options.url,
        run_id="job",
        min_nodes=options.min,
        max_nodes=options.max,
        node=options.name,
        read_timeout=60.0,
        **settings,
    ) as rdzv:
        say(what="open")
        while True:
            info = await rdzv.next_rendezvous()
            say(what="member", round=info.round, rank=info.rank, world_size=info.world_size)
            async for change in rdzv.changes():
                say(what=type(change).__name__, **vars(change) | {"text": str(change)})
                if not isinstance(change, ar.NodeDraining):
                    break


async def main(options: argparse.Namespace) -> None:
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, scope.cancel)
        try:
            await live(options)
        except ar.RendezvousGracefulExitError as error:
            say(what="graceful exit", text=str(error))
        except ar.RendezvousClosedError as error:
            say(what="closed", text=str(error))


parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("name")
parser.add_argument("--min", type=int, default=2)
parser.add_argument("--max", type=int, default=2)
parser.add_argument("--interval", type=float, default=5.0)
parser.add_argument("--attempts", type=int, default=3)
parser.add_argument("--grace", type=float, default=1.0)
parser.add_argument("--last-call", type=float, default=0.0)
parser.add_argument("--skew", type=float, default=0.0)

if __name__ == "__main__":
    given = parser.parse_args()
    if given.skew:
        real = time.time
        time.time = lambda: real() + given.skew
    asyncio.run(main(given))
    sys.exit(0)
