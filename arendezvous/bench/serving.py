"""The process of our server."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any, cast

import msgspec

import arendezvous as ar
from arendezvous.bench.child import announce, raise_open_files
from arendezvous.bench.counting import CountingLoop, Counts
from arendezvous.bench.loops import runner
from arendezvous.cli.collector import tune_collector
from arendezvous.server.access.authority import Authority
from arendezvous.server.tls import ServerTls


async def serve(options: argparse.Namespace) -> None:
    """Serves until stdin ends."""
    settings: dict[str, Any] = {"http": "127.0.0.1:0" if options.http else None}
    if options.tls_cert:
        settings["tls"] = ServerTls(options.tls_cert, options.tls_key)
    if options.token_file:
        settings["authority"] = Authority.from_file(options.token_file)
    loop = asyncio.get_running_loop()
    async with ar.serve("127.0.0.1:0", **settings) as server:
        tune_collector()
        announce(tcp=server.tcp_url, http=server.http_url)
        await loop.run_in_executor(None, sys.stdin.read)


async def serve_counted() -> None:
    """Serves until stdin ends, and counts; whoever connects to the port ``counter`` is sent the counts."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)  # noqa: S101 - see main
    async with ar.serve("127.0.0.1:0") as server:
        counter = await asyncio.SelectorEventLoop.create_server(
            loop, lambda: _Teller(loop.counts), "127.0.0.1", 0
        )
        async with counter:
            announce(tcp=server.tcp_url, counter=counter.sockets[0].getsockname()[1])
            await loop.run_in_executor(None, sys.stdin.read)


class _Teller(asyncio.Protocol):
    """Sends the counts, and closes the connection."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(msgspec.json.encode(self._counts))
        transport.close()


def main() -> None:
    """Serves as the arguments say."""
    raise_open_files()
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--count", action="store_true")
    for name in ("--tls-cert", "--tls-key", "--token-file"):
        parser.add_argument(name, default="")
    options = parser.parse_args()
    if options.count:
        with asyncio.Runner(loop_factory=CountingLoop) as counted:
            counted.run(serve_counted())
        return
    with runner(options.loop) as plain:
        plain.run(serve(options))


if __name__ == "__main__":
    main()
