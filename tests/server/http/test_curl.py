"""The rendezvous with curl that the documents show, line by line; and one by a plain socket."""

from __future__ import annotations

import asyncio
import json
import re
import shutil

import pytest

from tests.kit import ROOT
from tests.kit.http_kit import http_port, served

PAGE = ROOT / "docs" / "reference" / "http.md"
CHAPTER = re.compile(r"^## A rendezvous with curl$(.*?)^## ", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script(url: str) -> str:
    """The commands of the chapter, for another server."""
    chapter = CHAPTER.search(PAGE.read_text())
    assert chapter is not None
    code = "".join(BLOCK.findall(chapter[1]))
    assert "URL=http://127.0.0.1:29401\n" in code
    return "set -eu\n" + code.replace("http://127.0.0.1:29401", url)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
async def test_two_nodes_meet_by_the_commands_of_the_page() -> None:
    async with asyncio.timeout(120), served() as (server, _):
        assert server.http_url is not None
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            script(server.http_url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        status = server.coordinator.status("by-hand")
    assert (process.returncode, errors.decode()) == (0, ""), output.decode()
    lines = output.decode()
    assert "a: gathering\nb: member, rank 1\na: member, rank 0 of 2\n" in lines
    assert '"explain":["run \'by-hand\': round 0 is complete with 2 nodes, 1 of them gone"' in lines
    assert [(gone.node, gone.reason, gone.cause.value) for gone in status.departed] == [
        ("b", "work done", "finished")
    ]
    assert status.closed is not None
    assert status.closed.reason == "that was all"


async def test_a_node_joins_by_bytes_on_a_plain_socket() -> None:
    async with asyncio.timeout(120), served() as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", http_port(server))
        body = b'{"node": {"name": "a"}, "settings": {"min_nodes": 1, "max_nodes": 1}}'
        head = f"POST /v1/runs/job/members HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    head_of_answer, _, joined = answer.partition(b"\r\n\r\n")
    assert head_of_answer.startswith(b"HTTP/1.1 201 Created\r\n")
    assert json.loads(joined)["view"]["rank"] == 0
