"""Operations a second, and the round trip, of {torch's client, ours} on {torch's server, ours}.

One operation is a `get` of 32 bytes, which is two requests one after the other for torch's client, and one
for ours. Servers and clients each have a process of their own; all on loopback, in one run, medians of
several rounds. Torch's client is blocking, one request at a time: several in flight are several threads.

    python benchmarks/bench_store.py [--rounds 5] [--loop uvloop]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator

IN_FLIGHT = (1, 64, 1024)

OUR_SERVER = """
import asyncio, sys
from arendezvous.server.store_server import serve_store

async def main():
    async with serve_store() as server:
        print(server.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""

STOCK_SERVER = """
import sys
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""

OUR_CLIENT = """
import asyncio, json, sys, time
from arendezvous.stores.tcp import TcpStore

loop, port, in_flight, rounds, operations = sys.argv[1], *map(int, sys.argv[2:])

async def worker(store, count):
    for _ in range(count):
        await store.get("key")

async def main():
    async with TcpStore("127.0.0.1", port) as store:
        await store.set("key", b"v" * 32)
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            await asyncio.gather(*(worker(store, operations // in_flight) for _ in range(in_flight)))
            times.append((time.perf_counter() - start) / (operations // in_flight * in_flight))
        print(json.dumps(times[1:]))

if loop == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""

STOCK_CLIENT = """
import json, sys, threading, time
from torch.distributed import TCPStore

_, port, in_flight, rounds, operations = sys.argv[1], *map(int, sys.argv[2:])
store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
store.set("key", b"v" * 32)

def worker(count):
    for _ in range(count):
        store.get("key")

times = []
for _ in range(rounds + 1):
    threads = [threading.Thread(target=worker, args=(operations // in_flight,)) for _ in range(in_flight)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.append((time.perf_counter() - start) / (operations // in_flight * in_flight))
print(json.dumps(times[1:]))
"""


def python(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]


@contextlib.contextmanager
def server(script: str, loop: str) -> Iterator[int]:
    """Runs a server in a process of its own, and yields its port."""
    with subprocess.Popen(
        python(script, loop), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


def seconds_per_operation(
    script: str, loop: str, port: int, in_flight: int, rounds: int, operations: int
) -> float:
    """The median over `rounds`, measured by a client in a process of its own."""
    done = subprocess.run(
        python(script, loop, port, in_flight, rounds, operations),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    times: list[float] = json.loads(done.stdout)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="of our side")
    options = parser.parse_args()
    servers, clients = {"ours": OUR_SERVER}, {"ours": OUR_CLIENT}
    if importlib.util.find_spec("torch"):
        servers, clients = {"stock": STOCK_SERVER, **servers}, {"stock": STOCK_CLIENT, **clients}
    print(f"get of 32 bytes, medians of {options.rounds} rounds, loop {options.loop}")
    print(f"{'client':>7} {'server':>7} {'in flight':>10} {'operations/s':>14} {'us/operation':>14}")
    trips: dict[tuple[str, str], float] = {}
    for server_name, server_script in servers.items():
        with server(server_script, options.loop) as port:
            for client_name, client_script in clients.items():
                for in_flight in IN_FLIGHT:
                    operations = 10_000 if client_name == "stock" else 10_000 if in_flight == 1 else 100_000
                    took = seconds_per_operation(
                        client_script, options.loop, port, in_flight, options.rounds, operations
                    )
                    trips.setdefault((client_name, server_name), took)
                    row = f"{client_name:>7} {server_name:>7} {in_flight:>10}"
                    print(f"{row} {1 / took:>14,.0f} {took * 1e6:>14.1f}")
    if ("stock", "stock") in trips:
        ratio = trips["stock", "ours"] / trips["stock", "stock"]
        print(f"round trip of torch's client: {ratio:.2f} x on our server (target: 1.5 x)")


if __name__ == "__main__":
    main()
