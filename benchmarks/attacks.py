"""What one hostile client does to a server over TCP, by name: prepared, then done by a process of its own.

None of them breaks a protocol; they ask for what is allowed, as much of it as they can. The sockets block, so
that the client costs as little as can be.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from arendezvous.keyspace.messages import (
    Add,
    Append,
    Check,
    DeleteKey,
    Get,
    ListKeys,
    MultiGet,
    MultiSet,
    NumKeys,
    QueuePop,
    QueuePush,
    Set,
    StoreRequest,
    Validate,
    Wait,
)
from arendezvous.law.operations import Close, Join, Leave, Operation, Resume
from arendezvous.law.state import NodeDesc, RunSettings
from arendezvous.wire.c10d.protocol import MAGIC
from arendezvous.wire.c10d.requests import encode_request
from arendezvous.wire.native.login import AnswerParser, encode_login
from arendezvous.wire.native.messages import (
    PREFACE,
    VERSION,
    GetRuns,
    GetStatus,
    Hello,
    Propose,
    WatchRun,
    encode,
)

HOST: Final = "127.0.0.1"
RUN: Final = "hostile"  # the run of the hostile client's token
FULL_TOKEN: Final = "full-" + "0" * 32
RUN_TOKEN: Final = "run-" + "0" * 32
READ_TOKEN: Final = "read-" + "0" * 32
TOKENS: Final = f"{FULL_TOKEN}\n{RUN_TOKEN} run={RUN}\n{READ_TOKEN} read-only\n"
MANY: Final = 100_000
MOST_KEYS: Final = 128 * 1024  # in one request
LONG: Final = 56 * 1024 * 1024  # bytes of a value; 64 MiB is the most
SHARE: Final = 8 * 1024 * 1024  # of a value, in one request
PREFIX: Final = f"/arendezvous/{RUN}/1.0.0123456789abcdef/".encode()
JOIN: Final = RunSettings(1, 1, 0.0)


class Target(NamedTuple):
    """The server: its ports."""

    tcp: int
    http: int


class Attack(NamedTuple):
    """One thing that a hostile client does.

    Attributes:
        what: In words.
        prepare: Fills the server beforehand; it is not measured.
        attack: What is done while others are measured; it may return, or go on until it is killed.
    """

    what: str
    prepare: Callable[[Target], None]
    attack: Callable[[Target], None]


def nothing(_: Target) -> None:
    """Prepares nothing."""


# Connections


def connect(port: int) -> socket.socket:
    """Connects to a port of the server."""
    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def store(target: Target, token: str = RUN_TOKEN) -> socket.socket:
    """Logs in to the store and greets it."""
    sock = connect(target.tcp)
    sock.sendall(encode_login(token))
    parser = AnswerParser()
    while parser.feed(sock.recv(1)) is None:
        pass
    sock.sendall(encode_request(Validate(MAGIC)))
    return sock


def session(target: Target, run_id: str = RUN, token: str = RUN_TOKEN) -> socket.socket:
    """Begins a native session; its welcome stays unread."""
    sock = connect(target.tcp)
    sock.sendall(PREFACE + encode(Hello(VERSION, run_id, b"h" * 16, token)))
    return sock


def send(sock: socket.socket, *requests: StoreRequest) -> None:
    """Sends requests to the store."""
    sock.sendall(b"".join(map(encode_request, requests)))


def propose(sock: socket.socket, *operations: Operation) -> None:
    """Proposes operations."""
    sock.sendall(b"".join(encode(Propose(n, operation)) for n, operation in enumerate(operations, 1)))


def drain(*socks: socket.socket) -> None:
    """Reads and forgets all that comes, until the server closes the last of them."""

    def read(sock: socket.socket) -> None:
        with suppress(OSError):
            while sock.recv(1 << 20):
                pass

    threads = [threading.Thread(target=read, args=(sock,), daemon=True) for sock in socks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def drain_for_a_while(sock: socket.socket) -> None:
    """Reads and forgets what comes until nothing has come for a moment."""
    sock.settimeout(0.1)
    with suppress(TimeoutError):
        while sock.recv(1 << 20):
            pass


def read_exactly(sock: socket.socket, size: int) -> None:
    """Reads and forgets so many bytes."""
    while size > 0:
        size -= len(sock.recv(min(size, 1 << 20))) or _gone()


def _gone() -> int:
    raise ConnectionError("the server closed the connection")


@contextmanager
def until_dropped() -> Iterator[None]:
    """Ends the block where the server drops the client, which is no failure here."""
    with suppress(OSError):
        yield


# What is there beforehand


def fill(target: Target, prefix: bytes = b"/filler/") -> None:
    """Stores 100,000 short keys."""
    sock = store(target, FULL_TOKEN)
    for start in range(0, MANY, 4000):
        send(sock, MultiSet([(b"%s%d" % (prefix, n), b"v") for n in range(start, start + 4000)]))
    send(sock, NumKeys())
    read_exactly(sock, 8)


def fill_run(target: Target) -> None:
    """Stores 100,000 short keys of the hostile client's run."""
    fill(target, PREFIX)


