"""What one hostile client does to a server over HTTP, by name; see `benchmarks.attacks`."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from contextlib import suppress
from typing import Final
from urllib.parse import quote_from_bytes

from arendezvous.keyspace.messages import Append, DeleteKey, Get
from benchmarks.attacks import (
    MOST_KEYS,
    PREFIX,
    READ_TOKEN,
    RUN,
    RUN_TOKEN,
    SHARE,
    Attack,
    Target,
    connect,
    drain,
    fill_run,
    flood,
    join_and_leave,
    large_run,
    long_value,
    nothing,
    read_exactly,
    send,
    store,
    ten_thousand_runs,
    until_dropped,
)

KEYS: Final = f"/v1/kv{PREFIX.decode()}"
JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
LIMIT: Final = 16 * 1024 * 1024  # bytes of JSON; 1 MiB of a form
LARGEST: Final = 64 * 1024 * 1024  # bytes of a body
SEVERAL: Final = 50  # connections

_KEPT: Final[list[socket.socket]] = []


def request_of(head: str, body: bytes = b"", token: str = RUN_TOKEN, *lines: str, size: int = -1) -> bytes:
    """Puts a request together, whose body may have another `size` than what is sent of it."""
    length = f"Content-Length: {len(body) if size < 0 else size}"
    fields = ["Host: localhost", f"Authorization: Bearer {token}", length, *lines]
    return "\r\n".join([f"{head} HTTP/1.1", *fields, "", ""]).encode() + body


def open_request(target: Target, head: str, token: str = RUN_TOKEN) -> socket.socket:
    """Asks for something; the answer stays unread."""
    sock = connect(target.http)
    sock.sendall(request_of(head, token=token))
    return sock


def over_and_over(target: Target, *requests: bytes, connections: int = 1) -> None:
    """Sends the same requests on some connections, each as soon as the one before is answered; for ever."""

    def ask() -> None:
        while True:
            with suppress(OSError, ValueError), connect(target.http) as sock, sock.makefile("rb") as answers:
                for request in itertools.cycle(requests):
                    sock.sendall(request)
                    skip(answers)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def skip(answers: object) -> None:
    """Reads and forgets one answer."""
    length = 0
    while (line := answers.readline()) != b"\r\n":  # type: ignore[attr-defined]  # a file
        if not line:
            raise ConnectionError("the server closed the connection")
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    while length > 0:
        length -= len(answers.read(min(length, 1 << 20)))  # type: ignore[attr-defined]


# Bodies


def short_keys(target: Target) -> None:
    """Sends JSON of 16 MiB with short keys, over and over."""
    body = json.dumps({"keys": ["a"] * (LIMIT // 5)}, separators=(",", ":")).encode()
    over_and_over(target, request_of("POST /v1/kv?op=check", body, READ_TOKEN, f"Content-Type: {JSON}"))


def escapes(target: Target) -> None:
    """Sends a form of 1 MiB in which each byte is escaped, over and over."""
    body = b"key=" + b"%41" * (LIMIT // 48 - 2)
    over_and_over(target, request_of("POST /v1/kv?op=check", body, READ_TOKEN, f"Content-Type: {FORM}"))


def long_escaped_keys(target: Target) -> None:
    """Sends JSON of 15 MiB with long keys in which each byte is escaped, over and over."""
    body = json.dumps({"keys": ["%41" * 8000] * 650}).encode()
    over_and_over(target, request_of("POST /v1/kv?op=check", body, READ_TOKEN, f"Content-Type: {JSON}"))


def unfinished_bodies(target: Target) -> None:
    """PUTs of 64 MiB that lack their last byte, on ten connections with each of two tokens."""
    for token in (READ_TOKEN, RUN_TOKEN):
        request = request_of(f"PUT {KEYS}k", b"x" * (LARGEST - 1), token, size=LARGEST)
        for _ in range(10):
            with until_dropped():
                sock = connect(target.http)
                _KEPT.append(sock)
                sock.settimeout(10)
                sock.sendall(request)
    time.sleep(600)


def new_idempotency_keys(target: Target) -> None:
    """PUTs with ever new idempotency keys."""

    def push(sock: socket.socket) -> None:
        with until_dropped():
            for number in itertools.count():
                named = f"Idempotency-Key: {id(sock)}.{number}"
                sock.sendall(request_of(f"PUT {KEYS}k", b"", RUN_TOKEN, named))

    socks = [connect(target.http) for _ in range(20)]
    for sock in socks:
        threading.Thread(target=push, args=(sock,), daemon=True).start()
    drain(*socks)


# Keys and values


def list_keys(target: Target) -> None:
    """Lists 100,000 keys on 50 connections, without end."""
    over_and_over(target, request_of("GET /v1/kv?limit=10000", token=READ_TOKEN), connections=SEVERAL)


def most_keys(target: Target) -> None:
    """Sets, checks and reads 131,072 keys, over and over."""
    keys = [quote_from_bytes(PREFIX[1:]) + str(number) for number in range(MOST_KEYS)]
    items = json.dumps({"items": [[key, "dg=="] for key in keys]}).encode()
    named = json.dumps({"keys": keys}).encode()
    kind = f"Content-Type: {JSON}"
    requests = [
        request_of("POST /v1/kv?op=multi-set", items, RUN_TOKEN, kind),
        request_of("POST /v1/kv?op=check&wait=1", named, RUN_TOKEN, kind),
        request_of("POST /v1/kv?op=multi-get", named, RUN_TOKEN, kind),
    ]
    over_and_over(target, *requests)


def append_while_watched(target: Target) -> None:
    """One-byte appends to a value of 56 MiB, while somebody polls another key."""
    polls = open_request(target, "GET /v1/kv/other?wait=600", READ_TOKEN)
    sock = store(target)
    for _ in itertools.count():
        send(sock, Append(PREFIX + b"long", b"1"), Get(PREFIX + b"none"))
        read_exactly(sock, 8)
    polls.close()


def append_and_head(target: Target) -> None:
    """HEAD and an append by turns, on a value of 56 MiB."""
    sock, asks = store(target), connect(target.http)
    head = request_of(f"HEAD {KEYS}long")
    for _ in itertools.count():
        asks.sendall(head)
        asks.recv(65536)
        send(sock, Append(PREFIX + b"long", b"1"), Get(PREFIX + b"none"))
        read_exactly(sock, 8)


def read_long(target: Target) -> None:
    """Reads a value of 56 MiB on ten connections, without end."""
    over_and_over(target, request_of(f"GET {KEYS}long"), connections=10)


def read_many_long(target: Target) -> None:
    """Reads a value of 56 MiB in base64, and has a comparison with it fail, by turns."""
    kind = f"Content-Type: {JSON}"
    named = json.dumps({"keys": [quote_from_bytes(PREFIX[1:] + b"long")]}).encode()
    pair = json.dumps({"expected": "eA==", "desired": "eQ=="}).encode()
    requests = [
        request_of("POST /v1/kv?op=multi-get", named, RUN_TOKEN, kind),
        request_of(f"POST {KEYS}long?op=compare-set", pair, RUN_TOKEN, kind),
    ]
    over_and_over(target, *requests)


def read_nothing(target: Target) -> None:
    """Asks for a value of 56 MiB on 100 connections, which read nothing; the value is replaced in between."""
    deleting = store(target)
    for _ in range(100):
        _KEPT.append(open_request(target, f"GET {KEYS}long"))
        time.sleep(0.01)
        send(deleting, DeleteKey(PREFIX + b"long"), Get(PREFIX + b"none"))
        read_exactly(deleting, 8 + 8)
        with until_dropped():
            long_value(target)
    time.sleep(600)


def pop_and_read_nothing(target: Target) -> None:
    """Pushes values of 8 MiB to a queue, and pops them on connections that read nothing."""
    queue = f"/v1/queues{PREFIX.decode()}queue"
    push = request_of(f"POST {queue}?op=push", b"x" * SHARE)
    with connect(target.http) as sock, sock.makefile("rb") as answers, until_dropped():
        for _ in range(300):
            sock.sendall(push)
            skip(answers)
            _KEPT.append(open_request(target, f"POST {queue}?op=pop"))
    time.sleep(600)


def pipeline(target: Target) -> None:
    """Gets without end, on 200 connections, many in each write."""
    flood([connect(target.http) for _ in range(200)], request_of(f"GET {KEYS}none") * 500)


# Runs


def follow(target: Target) -> None:
    """500 event streams of one run that nobody reads, and joins."""
    _KEPT.extend(open_request(target, f"GET /v1/runs/{RUN}/events", READ_TOKEN) for _ in range(500))
    join_and_leave(target)


def follow_all(target: Target) -> None:
    """500 streams of all runs, half of them unread, and joins."""
    _KEPT.extend(open_request(target, "GET /v1/events", READ_TOKEN) for _ in range(500))
    for sock in _KEPT[::2]:
        threading.Thread(target=drain, args=(sock,), daemon=True).start()
    join_and_leave(target)


def list_runs(target: Target) -> None:
    """Lists 1,000 of 10,000 runs on 50 connections, without end."""
    over_and_over(target, request_of("GET /v1/runs?limit=1000", token=READ_TOKEN), connections=SEVERAL)


def scrape(target: Target) -> None:
    """Asks for the metrics of 10,000 runs on 50 connections, without end."""
    over_and_over(target, request_of("GET /metrics", token=READ_TOKEN), connections=SEVERAL)


def ask_status(target: Target) -> None:
    """Asks for the status of a run of 4,000 nodes on 50 connections, without end."""
    over_and_over(target, request_of(f"GET /v1/runs/{RUN}", token=READ_TOKEN), connections=SEVERAL)


HTTP_ATTACKS: Final[dict[str, Attack]] = {
    "append-watched": Attack("HTTP: appends to 56 MiB, a key is polled", long_value, append_while_watched),
    "append-head": Attack("HTTP: HEAD and append by turns, 56 MiB", long_value, append_and_head),
    "http-json": Attack("HTTP: JSON of 16 MiB with short keys", nothing, short_keys),
    "http-form": Attack("HTTP: a form of 1 MiB of escapes", nothing, escapes),
    "http-escapes": Attack("HTTP: JSON of 15 MiB, keys of escapes", nothing, long_escaped_keys),
    "http-bodies": Attack("HTTP: 20 bodies of 64 MiB that do not end", nothing, unfinished_bodies),
    "http-repeats": Attack("HTTP: PUTs with ever new idempotency keys", nothing, new_idempotency_keys),
    "http-list": Attack("HTTP: lists of 100,000 keys, 50 connections", fill_run, list_keys),
    "http-keys": Attack("HTTP: 131,072 keys in each request", nothing, most_keys),
    "http-get": Attack("HTTP: reads of 56 MiB, 10 connections", long_value, read_long),
    "http-base64": Attack("HTTP: 56 MiB in base64, and compared", long_value, read_many_long),
    "http-nothing": Attack("HTTP: 100 unread values of 56 MiB, each another", long_value, read_nothing),
    "http-pop": Attack("HTTP: 300 popped values of 8 MiB, unread", nothing, pop_and_read_nothing),
    "http-pipeline": Attack("HTTP: gets without end on 200 connections", nothing, pipeline),
    "http-streams": Attack("HTTP: 500 unread event streams, and joins", nothing, follow),
    "http-all": Attack("HTTP: 500 streams of all runs, and joins", ten_thousand_runs, follow_all),
    "http-runs": Attack("HTTP: lists of 10,000 runs, 50 connections", ten_thousand_runs, list_runs),
    "http-metrics": Attack("HTTP: metrics of 10,000 runs, 50 connections", ten_thousand_runs, scrape),
    "http-status": Attack("HTTP: status of a run of 4,000, 50 connections", large_run, ask_status),
}
"""By a short name, in the order in which they are played."""
