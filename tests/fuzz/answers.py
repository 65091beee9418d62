"""Targets that are clients of ours: whatever a server answers, they return, or raise an error of ours."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

from hypothesis import strategies as st

import arendezvous as ar
from arendezvous.backends.http.backend import HttpBackend
from arendezvous.backends.http.watching import watch_run
from arendezvous.backends.shared_state.compare_and_set import CompareAndSetBackend
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.errors import RendezvousError
from arendezvous.law.operations import KeepAlive
from arendezvous.stores.port import Store
from tests.fuzz.parsers import JOIN, SERVER, STATES
from tests.fuzz.runner import Check, Target
from tests.fuzz.strategies import broken, in_pieces, joined, json_bytes, one_of_these

PATIENCE: Final = 0.05  # seconds that the clients try; most answers make them try again

STORE: Final[dict[str, Callable[[Store], Awaitable[object]]]] = {
    "get": lambda store: store.get("k", timeout=PATIENCE),
    "set": lambda store: store.set("k", "v"),
    "compare_set": lambda store: store.compare_set("k", "", "v"),
    "add": lambda store: store.add("k", 1),
    "append": lambda store: store.append("k", "v"),
    "check": lambda store: store.check(["k", "l"]),
    "delete_key": lambda store: store.delete_key("k"),
    "num_keys": lambda store: store.num_keys(),
    "list_keys": lambda store: store.list_keys(),
    "multi_set": lambda store: store.multi_set(["k", "l"], ["v", "w"]),
    "multi_get": lambda store: store.multi_get(["k", "l"], timeout=PATIENCE),
    "wait": lambda store: store.wait(["k"], PATIENCE),
    "barrier": lambda store: store.barrier("k", 2, PATIENCE),
    "queue_push": lambda store: store.queue_push("q", "v"),
    "queue_pop": lambda store: store.queue_pop("q", timeout=PATIENCE),
    "queue_len": lambda store: store.queue_len("q"),
}


@asynccontextmanager
async def answering(answer: Callable[[], list[bytes]]) -> AsyncIterator[int]:
    """Runs a server that answers whatever it is asked by the same pieces; yields its port."""

    serving: dict[asyncio.StreamWriter, asyncio.Event] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over = serving[writer] = asyncio.Event()
        try:
            while await reader.read(65536):
                for piece in answer():
                    writer.write(piece)
                    await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.transport.abort()
            del serving[writer]
            over.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for writer, over in list(serving.items()):
            writer.transport.abort()
            await over.wait()


async def ours(work: Awaitable[object]) -> None:
    """Waits for what raises nothing but errors of ours; it may also go on waiting."""
    with suppress(RendezvousError, TimeoutError):
        async with asyncio.timeout(20 * PATIENCE):
            await work


# HTTP


def http_answer(status: int, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


_DESC: Final = {
    "name": "a",
    "addr": "h",
    "pid": 1,
    "local_id": 0,
    "addresses": ["h"],
    "label": "",
    "rank": None,
}
_VIEW: Final = {
    "node": "a", "revision": 1, "incarnation": 1, "round": 0, "phase": "member", "rank": 0, "world_size": 1,
    "digest": "d", "rank0": ["h"], "waiting": 0, "notices": [], "closed": None, "gone": None,
}  # fmt: skip
_RUN: Final = {"run_id": "job", "settings": None, "nodes": [], "explain": ["x"], "last_event": "1-x"}
HTTP_BODIES: Final = st.sampled_from((
    _VIEW, {"node": "a", "session": "s", "server": "s", "expiry": 1.0, "view": _VIEW}, _RUN,
    {"incarnation": 1, "round": 0, "members": [_DESC]},
    {"runs": [{"run_id": "job", "incarnation": 1, "round": 0, "complete": True, "closed": False,
               "participants": 1, "waiting": 0, "spares": 0}], "next": "job"},
    {"type": "urn:arendezvous:problem:session-over", "detail": "x", "view": _VIEW,
     "error": "StoreTimeoutError", "data": {"keys": ["k"], "timeout": 1}, "present": "AAAA"},
    {"type": "urn:arendezvous:problem:no-such-run", "detail": "x"},
    {"values": ["AAAA", None], "ready": True}, {"missing": []}, {"keys": ["k"], "next": "k", "total": 1},
    {"length": 3}, {"arrived": 1, "world_size": 2}, 5,
    {"run_id": "job", "number": 1, "type": "NodeJoined", "at": 1.0, "age": 0.0, "text": "x",
     "data": {"node": "a", "phase": "member"}},
))  # fmt: skip


@st.composite
def http_answers(draw: st.DrawFn) -> list[bytes]:
    body = draw(json_bytes(HTTP_BODIES))
    status = draw(
        st.sampled_from((200, 201, 202, 204, 400, 401, 403, 404, 409, 410, 412, 429, 500, 503, 302, 101))
    )
    kind = draw(st.sampled_from(("application/json", "application/problem+json", "text/event-stream", "")))
    if kind == "text/event-stream":
        name = draw(st.sampled_from(("view", "joined", "happened", "reset", "forgotten")))
        body = f"event: {name}\nid: 1\ndata: ".encode() + body + b"\n\n"
        status = 200
    headers = {
        "Content-Type": kind,
        "Arendezvous-Server": draw(st.sampled_from(("s", "", "\x1b]0;x", "\xff"))),
    }
    if draw(st.integers(0, 5)):
        headers["Content-Length"] = str(len(body))
    whole = http_answer(status, headers, body)
    if not draw(st.integers(0, 3)):
        whole = draw(broken(st.just(whole), most=2))
    return draw(in_pieces(st.just(whole)))


_RUNS: Final[dict[str, Callable[[Any], Awaitable[object]]]] = {
    "status": lambda backend: backend.status(),
    "members": lambda backend: backend.roster(1, 0),
    "runs": lambda backend: backend.runs(),
    "join": lambda backend: backend.propose(JOIN),
    "heartbeat": lambda backend: _join_and(backend, KeepAlive("a")),
}


async def _join_and(backend: Any, operation: Any) -> None:
    await backend.propose(JOIN)
    await backend.propose(operation)


async def _watch(url: str) -> None:
    async with watch_run(url, "job", timeout=PATIENCE) as watch:
        for _ in range(3):
            await anext(watch)


@asynccontextmanager
async def http_client() -> AsyncIterator[Check]:
    pieces: list[bytes] = []
    async with answering(lambda: pieces) as port:

        async def feed(value: tuple[str, list[bytes]]) -> None:
            nonlocal pieces
            what, pieces = value
            url = f"http://127.0.0.1:{port}"
            if what in STORE:
                store = ar.HttpStore(url, timeout=PATIENCE, read_timeout=PATIENCE)
                try:
                    await ours(STORE[what](store))
                finally:
                    await store.close()
            elif what == "watch":
                await ours(_watch(url))
            else:
                backend = HttpBackend("127.0.0.1", port, "job", read_timeout=PATIENCE, join_timeout=PATIENCE)
                await ours(_within(backend, _RUNS[what]))

        yield feed


async def _within(backend: Any, work: Callable[[Any], Awaitable[object]]) -> None:
    async with backend:
        await work(backend)


# TCP


@asynccontextmanager
async def tcp_client() -> AsyncIterator[Check]:
    pieces: list[bytes] = []
    async with answering(lambda: pieces) as port:

        async def feed(value: tuple[str, list[bytes]]) -> None:
            nonlocal pieces
            what, pieces = value
            if what in _RUNS:
                backend = SessionBackend(
                    "127.0.0.1", port, "job", read_timeout=PATIENCE, join_timeout=PATIENCE
                )
                await ours(_within(backend, _RUNS[what]))
                return
            store = ar.TcpStore("127.0.0.1", port, timeout=PATIENCE, read_timeout=PATIENCE)
            try:
                await ours(STORE[what](store))
            finally:
                await store.close()

        yield feed


C10D_REPLIES: Final = (b"\0" * 8, b"\x01", b"\0", b"\x01" + b"\0" * 7 + b"x", b"\0\0\0\3", b"\2" + b"\0" * 7)


# etcd


_B: Final = b64encode(b"x").decode()
_KV: Final = {"key": _B, "value": _B, "create_revision": "3", "mod_revision": "4", "lease": "5"}
_RANGE: Final = {"header": {"revision": "7"}, "kvs": [_KV], "count": "1"}
_NODE: Final = {"key": "/torch/elastic/store/eA==", "value": _B, "modifiedIndex": 4, "createdIndex": 3}
ETCD_BODIES: Final = st.sampled_from((
    _RANGE, {"header": {"revision": "7"}},
    {"header": {"revision": "7"}, "succeeded": True, "responses": [{"response_range": _RANGE}]},
    {"header": {"revision": "7"}, "succeeded": True, "responses": [{"response_put": {}}]},
    {"header": {"revision": "7"}, "succeeded": True, "responses": [{"response_range": _RANGE}] * 2},
    {"header": {"revision": "7"}, "responses": [
        {"response_range": {}},
        {"response_txn": {"succeeded": True, "responses": [{"response_range": _RANGE}]}}]},
    {"succeeded": True, "responses": [{"response_delete_range": {"deleted": "1"}}]},
    {"result": {"created": True, "events": [{"kv": _KV, "type": "PUT"}]}},
    {"error": "etcdserver: permission denied", "code": 7}, {"error": "x", "code": 5}, {"token": "a\r\nb"},
    {"ID": "7", "TTL": "5"}, {"result": {"ID": "7", "TTL": "5"}}, {"etcdserver": "3.5.1", "etcdcluster": "3"},
    {"action": "get", "node": _NODE},
    {"action": "get", "node": {"key": "/torch/elastic/store", "dir": True, "nodes": [_NODE]}},
    {"action": "set", "node": _NODE, "prevNode": _NODE}, {"errorCode": 100, "message": "no", "index": 4},
    {"errorCode": 110, "message": "no", "cause": "x", "index": 4},
    {"errorCode": 401, "message": "x", "index": 9},
))  # fmt: skip


@st.composite
def etcd_answers(draw: st.DrawFn) -> list[bytes]:
    body = draw(json_bytes(ETCD_BODIES))
    status = draw(st.sampled_from((200, 200, 200, 201, 400, 401, 404, 412, 500, 503)))
    index = draw(st.sampled_from(("7", "", "9" * 5000, "\xb2", "-1", "x")))
    headers = {"Content-Type": "application/json", "X-Etcd-Index": index}
    if draw(st.integers(0, 5)):
        headers["Content-Length"] = str(len(body) + 1)
        body += b"\n"
    whole = http_answer(status, headers, body)
    if not draw(st.integers(0, 3)):
        whole = draw(broken(st.just(whole), most=2))
    return draw(in_pieces(st.just(whole)))


@asynccontextmanager
async def etcd_client() -> AsyncIterator[Check]:
    pieces: list[bytes] = []
    async with answering(lambda: pieces) as port:

        async def feed(value: tuple[str, str, str, list[bytes]]) -> None:
            nonlocal pieces
            what, version, user, pieces = value
            cluster = ar.EtcdCluster.of(f"127.0.0.1:{port}", user=user, password="p")
            kind = ar.EtcdStore if version == "v3" else ar.EtcdV2Store
            store = kind(cluster, timeout=PATIENCE, read_timeout=PATIENCE)
            try:
                await ours(STORE[what](store))
            finally:
                await store.close()

        yield feed


@asynccontextmanager
async def shared_state() -> AsyncIterator[Check]:
    """What a TCPStore keeps for a run may be anything: a c10d backend joins it, or says why it does not."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(ar.MemoryStore())

        async def feed(state: bytes) -> None:
            await store.set("torch.rendezvous.job", state)
            async with asyncio.timeout(10):
                await ours(_within(CompareAndSetBackend.over(store, "job"), _RUNS["join"]))

        yield feed


def _asked(names: Any, answers: Any) -> st.SearchStrategy[Any]:
    return st.tuples(st.sampled_from(sorted(names)), answers)


frames: Final = in_pieces(broken(joined(SERVER).map(lambda data: SERVER[0] + data)))
TARGETS: Final[tuple[Target, ...]] = (
    Target("http-client", _asked([*STORE, *_RUNS, "watch"], http_answers()), http_client),
    Target("tcp-client", _asked(_RUNS, frames)
           | _asked(STORE, in_pieces(broken(joined(C10D_REPLIES), most=2))), tcp_client),
    Target("etcd-client", st.tuples(st.sampled_from(sorted(STORE)), st.sampled_from(("v3", "v2")),
           st.sampled_from(("", "ann")), etcd_answers()), etcd_client),
    Target("shared-state", broken(one_of_these(*STATES)), shared_state),
)  # fmt: skip