def long_value(target: Target) -> None:
    """Stores a value of 56 MiB, all digits, in pieces."""
    sock = store(target)
    send(sock, DeleteKey(PREFIX + b"long"))
    for _ in range(LONG // SHARE):
        send(sock, Append(PREFIX + b"long", b"1" * SHARE))
    send(sock, Get(PREFIX + b"none"))
    read_exactly(sock, 8 + 8)


def ten_thousand_runs(target: Target) -> None:
    """Makes 10,000 runs."""
    for number in range(10_000):
        with session(target, f"run{number}", FULL_TOKEN) as sock:
            propose(sock, Close("bench", "x"))
            sock.recv(1)


def large_run(target: Target) -> None:
    """Has 4,000 nodes join one run, by one session that stays open as long as this process lives."""
    settings = RunSettings(1, 4000, 3600.0, 600.0)
    sock = session(target)
    propose(sock, *(Join(NodeDesc(f"n{n}"), settings) for n in range(4000)))
    time.sleep(1)
    keep_open(sock)


def keep_open(sock: socket.socket) -> None:
    """Keeps a connection open as long as this process lives."""
    _KEPT.append(sock)


_KEPT: Final[list[socket.socket]] = []


# The store


def count_keys(target: Target) -> None:
    """1,000 NUMKEYS in one write."""
    sock = store(target)
    send(sock, *[NumKeys()] * 1000)
    read_exactly(sock, 8 * 1000)


def list_keys(target: Target) -> None:
    """20,000 LIST_KEYS in one write, each answered with 100,000 keys."""
    sock = store(target)
    send(sock, *[ListKeys()] * 20_000)
    drain(sock)


def add_to_long(target: Target) -> None:
    """`add` on a value of 56 MiB, which drops the connection, again and again."""
    for _ in range(20):
        sock = store(target)
        send(sock, Add(PREFIX + b"long", 1))
        drain(sock)


def append_and_get(target: Target) -> None:
    """GET and append by turns, on a value of 56 MiB."""
    sock, reader = store(target), store(target)
    for number in itertools.count(LONG):
        send(reader, Get(PREFIX + b"long"))
        read_exactly(reader, 8 + number)
        send(sock, Append(PREFIX + b"long", b"1"), Get(PREFIX + b"none"))
        read_exactly(sock, 8)


def _keys() -> list[bytes]:
    return [b"%s%d" % (PREFIX, number) for number in range(MOST_KEYS)]


def most_keys_at_once(target: Target) -> None:
    """Requests of 131,072 keys each: set, checked, read, over and over."""
    keys, sock = _keys(), store(target)
    sets = encode_request(MultiSet([(key, b"v") for key in keys]))
    asks = encode_request(Check(keys)) + encode_request(MultiGet(keys))
    for _ in itertools.count():
        sock.sendall(sets + asks)
        read_exactly(sock, 1 + 9 * MOST_KEYS)


def wait_and_go(target: Target) -> None:
    """Waits for 131,072 keys that nobody sets, and goes away, over and over."""
    wait = encode_request(Wait(_keys()))
    for _ in itertools.count():
        with until_dropped(), store(target) as sock:
            sock.sendall(wait)
            send(sock, NumKeys())
            read_exactly(sock, 8)


def wait_for_one(target: Target) -> None:
    """200,000 waits for one key, which is then set and deleted, over and over."""
    key = PREFIX + b"late"
    waits = encode_request(Wait([key])) * 200_000
    while True:
        sock, other = store(target), store(target)
        threading.Thread(target=drain, args=(sock,), daemon=True).start()
        with until_dropped():
            while True:
                sock.sendall(waits)
                send(other, Set(key, b""), DeleteKey(key), Get(key))
                read_exactly(other, 8 + 8)


def flood(socks: list[socket.socket], requests: bytes) -> None:
    """Sends the same without end on all connections, and reads what comes."""

    def push(sock: socket.socket) -> None:
        with until_dropped():
            while True:
                sock.sendall(requests)

    for sock in socks:
        threading.Thread(target=push, args=(sock,), daemon=True).start()
    drain(*socks)


def pipeline(target: Target) -> None:
    """Gets without end, on 200 connections."""
    flood([store(target) for _ in range(200)], encode_request(Get(PREFIX + b"none")) * 5000)


def read_nothing(target: Target) -> None:
    """Asks for a value of 56 MiB on 100 connections, which read nothing; the value is replaced in between."""
    deleting, socks = store(target), []
    for _ in range(100):
        socks.append(store(target))
        send(socks[-1], Get(PREFIX + b"long"))
        time.sleep(0.01)
        send(deleting, DeleteKey(PREFIX + b"long"), Get(PREFIX + b"none"))
        read_exactly(deleting, 8 + 8)
        with until_dropped():
            long_value(target)
    time.sleep(600)


def pop_and_read_nothing(target: Target) -> None:
    """Pushes values of 8 MiB to a queue, and pops them on connections that read nothing."""
    pushing = store(target)
    for _ in range(300):
        with until_dropped():
            send(pushing, QueuePush(PREFIX + b"queue", b"x" * SHARE))
            send(store(target), QueuePop(PREFIX + b"queue"))
            _KEPT.append(store(target))
    time.sleep(600)


def fill_up(target: Target) -> None:
    """Stores values of 1 MiB under ever new keys."""
    for number in itertools.count():
        with until_dropped():
            sock = store(target)
            for part in itertools.count():
                send(sock, Set(b"%s%d.%d" % (PREFIX, number, part), b"x" * (1 << 20)))


def fill_up_with_keys(target: Target) -> None:
    """Stores empty values under ever new keys."""
    for number in itertools.count():
        with until_dropped():
            sock = store(target)
            for part in itertools.count():
                items = [(b"%s%d.%d.%d" % (PREFIX, number, part, n), b"") for n in range(4000)]
                send(sock, MultiSet(items))


def unfinished(target: Target) -> None:
    """1,000 requests of 8 MiB each, of which the last byte does not come."""
    request = encode_request(Set(PREFIX + b"k", b"x" * SHARE))[:-1]
    socks = [store(target) for _ in range(1000)]

    def push(sock: socket.socket) -> None:
        with until_dropped():
            sock.sendall(request)
            time.sleep(600)

    threads = [threading.Thread(target=push, args=(sock,), daemon=True) for sock in socks]
    for thread in threads:
        thread.start()
    time.sleep(600)


# Runs


def claim_a_world(target: Target) -> None:
    """`Resume` that claims a world of 100,000 or 16,384, then `Leave`, over and over in new runs."""
    for number in itertools.count():
        world = MANY if number % 2 else 16_384
        settings = RunSettings(1, world, 0.0, 0.001, 1)
        with session(target, f"world{number}", FULL_TOKEN) as sock, until_dropped():
            desc = NodeDesc("a")
            propose(sock, Resume(desc, settings, 1, 0, 0, world, "d"), Leave("a"))
            time.sleep(0.01)
            sock.recv(1 << 16)


def claim_later_worlds(target: Target) -> None:
    """`Resume` of ever later rounds of one run, each of which claims a world of 16,000, or of 1,000,000."""
    for number in itertools.count():
        with session(target, f"later{number}", FULL_TOKEN) as sock, until_dropped():
            settings = RunSettings(1, 1_000_000, 0.0)
            for round_ in range(100):
                world = (2, 16_000, 1_000_000)[min(round_, 1 + round_ % 2)]
                propose(sock, Resume(NodeDesc(f"a{round_}"), settings, 1, round_, 0, world, "d"))
            drain_for_a_while(sock)


def die_together(target: Target) -> None:
    """1,000 nodes die together."""
    settings = RunSettings(1000, 1000, 0.0, disconnect_grace=0.1)
    sock = session(target)
    propose(sock, *(Join(NodeDesc(f"n{n}"), settings) for n in range(1000)))
    time.sleep(1)
    sock.close()


def join_and_leave(target: Target) -> None:
    """Joins and leaves without end."""
    sock = session(target)
    operations: list[Operation] = []
    for number in range(250):
        operations += (Join(NodeDesc(f"n{number}"), JOIN), Leave(f"n{number}"))
    reader = threading.Thread(target=drain, args=(sock,), daemon=True)
    reader.start()
    with until_dropped():
        while True:
            propose(sock, *operations)


def list_runs(target: Target) -> None:
    """16,000 GetRuns over 10,000 runs."""
    sock = session(target, "", READ_TOKEN)
    sock.sendall(b"".join(encode(GetRuns(number)) for number in range(1, 16_001)))
    drain(sock)


def ask_status(target: Target) -> None:
    """Asks for the status of a run of 4,000 nodes without end."""
    sock = session(target, RUN, READ_TOKEN)
    asks = b"".join(encode(GetStatus(number)) for number in range(1, 1001))

    def push() -> None:
        with until_dropped():
            while True:
                sock.sendall(asks)

    threading.Thread(target=push, daemon=True).start()
    drain(sock)


def watch(target: Target) -> None:
    """500 sessions watch a run in which nodes join and leave; half of them read."""
    socks = [session(target, RUN, READ_TOKEN) for _ in range(500)]
    for sock in socks:
        sock.sendall(encode(WatchRun(1)))
    for sock in socks[::2]:
        threading.Thread(target=drain, args=(sock,), daemon=True).start()
    join_and_leave(target)


# Without a token


def incomplete(target: Target) -> None:
    """10,000 first messages of 64 KiB that do not end."""
    frame = PREFACE + (64_000).to_bytes(4, "big") + b"x" * 63_000
    socks = []
    for _ in range(10_000):
        with until_dropped():
            socks.append(connect(target.tcp))
            socks[-1].setblocking(False)
            socks[-1].send(frame)
    time.sleep(600)


def wrong_tokens(target: Target) -> None:
    """Logs in with wrong tokens without end, each of them another thing that the log may tell of."""
    for number in itertools.count():
        with until_dropped():
            sock = connect(target.tcp)
            sock.sendall((encode_login("wrong" * 8), PREFACE + b"\x00\x00\x00\x01\xc1", b"GET /")[number % 3])
            sock.recv(1)
            sock.close()


ATTACKS: Final[dict[str, Attack]] = {
    "num-keys": Attack("1,000 NUMKEYS, 100,000 keys stored", fill, count_keys),
    "list-keys": Attack("20,000 LIST_KEYS of 100,000 keys", fill_run, list_keys),
    "list-none": Attack("20,000 LIST_KEYS, 100,000 keys of others", fill, list_keys),
    "claimed-world": Attack("Resume with a world of 16,384 or 100,000, then Leave", fill, claim_a_world),
    "later-worlds": Attack("Resume of ever later worlds, up to 1,000,000", nothing, claim_later_worlds),
    "die-together": Attack("1,000 nodes die, 100,000 keys stored", fill, die_together),
    "join-leave": Attack("joins and leaves, 100,000 keys stored", fill, join_and_leave),
    "tidy": Attack("joins and leaves in a run with 100,000 keys", fill_run, join_and_leave),
    "add-long": Attack("add on 56 MiB", long_value, add_to_long),
    "append-get": Attack("GET and append by turns, 56 MiB", long_value, append_and_get),
    "get-runs": Attack("16,000 GetRuns over 10,000 runs", ten_thousand_runs, list_runs),
    "status": Attack("status of a run of 4,000 without end", large_run, ask_status),
    "most-keys": Attack("131,072 keys in each request", nothing, most_keys_at_once),
    "wait-go": Attack("waits for 131,072 keys that end at once", nothing, wait_and_go),
    "wait-one": Attack("200,000 waits for one key", nothing, wait_for_one),
    "pipeline": Attack("gets without end on 200 connections", nothing, pipeline),
    "watch": Attack("500 watchers, half of them unread, and joins", nothing, watch),
    "read-nothing": Attack("100 unread values of 56 MiB, each another", long_value, read_nothing),
    "pop-nothing": Attack("300 popped values of 8 MiB, unread", nothing, pop_and_read_nothing),
    "fill-values": Attack("values without end", nothing, fill_up),
    "fill-keys": Attack("keys without end", nothing, fill_up_with_keys),
    "unfinished": Attack("1,000 requests of 8 MiB that do not end", nothing, unfinished),
    "incomplete": Attack("10,000 first messages that do not end, no token", nothing, incomplete),
    "wrong-tokens": Attack("wrong tokens and noise without end", nothing, wrong_tokens),
}
"""By a short name, in the order in which they are played."""
