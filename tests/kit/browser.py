"""A headless Chromium for tests, driven by its own DevTools protocol over a web socket.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib import resources
from typing import IO, Any

import aiohttp
import anyio

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PATIENCE = 120.0

_AXE = """axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => violations.flatMap((one) =>
  one.nodes.map((node) => `${one.id}: ${node.target} ${node.any.map((any) => any.message)}`)))"""
_UNTIL = """new Promise((resolve) => {
  const look = () => { const found = %s; if (found) { observer.disconnect(); resolve(found); } };
  const observer = new MutationObserver(look);
  observer.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
  look();
})"""


def find_browser() -> str | None:
    """The path of a Chromium on this machine; None without one. ``ARENDEZVOUS_CHROMIUM`` names another."""
    named = os.environ.get("ARENDEZVOUS_CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One page of the browser.

    Attributes:
        complaints: What the page wrote to its console as a warning or an error, or threw.
        requests: The URLs that it asked for.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._session = session
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()

    async def listen(self) -> None:
        """Takes what the browser says; for a task of its own."""
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] in (
                "warning",
                "error",
            ):
                self.complaints.append(said["params"]["entry"]["text"])
            elif said["method"] == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])

    async def call(self, method: str, **params: Any) -> Any:
        """Calls a method of the protocol, and returns its result."""
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        await self._socket.send_json(
            {"id": number, "method": method, "params": params, "sessionId": self._session}
        )
        with anyio.fail_after(PATIENCE):
            said = await answer
        assert "error" not in said, (method, params, said["error"])
        return said["result"]

    async def open(self, url: str) -> None:
        """Goes to `url`, and waits until it is loaded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        with anyio.fail_after(PATIENCE):
            await self._loaded.wait()

    async def run(self, script: str) -> Any:
        """Evaluates `script`, waits if it is a promise, and returns what comes of it."""
        result = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, (script, result["exceptionDetails"])
        return result["result"].get("value")

    async def faults(self) -> list[str]:
        """Lists what axe-core finds wrong with the page for those who see, hear or move otherwise."""
        axe = resources.files("axe_core_python") / "axe.min.js"
        await self.run(f"{axe.read_text()}; true")
        found: list[str] = await self.run(_AXE)
        return found

    async def until(self, expression: str) -> Any:
        """Waits until `expression` is true in the page; looks whenever the page changes."""
        return await self.run(_UNTIL % expression)

    async def until_text(self, selector: str, text: str) -> None:
        """Waits until the elements at `selector` contain `text`."""
        found = (
            f"[...document.querySelectorAll({selector!r})].some((one) => one.textContent.includes({text!r}))"
        )
        try:
            await self.until(found)
        except TimeoutError:
            shown = await self.run("document.body.innerText")
            raise AssertionError(f"{text!r} is not in {selector!r}; the page shows:\n{shown}") from None

    async def click(self, selector: str) -> None:
        """Clicks on the middle of an element, as a mouse does, once it can be seen."""
        await self.until(f"document.querySelector({selector!r})?.checkVisibility()")
        box = await self.run(
            f"(() => {{ const one = document.querySelector({selector!r});"
            " one.scrollIntoView({block: 'center'});"
            " const box = one.getBoundingClientRect();"
            " return {x: box.x + box.width / 2, y: box.y + box.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    async def type(self, text: str) -> None:
        """Types into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """Presses and releases a key that has a name, such as Tab."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37}
        text = "\r" if key == "Enter" else ""
        for kind in ("keyDown", "keyUp"):
            code = codes[key]
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text
            )

    async def shape(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Gives the window a size, and says which colours the system has."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self) -> bytes:
        """What the window shows, as PNG."""
        shot = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])


@contextmanager
def browser() -> Iterator[str]:
    """Runs a browser while the block runs; yields the address at which it is driven."""
    path = find_browser()
    assert path is not None, "there is no Chromium here"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        options = [
            "--headless", "--remote-debugging-port=0", f"--user-data-dir={home}", "--disable-gpu",
            "--disable-dev-shm-usage", "--no-first-run", "--window-size=1280,900",
            "--disable-background-networking",
        ]  # fmt: skip
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium's sandbox does not work for root
        process = subprocess.Popen(
            [path, *options, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that all of its processes can be ended together
        )
        assert process.stderr is not None
        addresses: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stderr, addresses))
        reader.start()
        try:
            yield addresses.get(timeout=PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join()
            process.stderr.close()


def _read(said: IO[bytes], addresses: queue.Queue[str]) -> None:
    """Finds the address in what a browser says, and has it say the rest to nobody."""
    for line in said:
        if line.startswith(b"DevTools listening on "):
            addresses.put(line.split()[-1].decode())


@asynccontextmanager
async def browser_page(address: str) -> AsyncIterator[Page]:
    """Opens a page with cookies and storage of its own in the browser at `address`, while the block runs."""
    async with aiohttp.ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:
        asked = itertools.count(1)

        async def call(method: str, **params: Any) -> Any:
            number = -next(asked)
            await socket.send_json({"id": number, "method": method, "params": params})
            while True:
                said = await socket.receive_json(timeout=PATIENCE)
                if said.get("id") == number:
                    return said["result"]

        context = (await call("Target.createBrowserContext", disposeOnDetach=True))["browserContextId"]
        target = (await call("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        session = (await call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = Page(socket, session)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(page.listen)
            yield page
            tasks.cancel_scope.cancel()
