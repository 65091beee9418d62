"""A store in etcd's v2 key space, which members that run stock torch can read."""

# ruff: noqa: D102  # the operations are documented in Store, whose contract this is

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

import anyio

from arendezvous.errors import RendezvousError, RendezvousSettingsError, StoreQueueEmptyError
from arendezvous.keyspace import leading_integer, not_a_number
from arendezvous.store import (
    DEFAULT_TIMEOUT,
    STORE_TIMEOUT,
    Store,
    Timeout,
    checked_items,
    checked_keys,
    deadline,
    key_to_bytes,
    value_to_bytes,
)
from arendezvous.stores.etcd_client import describe
from arendezvous.stores.etcd_endpoints import parse_endpoints, tls_context
from arendezvous.stores.etcd_operations import Operations
from arendezvous.stores.etcd_queues import Turns
from arendezvous.stores.etcd_v2_client import EtcdV2Client
from arendezvous.stores.etcd_v2_layout import DEFAULT_PREFIX, Layout, to_text, value_of
from arendezvous.stores.etcd_v2_queues import EtcdV2Queues

logger = logging.getLogger(__name__)

_WRITES: Final = frozenset({"set", "create", "update", "compareAndSwap"})
_SIGN_BIT: Final = 1 << 63
_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.25


class EtcdV2Store(Store):
    """A client of a cluster of etcd that serves the v2 API, for one event loop.

    Its keys lie where torch's ``EtcdStore`` has them (see `stores.etcd_v2_layout`), so that its users read
    ours and we read theirs. Whatever changes a value depending on what it was is a compare-and-swap on etcd's
    index, and waiting is a long poll from the index at which the key was absent; if etcd has forgotten what
    happened since (it remembers 1000 changes), the key is read again. The v2 API has no transactions: in
    `multi_set` and `multi_get` one key comes after the other. If a member does not answer, the next one is
    asked. What only reads is then asked again; what changes something and was in flight raises
    `RendezvousConnectionError`, because it may have been carried out.

    Use it as an asynchronous context manager: entering connects. Without that the first operation connects.

    Args:
        endpoints: The members' addresses for clients, ``host[:port]`` or ``http(s)://host[:port]``: in a
            sequence, or in text with commas; one that works is enough.
        timeout: How long waiting operations wait, in seconds; None waits for ever.
        read_timeout: After how many seconds without an answer from any member an operation raises
            `RendezvousConnectionError`.
        connect_timeout: For how many seconds entering the context tries to connect: etcd may be started later
            than its clients. None stands for `timeout`.
        user: The user's name; None where etcd's v2 API has no users.
        password: The user's password.
        ca_cert: A file of the certificates of authorities (PEM) that may have signed those of the members;
            None stands for the system's.
        ssl_cert: A file of the client's certificate (PEM), for mutual TLS; None: it has none.
        ssl_cert_key: The file of its key; None: it is in `ssl_cert` too. With any of these files, endpoints
            without a scheme are taken as https.
        prefix: The directory of etcd that its keys lie in.
        ttl: After how many seconds what this store has written vanishes, unless `keep` runs; None: never, as
            with torch's store.

    Raises:
        RendezvousSettingsError: An endpoint, a file, the prefix or a number is not what it has to be.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        read_timeout: float = 10.0,
        connect_timeout: float | None = None,
        user: str | None = None,
        password: str = "",
        ca_cert: str | None = None,
        ssl_cert: str | None = None,
        ssl_cert_key: str | None = None,
        prefix: str = DEFAULT_PREFIX,
        ttl: int | None = None,
    ) -> None:
        super().__init__(timeout=timeout)
        if not prefix.strip("/"):
            raise RendezvousSettingsError.of("prefix", prefix, "a directory that sets these keys apart")
        if not read_timeout > 0:
            raise RendezvousSettingsError.of("read_timeout", read_timeout, "a number of seconds > 0")
        if ttl is not None and ttl < 1:
            raise RendezvousSettingsError.of("ttl", ttl, "a whole number of seconds >= 1, or None")
        tls = tls_context(ca_cert, ssl_cert, ssl_cert_key)
        urls = parse_endpoints(endpoints, secure=tls is not None)
        self.prefix = prefix
        self.client = EtcdV2Client(urls, read_timeout=read_timeout, user=user, password=password, tls=tls)
        self._connect_timeout = connect_timeout
        self._layout = Layout(prefix)
        self._ttl = ttl
        self._lifetime = {} if ttl is None else {"ttl": str(ttl)}
        self._written: dict[str, None] = {}
        self._queues = EtcdV2Queues(self.client, self._layout, self._lifetime, self._note)
        self._turns = Turns()
        self._operations = Operations()

    def __repr__(self) -> str:
        return f"EtcdV2Store({self.client.name!r}, prefix={self.prefix!r})"

    async def __aenter__(self) -> Self:
        """Connects.

        Raises:
            RendezvousConnectionError: That took longer than the `connect_timeout`, or the user is not let in.
        """
        seconds = self.timeout if self._connect_timeout is None else self._connect_timeout
        try:
            with self._operations.one():
                await self.client.get(self._layout.directory, "connect", seconds=seconds)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        await self._operations.end()
        await self.client.close()

    async def keep(self) -> None:
        """Renews, until it is cancelled, whatever this store has written and would vanish with its `ttl`."""
        if self._ttl is None:
            return
        while True:
            await anyio.sleep(self._ttl / 3)
            try:
                for path in list(self._written):
                    await self._renew(path)
            except RendezvousError as error:
                logger.info("the keys of %r could not be renewed: %s", self, error)

    # Operations that answer at once

    async def set(self, key: str, value: bytes | str) -> None:
        with self._operations.one():
            await self._put(self._path(key), value_to_bytes(value), {}, describe("set", [key]))

    async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        wanted, new, doing = value_to_bytes(expected), value_to_bytes(desired), describe("compare_set", [key])
        with self._operations.one():
            while True:
                held, index = await self._read(key, doing)
                if held is None and wanted:
                    return wanted
                if held not in (None, wanted):
                    return held or b""
                if await self._swap(key, new, index, doing):
                    return new

    async def add(self, key: str, delta: int) -> int:
        with self._operations.one():
            return await self._add(key, delta, describe("add", [key]))

    async def check(self, keys: Sequence[str]) -> bool:
        doing = describe("check", keys)
        with self._operations.one():
            for key in dict.fromkeys(checked_keys(keys)):
                if not (await self._exists(key, doing))[0]:
                    return False
            return True

    async def delete_key(self, key: str) -> bool:
        path, doing = self._path(key), describe("delete_key", [key])
        with self._operations.one():
            self._written.pop(path, None)
            return not (await self.client.ask("DELETE", path, {}, doing=doing, repeat=False)).error

    async def num_keys(self) -> int:
        return len(await self.list_keys())

    async def append(self, key: str, value: bytes | str) -> None:
        more = value_to_bytes(value)
        with self._operations.one():
            await self._change(key, lambda held: (held or b"") + more, describe("append", [key]))

    async def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        doing = describe("multi_set", keys)
        with self._operations.one():
            for key, value in dict(checked_items(keys, values)).items():  # the last value of a key counts
                await self._put(self._layout.key(key), value, {}, doing)

    async def queue_push(self, key: str, value: bytes | str) -> None:
        with self._operations.one():
            await self._queues.push(key_to_bytes(key), value_to_bytes(value), describe("queue_push", [key]))

    async def queue_len(self, key: str) -> int:
        with self._operations.one():
            return len((await self._queues.values(key_to_bytes(key), describe("queue_len", [key])))[0])

    async def list_keys(self) -> list[str]:
        with self._operations.one():
            reply = await self.client.get(self._layout.directory, "list_keys")
            nodes = reply.found.nodes if reply.found else ()
            keys = [self._layout.key_at(node.key) for node in nodes if not node.dir]
            return [key for key in keys if key is not None]

    # Operations that may wait

    async def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        return (await self._get([key], "get", timeout))[0]

    async def multi_get(self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT) -> list[bytes]:
        return await self._get(checked_keys(keys), "multi_get", timeout)

    async def wait(self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT) -> None:
        doing = describe("wait", keys)
        missing: dict[str, int] = {}
        with self._operations.one():
            for key in dict.fromkeys(checked_keys(keys)):
                exists, index = await self._exists(key, doing)
                if not exists:
                    missing[key] = index
            if missing:
                with deadline(self._seconds(timeout), "wait", keys):
                    await self._appear(missing, doing)

    async def queue_pop(self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        queue, doing = key_to_bytes(key), describe("queue_pop", [key])
        with self._operations.one():
            if not block or not self._queues.busy(queue):
                value, _ = await self._queues.take(queue, doing)
                if value is not None:
                    return value
            if not block:
                raise StoreQueueEmptyError(f"queue {key!r} is empty", key=key)
            with deadline(self._seconds(timeout), "queue_pop", [key]):
                return await self._queues.wait_and_take(queue, doing)

    async def barrier(self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT) -> None:
        doing = describe("barrier", [key])
        with self._operations.one():
            if await self._add(key, 1, doing) < world_size:
                with deadline(self._seconds(timeout), "barrier", [key]):
                    await self._filled(key, world_size, doing)

    # How

    def _path(self, key: str) -> str:
        return self._layout.key(key_to_bytes(key))

    def _note(self, path: str) -> None:
        if self._ttl is not None:
            self._written[path] = None

    async def _renew(self, path: str) -> None:
        """Gives a key its `ttl` anew, which wakes nobody; forgets a key that is not there any more."""
        parameters = {"refresh": "true", "prevExist": "true", **self._lifetime}
        reply = await self.client.ask("PUT", path, parameters, doing="renewing a key", repeat=True)
        if reply.error:
            self._written.pop(path, None)

    async def _put(self, path: str, value: bytes, condition: dict[str, str], doing: str) -> bool:
        """Sets a key if `condition` holds; returns whether it did."""
        parameters = {"value": to_text(value), **condition, **self._lifetime}
        reply = await self.client.ask("PUT", path, parameters, doing=doing, repeat=False)
        if not reply.error:
            self._note(path)
        return not reply.error

    async def _swap(self, key: str, value: bytes, index: int, doing: str) -> bool:
        """Sets a key if its latest change was that of `index`; 0: if it is absent."""
        condition = {"prevIndex": str(index)} if index else {"prevExist": "false"}
        return await self._put(self._path(key), value, condition, doing)

    async def _read(self, key: str, doing: str) -> tuple[bytes | None, int]:
        """Returns the value and the index of its latest change; None and 0 if there is none."""
        node = (await self.client.get(self._path(key), doing)).found
        return (None, 0) if node is None else (value_of(node), node.modified_index)

    async def _exists(self, key: str, doing: str) -> tuple[bool, int]:
        """Whether there is a key or a queue of this name, and an index from which its coming can be seen."""
        reply = await self.client.get(self._path(key), doing)
        if reply.found is not None:
            return True, reply.index
        nodes, _ = await self._queues.values(key_to_bytes(key), doing)
        return bool(nodes), reply.index

    async def _get(self, keys: Sequence[str], doing: str, timeout: Timeout) -> list[bytes]:
        shown = describe(doing, keys)
        values: dict[str, bytes] = {}
        with self._operations.one():
            missing: list[str] = []
            for key in dict.fromkeys(keys):
                held, _ = await self._read(key, shown)
                if held is None:
                    missing.append(key)
                else:
                    values[key] = held
            if missing:
                with deadline(self._seconds(timeout), doing, keys):
                    for key in missing:
                        values[key] = await self._awaited(key, shown)
            return [values[key] for key in keys]

    async def _awaited(self, key: str, doing: str) -> bytes:
        """Returns the value of a key, once it has one."""
        path = self._path(key)
        while True:
            reply = await self.client.get(path, doing)
            if reply.found is not None:
                return value_of(reply.found)
            await self.client.watch(path, reply.index + 1, doing)

    async def _appear(self, missing: Mapping[str, int], doing: str) -> None:
        """Returns once each key has existed since its index in `missing`, as a key or as a queue."""
        awaited = {*missing}
        failures: list[RendezvousError] = []

        async def look(key: str, path: str, recursive: bool) -> None:
            try:
                if await self._appears(key, path, missing[key], doing, recursive=recursive):
                    awaited.discard(key)
            except RendezvousError as error:
                failures.append(error)
            if failures or not awaited:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for key in missing:
                tasks.start_soon(look, key, self._path(key), False)
                tasks.start_soon(look, key, self._layout.queue(key_to_bytes(key)), True)
        if failures:
            raise failures[0]

    async def _appears(self, key: str, path: str, index: int, doing: str, *, recursive: bool) -> bool:
        """Returns once something has been written to `path` since `index`, or `key` is there."""
        while True:
            event = await self.client.watch(path, index + 1, doing, recursive=recursive)
            if event is not None and event.action in _WRITES:
                return True
            if event is not None and not event.error:  # a queue that was empty already was removed
                index = event.node.modified_index
                continue
            exists, now = await self._exists(key, doing)
            if exists:
                return True
            if event is not None:  # what has happened since is forgotten
                index = now

    async def _filled(self, key: str, world_size: int, doing: str) -> None:
        """Returns once the number under a barrier's key is at least `world_size`."""
        path = self._path(key)
        while True:
            reply = await self.client.get(path, doing)
            held = value_of(reply.found) if reply.found else b""
            if (leading_integer(held) or 0) >= world_size:
                return
            await self.client.watch(path, reply.index + 1, doing)

    async def _add(self, key: str, delta: int, doing: str) -> int:
        total = 0

        def added(held: bytes | None) -> bytes:
            nonlocal total
            number = 0 if held is None else leading_integer(held)
            if number is None:
                raise not_a_number(key_to_bytes(key), held or b"")
            total = ((number + delta + _SIGN_BIT) & (2 * _SIGN_BIT - 1)) - _SIGN_BIT
            return b"%d" % total

        await self._change(key, added, doing)
        return total

    async def _change(self, key: str, change: Callable[[bytes | None], bytes], doing: str) -> None:
        """Replaces the value of `key` by what `change` makes of it (None if absent).

        It is tried until no other has changed the key in between; of all who try one succeeds each time.
        """
        pause = _FIRST_PAUSE
        async with self._turns.of(key_to_bytes(key)):
            while True:
                held, index = await self._read(key, doing)
                if await self._swap(key, change(held), index, doing):
                    return
                await anyio.sleep(pause * random.random())  # noqa: S311  # spreads the rivals out
                pause = min(2 * pause, _LONGEST_PAUSE)
