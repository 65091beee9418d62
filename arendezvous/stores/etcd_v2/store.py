"""A store in etcd's v2 key space, which members that run stock torch can read."""

# ruff: noqa: D102  # the operations are documented in Store, whose contract this is

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import anyio

from arendezvous.errors import RendezvousError, RendezvousSettingsError
from arendezvous.etcd.endpoints import cluster
from arendezvous.keyspace.keyspace import leading_integer
from arendezvous.stores.etcd.shell import EtcdShell
from arendezvous.stores.etcd_v2.client import EtcdV2Client
from arendezvous.stores.etcd_v2.layout import DEFAULT_PREFIX, Layout, to_text, value_of
from arendezvous.stores.etcd_v2.queues import EtcdV2Queues
from arendezvous.stores.port import (
    DEFAULT_TIMEOUT,
    STORE_TIMEOUT,
    Timeout,
    checked_items,
    checked_keys,
    deadline,
    describe,
    key_to_bytes,
    value_to_bytes,
)

logger = logging.getLogger(__name__)

_WRITES: Final = frozenset({"set", "create", "update", "compareAndSwap"})
_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.25


class EtcdV2Store(EtcdShell[EtcdV2Client, EtcdV2Queues]):
    """A client of a cluster of etcd that serves the v2 API, for one event loop.

    Its keys lie where torch's ``EtcdStore`` has them (see `stores.etcd_v2_layout`), so that its users read
    ours and we read theirs. Whatever changes a value depending on what it was is a compare-and-swap on etcd's
    index, and waiting is a long poll from the index at which the key was absent; if etcd has forgotten what
    happened since (it remembers 1000 changes), the key is read again. The v2 API has no transactions: in
    `multi_set` and `multi_get` one key comes after the other. If a member does not answer, the next one is
    asked. What only reads is then asked again; what changes something and was in flight raises
    `RendezvousConnectionError`, because it may have been carried out. The v2 API has nothing to stop such a
    change, or one that was cancelled: it may be carried out even behind what is asked for next.

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
        if not prefix.strip("/"):
            raise RendezvousSettingsError.of("prefix", prefix, "a directory that sets these keys apart")
        if not read_timeout > 0:
            raise RendezvousSettingsError.of("read_timeout", read_timeout, "a number of seconds > 0")
        if ttl is not None and ttl < 1:
            raise RendezvousSettingsError.of("ttl", ttl, "a whole number of seconds >= 1, or None")
        urls, tls = cluster(endpoints, ca_cert, ssl_cert, ssl_cert_key)
        client = EtcdV2Client(urls, read_timeout=read_timeout, user=user, password=password, tls=tls)
        self._layout = Layout(prefix)
        self._ttl = ttl
        self._lifetime = {} if ttl is None else {"ttl": str(ttl)}
        self._written: dict[str, None] = {}
        queues = EtcdV2Queues(client, self._layout, self._lifetime, self._note)
        super().__init__(client, queues, prefix=prefix, timeout=timeout, connect_timeout=connect_timeout)

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

    async def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        doing = describe("multi_set", keys)
        with self._operations.one():
            for key, value in dict(checked_items(keys, values)).items():  # the last value of a key counts
                await self._put(self._layout.key(key), value, {}, doing)

    async def list_keys(self) -> list[str]:
        with self._operations.one():
            reply = await self.client.get(self._layout.directory, "list_keys")
            nodes = reply.found.nodes if reply.found else ()
            keys = [self._layout.key_at(node.key) for node in nodes if not node.dir]
            return [key for key in keys if key is not None]

    # Operations that may wait

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

    # How

    async def _connect(self, seconds: float | None) -> None:
        await self.client.get(self._layout.directory, "connect", seconds=seconds)

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

    async def _put(self, path: str, value: bytes, condition: dict[str, str], doing: str) -> int:
        """Sets a key if `condition` holds; returns the index of that change, or 0."""
        parameters = {"value": to_text(value), **condition, **self._lifetime}
        reply = await self.client.ask("PUT", path, parameters, doing=doing, repeat=False)
        if reply.error:
            return 0
        self._note(path)
        return reply.node.modified_index

    async def _swap(self, key: str, value: bytes, index: int, doing: str) -> int:
        """Sets a key if its latest change was that of `index`; 0: if it is absent. Returns as `_put` does."""
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

    async def _filled(self, key: str, world_size: int, at: int, doing: str) -> None:
        path = self._path(key)
        while True:
            reply = await self.client.get(path, doing)
            held = value_of(reply.found) if reply.found else b""
            if (leading_integer(held) or 0) >= world_size:
                return
            await self.client.watch(path, reply.index + 1, doing)

    async def _revise(self, key: str, change: Callable[[bytes | None], bytes], doing: str) -> int:
        pause = _FIRST_PAUSE
        async with self._turns.of(key_to_bytes(key)):
            while True:
                held, index = await self._read(key, doing)
                if at := await self._swap(key, change(held), index, doing):
                    return at
                await anyio.sleep(pause * random.random())  # noqa: S311  # spreads the rivals out
                pause = min(2 * pause, _LONGEST_PAUSE)
