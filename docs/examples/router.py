"""A router that follows an inference fleet by looking on, and sends nothing to whoever is not ready.

python router.py
"""

# ruff: noqa: T201 - an example prints what it finds

import asyncio
import json

import arendezvous as ar


async def replica(url: str, name: str, newest: asyncio.Event, closing: asyncio.Event) -> None:
    """Serves version 1 of the weights, and later version 2."""
    async with ar.open_rendezvous(url, run_id="fleet", nnodes=3, node=name) as rdzv:
        await rdzv.next_rendezvous(data={"url": f"http://{name}"})
        await rdzv.update({"version": 1})
        await newest.wait()
        if name != "r2":  # which takes its time
            await rdzv.update({"version": 2})
        await closing.wait()
        await rdzv.leave(cause=ar.Cause.FINISHED)


def ready(run: ar.RunObserver, version: int) -> list[str]:
    """Names those to whom a request for a version may be sent: members that say that they have it."""
    said = {member.desc.name: json.loads(member.state or b"{}") for member in run.members}
    return sorted(name for name, state in said.items() if state.get("version", 0) >= version)


async def main() -> None:
    """Has the router see how the fleet gets its weights."""
    newest, closing = asyncio.Event(), asyncio.Event()
    async with ar.serve("127.0.0.1:0") as server, asyncio.TaskGroup() as tasks:
        for name in ("r0", "r1", "r2"):
            tasks.create_task(replica(server.tcp_url, name, newest, closing))
        async with ar.observe(server.tcp_url, run_id="fleet") as run:
            async for _ in run:
                if not newest.is_set() and len(ready(run, 1)) == 3:
                    print("version 1 goes to", ", ".join(ready(run, 1)))
                    newest.set()
                elif ready(run, 2) == ["r0", "r1"]:
                    print("version 2 goes to", ", ".join(ready(run, 2)))
                    break
        closing.set()


asyncio.run(main())
