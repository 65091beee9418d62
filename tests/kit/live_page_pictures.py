"""Makes the pictures of the live page for the docs: ``python -m tests.kit.live_page_pictures [FOLDER]``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import anyio

import arendezvous as ar
from arendezvous.coordinator.run import Attachment
from arendezvous.law.operations import Drain, Join
from arendezvous.law.state import NodeDesc, RunSettings
from tests.kit import ROOT
from tests.kit.browser import browser_page

FOLDER = ROOT / "docs" / "images"


def join(server: ar.Server, run: str, number: int, settings: RunSettings) -> Attachment:
    """Has a node join without a process of its own."""
    name = f"gpu-{number:02}"
    attachment = server.coordinator.attach(run, name, name.encode(), lambda _: None)
    desc = NodeDesc(name, f"10.0.{number // 4}.{10 + number % 4}", label=f"rack-{number // 4}")
    server.coordinator.propose(attachment, Join(desc, settings))
    return attachment


async def play(server: ar.Server) -> None:
    """Plays a small story: one node is lost, another drains, a spare steps in."""
    settings = RunSettings(6, 8, disconnect_grace=0.2)
    nodes = [join(server, "train-7b", number, settings) for number in range(10)]
    join(server, "eval-nightly", 1, RunSettings(3, 4))
    join(server, "rl-actors", 1, RunSettings(1, 1))
    await anyio.sleep(1.0)
    server.coordinator.detach(nodes[5])
    await anyio.sleep(1.5)
    server.coordinator.steer("train-7b", Drain("gpu-02", 45.0, "maintenance of rack-0 at noon"))
    await anyio.sleep(2.0)


async def main(folder: Path) -> None:
    """Makes both pictures."""
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server, browser_page() as page:
        await page.call("Emulation.setScrollbarsHidden", hidden=True)
        await page.shape(1280, 1130)
        await page.open(f"{server.http_url}/#/runs/train-7b")
        await play(server)
        await page.until_text("#members", "draining")
        for name, dark in (("live-page.png", False), ("live-page-dark.png", True)):
            await page.shape(1280, 1130, dark=dark)
            (folder / name).write_bytes(await page.picture())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
