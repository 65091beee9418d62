"""Runs our server, as the arguments say, until stdin ends."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

import arendezvous as ar
from benchmarks.processes.child import announce, raise_open_files, runner, tune_collector

if TYPE_CHECKING:
    from benchmarks.counting import CountingLoop

PACKAGE: Final = str(Path(ar.__file__).resolve().parent)


async def serve(options: argparse.Namespace) -> None:
    """Serves until stdin ends."""
    settings: dict[str, Any] = {"http": "127.0.0.1:0" if options.http else None}
    if options.tls_cert:
        settings["tls"] = ar.ServerTls(options.tls_cert, options.tls_key)
    if options.token_file:
        settings["authority"] = ar.Authority.from_file(options.token_file)
    if options.data_dir:
        settings |= {"data_dir": options.data_dir, "sync_full": options.sync_full}
    if options.etcd:
        settings["journal"] = await journal_in_etcd(options.etcd)
    loop = asyncio.get_running_loop()
    async with ar.serve("127.0.0.1:0", **settings) as server:
        tune_collector()
        announce(tcp=server.tcp_url, http=server.http_url, port=server.port, package=PACKAGE)
        await loop.run_in_executor(None, sys.stdin.read)


async def journal_in_etcd(url: str) -> Any:
    """Makes a journal in a cluster of etcd that nobody else uses."""
    from arendezvous.coordinator.journals.etcd import EtcdJournal  # here, as a checkout beside may lack it
    from arendezvous.etcd.client import EtcdClient
    from arendezvous.etcd.cluster import EtcdCluster
    from arendezvous.etcd.wire import PutReply

    client = EtcdClient(url)
    put = {"key": b"leader", "value": b""}
    reply = await client.call("kv/put", put, PutReply, doing="being elected", repeat=False)
    await client.close()
    return EtcdJournal(EtcdCluster.of(url), b"journal/", (b"leader", reply.header.revision))


async def serve_counted(loop: CountingLoop) -> None:
    """Serves until stdin ends, and counts; whoever connects to the port ``counter`` is sent the counts."""

    class Teller(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            cast(asyncio.Transport, transport).write(msgspec.json.encode(loop.counts))
            transport.close()

    async with ar.serve("127.0.0.1:0") as server:
        counter = await asyncio.SelectorEventLoop.create_server(loop, Teller, "127.0.0.1", 0)
        async with counter:
            announce(tcp=server.tcp_url, counter=counter.sockets[0].getsockname()[1])
            await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Serves as the arguments say."""
    raise_open_files()
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--sync-full", action="store_true")
    for name in ("--tls-cert", "--tls-key", "--token-file", "--data-dir", "--etcd"):
        parser.add_argument(name, default="")
    options = parser.parse_args()
    if options.count:
        from benchmarks.counting import CountingLoop

        loop = CountingLoop()
        with asyncio.Runner(loop_factory=lambda: loop) as counted:
            counted.run(serve_counted(loop))
        return
    with runner(options.loop) as plain:
        plain.run(serve(options))


if __name__ == "__main__":
    main()
