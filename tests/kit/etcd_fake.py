"""An etcd in memory, as far as the backend needs one: transactions, leases and watches, in the loop's time.

Processes reach it through clients of their own. At any of its requests a client can be made to die, to be cut
off for a while, or to have that request stay on the way for long.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from arendezvous.errors import RendezvousConnectionError, StoreError
from arendezvous.etcd.http import EtcdMember
from arendezvous.etcd.wire import (
    DeleteReply,
    Header,
    KeyValue,
    LeaseLine,
    LeaseReply,
    LeaseTime,
    OpReply,
    PutReply,
    RangeReply,
    TxnReply,
    WatchEvent,
    WatchLine,
    WatchReply,
    encode,
)
from arendezvous.net.reach import Reach

T = TypeVar("T")

AWAY = 12.0
PATIENCE = 5.0


@dataclass
class FakeLease:
    ttl: float
    timer: asyncio.TimerHandle
    keys: set[bytes] = field(default_factory=set)


class FakeEtcd:
    """The cluster: keys, their history, leases, and who watches.

    Args:
        seed: Of the times that everything takes.
        plans: Of each client in turn: at which of its requests it dies, and how; see `FakeClient`.
    """

    def __init__(self, seed: int, plans: list[tuple[int, str]]) -> None:
        self.random = random.Random(seed)
        self.revision = 1
        self.keys: dict[bytes, KeyValue] = {}
        self.leases: dict[int, FakeLease] = {}
        self.history: list[tuple[int, WatchEvent]] = []
        self.streams: list[FakeStream] = []
        self.clients: list[FakeClient] = []
        self.plans = plans

    def client(self, urls: object, **_: object) -> FakeClient:
        """Stands in for the constructor of `EtcdClient`; the next of `plans` says when this one dies."""
        client = FakeClient(self, *(self.plans.pop(0) if self.plans else (-1, "")))
        self.clients.append(client)
        return client

    def do(self, method: str, request: dict[str, Any]) -> Any:
        if method == "kv/range":
            return self._range(request)
        if method == "kv/txn":
            return self._txn(request)
        number = int(request.get("ID", 0))
        if method == "lease/grant":
            number, ttl = len(self.leases) + 1000 + self.revision, float(request["TTL"])
            self.leases[number] = FakeLease(ttl, self._expiry(number, ttl))
            return LeaseReply(number, int(ttl))
        lease = self.leases.get(number)
        if method == "lease/timetolive":
            left = 0 if lease is None else int(lease.timer.when() - asyncio.get_running_loop().time())
            return LeaseTime(left, 0 if lease is None else int(lease.ttl))
        if method == "lease/revoke":
            if lease is None:
                raise StoreError("etcd refuses it: requested lease not found")
            self._end(number)
            return LeaseReply(number)
        if lease is None:
            return LeaseLine(LeaseReply(number, 0))
        lease.timer.cancel()
        lease.timer = self._expiry(number, lease.ttl)
        return LeaseLine(LeaseReply(number, int(lease.ttl)))

    def since(self, ranges: list[tuple[bytes, bytes]], revision: int) -> list[WatchEvent]:
        return [event for at, event in self.history if at >= revision and _within(event.kv.key, ranges)]

    def _expiry(self, number: int, ttl: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(ttl, self._end, number)

    def _end(self, number: int) -> None:
        lease = self.leases.pop(number)
        lease.timer.cancel()
        self._change([(key, None) for key in sorted(lease.keys)])

    def _change(self, changes: list[tuple[bytes, KeyValue | None]]) -> None:
        """Carries out puts and deletions in one revision."""
        if not changes:
            return
        self.revision += 1
        names = [key for key, _ in changes]
        assert len(set(names)) == len(names), f"etcd takes each key once in a transaction: {names}"
        for key, item in changes:
            old = self.keys.pop(key, None)
            if old is not None and old.lease in self.leases:
                self.leases[old.lease].keys.discard(key)
            if item is None:
                self.history.append(
                    (self.revision, WatchEvent(KeyValue(key, mod_revision=self.revision), "DELETE"))
                )
                continue
            created = self.revision if old is None else old.create_revision
            stored = KeyValue(key, item.value, created, self.revision, item.lease)
            self.keys[key] = stored
            if item.lease:
                self.leases[item.lease].keys.add(key)
            self.history.append((self.revision, WatchEvent(stored)))
        for stream in self.streams:
            stream.news.set()

    def _range(self, request: dict[str, Any]) -> RangeReply:
        span = [(request["key"], request.get("range_end", b""))]
        found = [self.keys[key] for key in sorted(self.keys) if _within(key, span)]
        return RangeReply(Header(self.revision), found, len(found))

    def _txn(self, request: dict[str, Any]) -> TxnReply:
        succeeded = all(self._holds(each) for each in request["compare"])
        changes: list[tuple[bytes, KeyValue | None]] = []
        replies = list(self._ops(request["success" if succeeded else "failure"], changes))
        for _, item in changes:
            if item is not None and item.lease and item.lease not in self.leases:
                raise StoreError("etcd refuses it: etcdserver: requested lease not found")
        self._change(changes)
        return TxnReply(Header(self.revision), succeeded, replies)

    def _ops(
        self, ops: list[dict[str, Any]], changes: list[tuple[bytes, KeyValue | None]]
    ) -> Iterator[OpReply]:
        for op in ops:
            [(kind, request)] = op.items()
            if kind == "request_range":
                yield OpReply(response_range=self._range(request))
            elif kind == "request_put":
                lease = int(request.get("lease", 0))
                changes.append((request["key"], KeyValue(value=request["value"], lease=lease)))
                yield OpReply(response_put=PutReply())
            elif kind == "request_txn":
                yield from self._ops(request["success"], changes)
            else:
                span = [(request["key"], request.get("range_end", b""))]
                changes += [(key, None) for key in sorted(self.keys) if _within(key, span)]
                yield OpReply(response_delete_range=DeleteReply())

    def _holds(self, compare: dict[str, Any]) -> bool:
        item = self.keys.get(compare["key"], KeyValue())
        name = {"MOD": "mod_revision", "CREATE": "create_revision"}[compare["target"]]
        return bool(getattr(item, name) == int(compare[name]))


class FakeClient:
    """One process's client.

    Args:
        etcd: The cluster.
        moment: The number of the request at which something happens to it; -1: nothing ever does.
        how: ``dies before`` or ``dies after`` that request is carried out; ``is cut off`` when it has been,
            for `AWAY` seconds; ``is late``: the request is given up, and carried out a little later; or
            ``is kept``: it is given up, and carried out when the test calls `deliver`.
    """

    name = "fake"
    endpoint = None
    current = EtcdMember("http://127.0.0.1:2379")

    def __init__(self, etcd: FakeEtcd, moment: int, how: str) -> None:
        self.etcd = etcd
        self.requests = 0
        self.connected = asyncio.Event()
        self.connected.set()
        self.refuse: Exception | None = None
        self.reach = Reach()
        self.kept: tuple[str, dict[str, Any]] | None = None
        self._moment = moment
        self._how = how

    async def close(self) -> None:
        self.connected.clear()

    def avoid(self, endpoint: object) -> None:
        pass

    async def call(
        self,
        method: str,
        request: dict[str, Any],
        kind: type[T],
        *,
        doing: str,
        repeat: bool,
        seconds: float | None = -1.0,
    ) -> T:
        await self._pass()
        if self.refuse is not None:
            raise self.refuse
        happens = self.requests == self._moment
        self.requests += 1
        if happens and self._how == "is late":
            delay = 1.0 + self.etcd.random.uniform(0.1, 0.13)  # while what follows is being done
            asyncio.get_running_loop().call_later(delay, self._do_late, method, request)
            await asyncio.sleep(1.0)
            raise RendezvousConnectionError(f"{doing}: nobody answered")
        if happens and self._how == "is kept":
            self.kept = method, request
            await asyncio.sleep(PATIENCE)
            raise RendezvousConnectionError(f"{doing}: nobody answered")
        if happens and self._how == "dies before":
            self.connected.clear()
            await self._pass()
        answer = self.etcd.do(method, request)
        if happens:
            self.connected.clear()
            if self._how == "is cut off":
                asyncio.get_running_loop().call_later(AWAY, self.connected.set)
        await self._pass()
        assert isinstance(answer, kind), f"{method} for {doing} is to be answered by {kind}"
        return answer

    def deliver(self) -> None:
        """Carries out what was kept."""
        if self.kept is not None:
            self._do_late(*self.kept)

    def _do_late(self, method: str, request: dict[str, Any]) -> None:
        with suppress(StoreError):
            self.etcd.do(method, request)

    async def stream(self, method: str, body: bytes, *, doing: str) -> FakeStream:
        await self._pass()
        ranges, revision, text = [], 0, body.decode()
        while text:
            message, end = json.JSONDecoder().raw_decode(text)
            text, wanted = text[end:], message["create_request"]
            names = (wanted["key"], wanted.get("range_end", ""))
            ranges.append((base64.b64decode(names[0]), base64.b64decode(names[1])))
            revision = int(wanted["start_revision"])
        return FakeStream(self, ranges, revision)

    async def _pass(self) -> None:
        """Some time passes on the way; for ever if the process is dead."""
        await asyncio.sleep(self.etcd.random.uniform(0.0, 0.002))
        await self.connected.wait()


class FakeStream:
    """The stream of a watch."""

    endpoint = None
    ready = False

    def __init__(self, client: FakeClient, ranges: list[tuple[bytes, bytes]], revision: int) -> None:
        self.news = asyncio.Event()
        self._client = client
        self._ranges = ranges
        self._revision = revision
        client.etcd.streams.append(self)

    async def line(self) -> bytes:
        while True:
            await self._client.connected.wait()
            events = self._client.etcd.since(self._ranges, self._revision)
            if events:
                self._revision = self._client.etcd.revision + 1
                return encode(WatchLine(WatchReply(events=events)))
            self.news.clear()
            await self.news.wait()
            await asyncio.sleep(self._client.etcd.random.uniform(0.0, 0.002))

    def close(self) -> None:
        if self in self._client.etcd.streams:
            self._client.etcd.streams.remove(self)


def _within(key: bytes, ranges: list[tuple[bytes, bytes]]) -> bool:
    return any(key == start if not end else start <= key < end for start, end in ranges)
