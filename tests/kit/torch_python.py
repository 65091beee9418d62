"""A Python that has imported torch, which takes 1.5 s of CPU each time: the tests start more than a hundred.

`command` stands for ``python``: what follows it is run in a fork of a process that has torch already. It has
the files, the directory and the environment of the process that the command starts, which passes on signals
and ends as the fork does. What torch reads while it is imported (``LOGLEVEL``) comes too late.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
from contextlib import suppress
from functools import cache
from typing import Any

PRELOADED = (
    "torch.distributed.run", "torch.distributed.elastic.rendezvous.dynamic_rendezvous",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend", "aiohttp", "anyio", "msgspec",
)  # fmt: skip
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ENDINGS = ("-I", "-S", __file__)  # options with which Python starts in a hundredth of a second, and this file


@cache
def command() -> tuple[str, ...]:
    """Returns the command; who serves it is started once in each process of pytest, and ends with it."""
    name = f"arendezvous-torch-{os.getpid()}-{os.urandom(4).hex()}"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    atexit.register(process.communicate)  # closes its stdin, at which it ends
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return sys.executable, *ENDINGS, name


def ask(name: str, arguments: list[str]) -> None:
    """Has the command run, and ends as it does."""
    request = {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd()}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(f"\0{name}")
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        body = json.dumps({**request, "group": os.getpgid(0)}).encode()
        socket.send_fds(server, [body], [0, 1, 2])
        for file in range(3):
            os.close(file)
        status = int(server.recv(16) or b"99")
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status in PASSED_ON else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(name: str) -> list[str]:
    """Forks for each request; returns in the forks, and returns what each is to run."""
    for module in PRELOADED:
        __import__(module)
    gc.freeze()  # else each fork copies all of it as it ends: 0.5 s of CPU instead of 0.2
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how the forks' keepers end
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0{name}")
        listener.listen(64)
        os.write(1, b"ready\n")
        while True:
            ready, _, _ = select.select([listener.fileno(), 0], [], [])
            if 0 in ready:
                os._exit(0)
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return keep(client)
            client.close()


def keep(client: socket.socket) -> list[str]:
    """Forks once more, and stays to pass on signals and how that ends; returns in the fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    body, files, _, _ = socket.recv_fds(client, 2**20, 3)
    request = json.loads(body)
    pid = os.fork()
    if pid == 0:
        client.close()
        become(request, files)
        return list(request["arguments"])
    for file in (*files, 0, 1, 2):
        os.close(file)
    end = os.pidfd_open(pid)
    while True:
        ready, _, _ = select.select([client.fileno(), end], [], [])
        if end in ready:
            break
        number = client.recv(1)
        os.kill(pid, number[0] if number else signal.SIGKILL)
    with suppress(OSError):
        client.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def become(request: dict[str, Any], files: list[int]) -> None:
    """Makes this process what the one that asks was to be."""
    try:
        os.setpgid(0, request["group"])
    except PermissionError:  # of another session
        os.setpgid(0, 0)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["directory"])
    environment: dict[str, str] = request["environment"]
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a text file


def run(arguments: list[str]) -> None:
    """Runs what follows ``python`` on a command line: ``-c``, ``-m``, or a file."""
    while arguments[0] in ("-W", "-u"):
        del arguments[: 2 if arguments[0] == "-W" else 1]
    kind, *rest = arguments
    sys.path[0] = ""
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(kind)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.flags.isolated:
        ask(sys.argv[1], sys.argv[2:])
    else:
        run(serve(sys.argv[1]))
