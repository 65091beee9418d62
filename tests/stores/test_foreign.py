"""Stores whose server answers what no server of theirs would: errors of ours, and soon."""

from __future__ import annotations

import json
from itertools import chain, cycle
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.stores.port import Store
from tests.fuzz.answers import STORE, answering, http_answer

PATIENCE = 0.2
DEEP = b'{"a":' * 50_000
LONG = {"X-Etcd-Index": "9" * 5000}
RANGE = {"header": {"revision": "7"}, "kvs": [{"key": "eA==", "value": "eA=="}], "count": "1"}


def _http(port: int) -> Store:
    return ar.HttpStore(f"http://127.0.0.1:{port}", timeout=PATIENCE, read_timeout=PATIENCE)


def _etcd(port: int) -> Store:
    cluster = ar.EtcdCluster.of(f"127.0.0.1:{port}", user="ann", password="secret")
    return ar.EtcdStore(cluster, timeout=PATIENCE, read_timeout=PATIENCE)


def _etcd_v2(port: int) -> Store:
    return ar.EtcdV2Store(f"127.0.0.1:{port}", timeout=PATIENCE, read_timeout=PATIENCE)


ANSWERS: list[tuple[Any, str, int, dict[str, str], Any]] = [
    (_http, "compare_set", 412, {}, {"present": 5}),
    (_http, "multi_get", 200, {}, {"values": ["AAAA"], "ready": True}),
    (_http, "multi_get", 200, {}, {"values": [], "ready": True}),
    (_http, "list_keys", 200, {}, {"keys": [], "next": "k", "total": 1}),
    (_http, "list_keys", 200, {}, {"keys": ["%zz"], "next": None, "total": 1}),
    (_http, "add", 200, {}, b'"\xff"'),
    (_http, "num_keys", 200, {}, DEEP),
    (_http, "queue_len", 404, {}, {"detail": ["x"]}),
    (_etcd, "get", 200, {}, {"token": "a\r\nb"}),
    (_etcd, "get", 200, {}, b'{"token":"\xff"}'),
    (_etcd, "add", 200, {}, {"token": "t", **RANGE}),
    (_etcd, "delete_key", 200, {}, {"token": "t", "succeeded": True}),
    (_etcd, "check", 200, {}, {"token": "t", "succeeded": True, "responses": [{"response_put": {}}]}),
    (_etcd, "set", 200, {}, {"token": "t", "succeeded": False}),
    (_etcd, "set", 403, {}, DEEP),
    (_etcd_v2, "get", 200, LONG, {"action": "get", "node": {"value": "!"}}),
    (_etcd_v2, "get", 200, {}, b'{"action":"get","node":{"value":"\xff"}}'),
    (_etcd_v2, "list_keys", 200, {}, b'{"node":{"nodes":[' * 50_000),
    (_etcd_v2, "num_keys", 404, {}, DEEP),
]


@pytest.mark.parametrize(("make", "operation", "status", "headers", "body"), ANSWERS)
async def test_an_answer_of_another_shape_is_an_error_of_ours(
    make: Any, operation: str, status: int, headers: dict[str, str], body: Any
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Arendezvous-Server": "s", "Content-Length": str(len(content)), **headers}
    answer = [http_answer(status, fields, content)]
    async with answering(lambda: answer) as port:
        store: Store = make(port)
        try:
            with anyio.fail_after(60), pytest.raises(ar.RendezvousError) as caught:
                await STORE[operation](store)
        finally:
            await store.close()

    assert "secret" not in str(caught.value)


async def test_an_index_of_etcd_that_is_no_number_counts_as_none() -> None:
    body = b'{"action":"get","node":{"key":"/k","value":"eA==","modifiedIndex":4}}'
    for index in ("9" * 5000, "\xb2", "x", ""):
        answer = [http_answer(200, {"Content-Length": str(len(body)), "X-Etcd-Index": index}, body)]
        async with answering(lambda answer=answer: answer) as port:  # type: ignore[misc]  # its default is known
            store = _etcd_v2(port)
            try:
                assert await store.get("k") == b"x"
            finally:
                await store.close()


_HELD = {"header": {"revision": "7"}, "kvs": [{"key": "eA==", "value": "MQ==", "mod_revision": "5"}]}
_NO_MARK: dict[str, Any] = {"response_range": {}}
_BEHIND = [_NO_MARK, {"response_txn": {"succeeded": True, "responses": [{"response_range": _HELD}]}}]
_READ = {"token": "t", "succeeded": True, "responses": [{"response_range": _HELD}]}
_OUTRUN_V2 = {"errorCode": 101, "message": "Compare failed", "index": 7}
_OUTRUN = {"responses": _BEHIND, **_HELD}
OUTRUN: list[tuple[Any, int, list[Any], list[Any]]] = [
    # a login, a look, a change that is made at once again; from then on a look, a change
    (_etcd, 200, [_READ, _READ, _OUTRUN, _OUTRUN], [_READ, _OUTRUN]),
    (_etcd_v2, 412, [], [_OUTRUN_V2]),
]


@pytest.mark.parametrize("operation", ["add", "append", "barrier"])
@pytest.mark.parametrize(("make", "status", "first", "then"), OUTRUN)
async def test_etcd_that_says_each_time_that_another_was_quicker_is_not_asked_for_ever(
    make: Any, status: int, first: list[Any], then: list[Any], operation: str
) -> None:
    def answer() -> list[bytes]:
        content = json.dumps(next(bodies)).encode()
        return [http_answer(status, {"Content-Length": str(len(content))}, content)]

    bodies = chain(first, cycle(then))
    async with answering(answer) as port:
        store: Store = make(port)
        try:
            with anyio.fail_after(60), pytest.raises(ar.StoreTimeoutError, match="another had been quicker"):
                await STORE[operation](store)
        finally:
            await store.close()


async def test_a_queue_whose_values_others_always_take_first_is_given_up_after_a_while() -> None:
    refused = [_NO_MARK, {"response_txn": {"succeeded": True}}]
    body = {"token": "t", "responses": refused, "count": "2", **_HELD}
    content = json.dumps(body).encode()
    answer = [http_answer(200, {"Content-Length": str(len(content))}, content)]
    async with answering(lambda: answer) as port:
        store = _etcd(port)
        try:
            with anyio.fail_after(60), pytest.raises(ar.StoreTimeoutError, match="another had been quicker"):
                await store.queue_pop("q", block=False)
        finally:
            await store.close()
