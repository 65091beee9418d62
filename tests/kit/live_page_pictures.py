"""Makes the pictures of the live page for the docs: ``python -m tests.kit.live_page_pictures [FOLDER]``.

Pillow, which the extra ``bench`` brings, makes them small: a palette does for a page of few colours.
"""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

import arendezvous as ar
from arendezvous.coordinator.run import Attachment
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave, Progress
from arendezvous.law.rules import Brought
from arendezvous.law.state import Cause, NodeDesc, RunSettings
from tests.kit import ROOT
from tests.kit.browser import browser, browser_page

FOLDER = ROOT / "docs" / "images"
SIZES = {"live-page": (1400, 900), "live-page-phone": (390, 844)}
BEAT = 4.0
TRAIN = RunSettings(6, 8, last_call=8.0, disconnect_grace=60.0)


class Story:
    """Has nodes come and go without processes of their own, and time pass without waiting.

    Args:
        server: Where they come to.
    """

    def __init__(self, server: ar.Server) -> None:
        self.coordinator = server.coordinator
        self.nodes: dict[tuple[str, str], Attachment] = {}
        self._clock = self.coordinator.clock
        self._skipped = 0.0
        self.coordinator.clock = lambda: self._clock() + self._skipped

    def skip(self, seconds: float) -> None:
        """Lets time pass in which all nodes send heartbeats, and the law does what is due."""
        while seconds > 0:
            self._skipped += min(BEAT, seconds)
            seconds -= BEAT
            for (run, name), attachment in self.nodes.items():
                if name in self.coordinator.runs[run].state.nodes:
                    self.coordinator.propose(attachment, KeepAlive(name))

    def join(self, run: str, name: str, settings: RunSettings = TRAIN, *, label: str = "") -> None:
        """Has a node join, or meet again."""
        state = self.coordinator.runs[run].state if run in self.coordinator.runs else None
        after = (state.incarnation, state.round) if state is not None and state.complete else (0, -1)
        attachment = self.coordinator.attach(run, name, f"{run} {name}".encode(), lambda _: None)
        self.nodes[run, name] = attachment
        number = int(name[-2:])
        address = f"10.20.{number // 4}.{10 + number % 4}"
        brings = Brought(slots=8, data=b'{"url": "http://%s:8000"}' % address.encode())
        desc = NodeDesc(name, address, label=label or f"rack-{number // 4}", brings=brings)
        self.coordinator.propose(attachment, Join(desc, settings, after))

    def meet(self, names: list[str], late: str = "", seconds: float = 0.0) -> None:
        """Has members meet again, one of them late."""
        for name in names:
            if name != late:
                self.join("train-7b", name)
                self.skip(0.15)
        if late:
            self.skip(seconds)
            self.join("train-7b", late)

    def leave(self, run: str, name: str, reason: str, cause: Cause) -> None:
        """Has a node leave."""
        self.coordinator.propose(self.nodes[run, name], Leave(name, reason, cause))

    def progress(self, names: list[str], step: int) -> None:
        """Has members tell how far they have come."""
        for name in names:
            self.coordinator.propose(self.nodes["train-7b", name], Progress(name, step))


def tell_of_others(story: Story) -> None:
    """Has other runs wait, work and be over."""
    alone = RunSettings(1, 1)
    story.join("export-onnx", "cpu-01", alone)
    story.coordinator.steer("export-onnx", Close("ann", "the disk is full"))
    story.join("sweep-12", "cpu-02", alone)
    story.leave("sweep-12", "cpu-02", "", Cause.FINISHED)
    story.join("rl-actors", "cpu-03", alone)


def tell(story: Story) -> None:
    """Tells of a bad night: a crash, a lost machine, one that is about to go, and a drain."""
    gpus = [f"gpu-{number:02}" for number in range(10)]
    tell_of_others(story)
    story.meet(gpus[:8], gpus[6], 6.0)
    story.join("train-7b", gpus[8])
    story.skip(900)
    story.leave("train-7b", gpus[3], "CUDA error: an illegal memory access was encountered", Cause.FAILED)
    story.skip(0.4)
    members = [*gpus[:3], *gpus[4:9]]
    story.meet(members[:7])
    story.skip(400)
    story.leave("train-7b", gpus[5], "NCCL watchdog: the collective timed out", Cause.FAILED)
    members.remove(gpus[5])
    story.meet(members, gpus[7], 19.0)
    story.skip(8)
    story.skip(30)
    story.progress(members, 41_200)
    story.join("train-7b", gpus[3])
    story.coordinator.steer("train-7b", Drain(gpus[2], 300.0, "its fan is loud (by ann)"))
    story.join("eval-nightly", "cpu-04", RunSettings(3, 4))
    story.skip(12)
    story.progress(members[:6], 41_350)
    story.coordinator.detach(story.nodes.pop(("train-7b", gpus[1])))
    story.skip(5)


def small(picture: bytes) -> bytes:
    """Makes a PNG small, by a palette of the colours that are used most."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    counted: list[Any] = sorted(image.getcolors(image.width * image.height) or (), reverse=True)
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, color in counted[:256] for part in color])
    out = io.BytesIO()
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


async def main(folder: Path) -> None:
    """Makes all pictures."""
    with browser() as address:
        async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server, browser_page(address) as page:
            tell(Story(server))
            await page.shape(*SIZES["live-page"])
            await page.open(f"{server.http_url}/")
            await page.call("Emulation.setScrollbarsHidden", hidden=True)
            await page.until_text("#members", "draining")
            await page.until_text("#rounds", "0")
            for name, (width, height) in SIZES.items():
                for end, dark in (("", False), ("-dark", True)):
                    await page.shape(width, height, dark=dark)
                    (folder / f"{name}{end}.png").write_bytes(small(await page.picture()))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
