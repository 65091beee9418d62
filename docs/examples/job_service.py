"""A service that starts jobs, watches them and closes them over HTTP, and is a node of none of them.

python job_service.py
"""

# ruff: noqa: T201, ASYNC110 - an example prints what it finds, and its client asks until it finds it

import asyncio
from collections.abc import AsyncIterator

from aiohttp import ClientSession, web

import arendezvous as ar

JOBS = [f"job{number}" for number in range(50)]


async def work(url: str, job: str) -> None:
    """Is one of the two nodes of a job, until that is closed."""
    async with ar.open_rendezvous(url, run_id=job, min_nodes=2) as rdzv:
        await rdzv.next_rendezvous()
        async for change in rdzv.changes():
            if isinstance(change, ar.Closed):
                await rdzv.leave(cause=ar.Cause.FINISHED)


class JobService:
    """The jobs at one server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.nodes: set[asyncio.Task[None]] = set()

    async def follow(self, _: web.Application) -> AsyncIterator[None]:
        """Looks on at all jobs while the service runs."""
        async with (
            ar.connect(self.url, by="the job service") as self.server,
            ar.observe(self.url) as self.seen,
        ):
            yield
            await asyncio.gather(*self.nodes)

    async def start(self, request: web.Request) -> web.Response:
        """Starts both nodes of a job."""
        self.nodes |= {asyncio.create_task(work(self.url, request.match_info["job"])) for _ in range(2)}
        return web.json_response(status=202)

    async def show(self, _: web.Request) -> web.Response:
        """Tells which jobs have met, from what has been seen: nobody is asked."""
        return web.json_response(
            {job: run.complete and not run.closed for job, run in self.seen.runs.items()}
        )

    async def close(self, request: web.Request) -> web.Response:
        """Closes a job."""
        status = await self.server.close(request.match_info["job"], reason="its budget is spent")
        return web.json_response({"explain": str(status)})


async def main() -> None:
    """Serves, and is its own first client."""
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        service, app = JobService(server.http_url or ""), web.Application()
        app.cleanup_ctx.append(service.follow)
        app.add_routes([web.put("/jobs/{job}", service.start), web.delete("/jobs/{job}", service.close)])
        app.add_routes([web.get("/jobs", service.show)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession("http://{}:{}".format(*runner.addresses[0])) as client:
            for job in JOBS:
                await client.put(f"/jobs/{job}")
            while sum((jobs := await (await client.get("/jobs")).json()).values()) < len(JOBS):
                await asyncio.sleep(0.1)
            print(f"{len(jobs)} jobs have met")
            await asyncio.gather(*(client.delete(f"/jobs/{job}") for job in JOBS))
        await runner.cleanup()
        print(f"{sum(run.closed for run in service.seen.runs.values())} are closed")


if __name__ == "__main__":
    asyncio.run(main())
