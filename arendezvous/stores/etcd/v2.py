"""A store in etcd's v2 key space, which members that run stock torch can read."""

from __future__ import annotations

import binascii
import logging
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

import anyio

from arendezvous.errors import RendezvousError, RendezvousSettingsError, StoreError
from arendezvous.etcd.client_v2 import EtcdV2Client, Node
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.keyspace.keyspace import leading_integer
from arendezvous.net.typed import typed
from arendezvous.stores.arguments import (
    checked_items,
    checked_keys,
    key_from_bytes,
    key_to_bytes,
    value_to_bytes,
)
from arendezvous.stores.etcd.base import EtcdStoreBase, Held, Item
from arendezvous.stores.port import DEFAULT_TIMEOUT, STORE_TIMEOUT, Timeout
from arendezvous.stores.timeouts import answered, deadline

logger = logging.getLogger(__name__)

DEFAULT_PREFIX: Final = "/torch/elastic/store"

_EMPTY: Final = "-"  # stands for the empty key, which in torch's layout would be the directory itself
_WRITES: Final = frozenset({"set", "create", "update", "compareAndSwap"})


class EtcdV2Store(EtcdStoreBase[EtcdV2Client]):
    """A client of a cluster of etcd that serves the v2 API, for one event loop.

    Its keys lie where torch's ``EtcdStore`` has them, so that its users read ours and we read theirs: the
    value of a key is in base64 under ``<prefix>/<base64 of the key>``. Whatever changes a value depending on
    what it was is a compare-and-swap on etcd's index, and waiting is a long poll from the index at which the
    key was absent; if etcd has forgotten what happened since (it remembers 1000 changes), the key is read
    again. The v2 API has no transactions: in `multi_set` and `multi_get` one key comes after the other. If a
    member does not answer, the next one is asked. What only reads is then asked again; what changes something
    and was in flight raises `RendezvousConnectionError`, because it may have been carried out. The v2 API has
    nothing to stop such a change, or one that was cancelled: it may be carried out even behind what is asked
    for next.

    Use it as an asynchronous context manager: entering connects. Without that the first operation connects.

    Args:
        cluster: See `EtcdStore`, also for the three time-outs, in seconds.
        timeout: None waits for ever.
        read_timeout: For an answer from any member.
        connect_timeout: For entering the context; None stands for `timeout`.
        prefix: The directory of etcd that its keys lie in.
        ttl: After how many seconds what this store has written vanishes, unless `keep` runs; None: never, as
            with torch's store.

    Raises:
        RendezvousSettingsError: An endpoint, a file, the prefix or a number is not what it has to be.

    Its fields:
        _directory: The path of the directory.
        _lifetime: What is sent along with what is written, so that it vanishes.
        _written: The paths of what was written and is to be renewed; none without a `ttl`.
    """

    @typed
    def __init__(
        self,
        cluster: EtcdCluster | str | Sequence[str],
        *,
        timeout: float | timedelta | None = DEFAULT_TIMEOUT,
        read_timeout: float = 10.0,
        connect_timeout: float | None = None,
        prefix: str = DEFAULT_PREFIX,
        ttl: int | None = None,
    ) -> None:
        if not prefix.strip("/"):
            raise RendezvousSettingsError.of("prefix", prefix, "a directory that sets these keys apart")
        if ttl is not None and ttl < 1:
            raise RendezvousSettingsError.of("ttl", ttl, "a whole number of seconds >= 1, or None")
        client = EtcdV2Client(cluster, read_timeout=read_timeout)
        super().__init__(client, prefix=prefix, timeout=timeout, connect_timeout=connect_timeout)
        self._directory = "/" + prefix.strip("/")
        self._ttl = ttl
        self._lifetime = {} if ttl is None else {"ttl": str(ttl)}
        self._written: dict[str, None] = {}

    async def keep(self) -> None:
        """Renews, until it is cancelled, whatever this store has written and would vanish with its `ttl`."""
        if self._ttl is None:
            return
        anew = {"refresh": "true", "prevExist": "true", **self._lifetime}  # which wakes nobody
        while True:
            await anyio.sleep(self._ttl / 3)
            try:
                for path in list(self._written):
                    reply = await self.client.ask("PUT", path, anew, doing="renewing a key", repeat=True)
                    if reply.error:  # it is not there any more
                        self._written.pop(path, None)
            except RendezvousError as error:
                logger.info("the keys of %r could not be renewed: %s", self, error)

    async def set(self, key: str, value: bytes | str) -> None:
        with self._doing("set", [key]) as doing:
            await self._put(self._path(key), value_to_bytes(value), {}, doing)

    async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        wanted, new = value_to_bytes(expected, "expected"), value_to_bytes(desired, "desired")
        with self._doing("compare_set", [key]) as doing:
            while True:
                held = await self._read(key, doing)
                if held.value is None and wanted:
                    return wanted
                if held.value not in (None, wanted):
                    return held.value or b""
                if (await self._swap(key, new, held, doing))[0]:
                    return new

    async def check(self, keys: Sequence[str]) -> bool:
        with self._doing("check", keys) as doing:
            for key in dict.fromkeys(checked_keys(keys)):
                if not (await self._exists(key, doing))[0]:
                    return False
            return True

    async def delete_key(self, key: str) -> bool:
        path = self._path(key)
        with self._doing("delete_key", [key]) as doing:
            self._written.pop(path, None)
            return not (await self.client.ask("DELETE", path, {}, doing=doing, repeat=False)).error

    async def num_keys(self) -> int:
        return len(await self.list_keys())

    async def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        with self._doing("multi_set", keys) as doing:
            for key, value in dict(checked_items(keys, values)).items():  # the last value of a key counts
                await self._put(f"{self._directory}/{_name(key)}", value, {}, doing)

    async def list_keys(self) -> list[str]:
        with self._doing("list_keys", []) as doing:
            reply = await self.client.get(self._directory, doing)
            nodes = reply.found.nodes if reply.found else ()
            keys = [_key_at(node.key) for node in nodes if not node.dir]
            return [key for key in keys if key is not None]

    async def wait(self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT) -> None:
        missing, seconds = dict[str, int](), self._seconds(timeout)
        with answered(seconds, "wait", keys), self._doing("wait", keys) as doing:
            for key in dict.fromkeys(checked_keys(keys)):
                exists, index = await self._exists(key, doing)
                if not exists:
                    missing[key] = index
            if missing:
                async with deadline(self, seconds, "wait", keys):
                    await self._appear(missing, doing)

    async def _greet(self, seconds: float) -> None:
        await self.client.get(self._directory, "connect", seconds=seconds)

    def _path(self, key: str) -> str:
        return f"{self._directory}/{_name(key_to_bytes(key))}"

    def _note(self, path: str) -> None:
        if self._ttl is not None:
            self._written[path] = None

    async def _put(self, path: str, value: bytes, condition: dict[str, str], doing: str) -> int:
        """Sets a key if `condition` holds; returns the index of that change, or 0."""
        parameters = {"value": b64encode(value).decode(), **condition, **self._lifetime}
        reply = await self.client.ask("PUT", path, parameters, doing=doing, repeat=False)
        if reply.error:
            return 0
        self._note(path)
        return reply.node.modified_index

    async def _swap(self, key: str, value: bytes, held: Held, doing: str) -> tuple[int, Held | None]:
        condition = {"prevIndex": str(held.at)} if held.at else {"prevExist": "false"}
        return await self._put(self._path(key), value, condition, doing), None

    async def _read(self, key: str, doing: str) -> Held:
        node = (await self.client.get(self._path(key), doing)).found
        return Held(None, 0) if node is None else Held(_value_of(node), node.modified_index)

    async def _exists(self, key: str, doing: str) -> tuple[bool, int]:
        """Whether there is a key or a queue of this name, and an index from which its coming can be seen."""
        reply = await self.client.get(self._path(key), doing)
        if reply.found is not None:
            return True, reply.index
        nodes, _ = await self._values(key_to_bytes(key), doing)
        return bool(nodes), reply.index

    async def _get(self, keys: Sequence[str], operation: str, timeout: Timeout) -> list[bytes]:
        with self._doing(operation, keys) as doing:
            values = {key: (await self._read(key, doing)).value for key in dict.fromkeys(keys)}
            missing = [key for key, value in values.items() if value is None]
            if missing:
                async with deadline(self, self._seconds(timeout), operation, keys):
                    for key in missing:
                        values[key] = await self._awaited(key, doing)
            return [values[key] or b"" for key in keys]

    async def _awaited(self, key: str, doing: str, enough: Callable[[bytes], bool] = lambda _: True) -> bytes:
        """Returns the value of a key, once it has one that is `enough`."""
        path = self._path(key)
        while True:
            reply = await self.client.get(path, doing)
            if reply.found is not None and enough(value := _value_of(reply.found)):
                return value
            await self.client.watch(path, reply.index + 1, doing)

    async def _appear(self, missing: Mapping[str, int], doing: str) -> None:
        """Returns once each key has existed since its index in `missing`, as a key or as a queue."""
        awaited = {*missing}
        failures: list[RendezvousError] = []

        async def look(key: str, path: str, recursive: bool) -> None:
            try:
                await self._appears(key, path, missing[key], doing, recursive=recursive)
                awaited.discard(key)
            except RendezvousError as error:
                failures.append(error)
            if failures or not awaited:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for key in missing:
                tasks.start_soon(look, key, self._path(key), False)
                tasks.start_soon(look, key, self._queue(key_to_bytes(key)), True)
        if failures:
            raise failures[0]

    async def _appears(self, key: str, path: str, index: int, doing: str, *, recursive: bool) -> None:
        """Returns once something has been written to `path` since `index`, or `key` is there."""
        while True:
            event = await self.client.watch(path, index + 1, doing, recursive=recursive)
            if event is not None and event.action in _WRITES:
                return
            if event is not None and not event.error:  # a queue that was empty already was removed
                index = event.node.modified_index
                continue
            exists, now = await self._exists(key, doing)
            if exists:
                return
            if event is not None:  # what has happened since is forgotten
                index = now

    async def _filled(self, key: str, world_size: int, at: int, doing: str) -> None:
        await self._awaited(key, doing, lambda held: (leading_integer(held) or 0) >= world_size)

    # Queues, which torch's store does not have. Etcd numbers the values of a directory as they come, and does
    # neither list nor watch from above what begins with an underscore.

    def _queue(self, queue: bytes) -> str:
        return f"{self._directory}/_queues/{_name(queue)}"

    async def _values(self, queue: bytes, doing: str) -> tuple[tuple[Node, ...], int]:
        """Returns the values, the oldest first, and etcd's index at that moment."""
        reply = await self.client.get(self._queue(queue), doing, sorted_=True)
        return (reply.found.nodes if reply.found else ()), reply.index

    async def _push(self, queue: bytes, value: bytes, doing: str) -> None:
        parameters = {"value": b64encode(value).decode(), **self._lifetime}
        reply = await self.client.ask("POST", self._queue(queue), parameters, doing=doing, repeat=False)
        self._note(reply.node.key)

    async def _length(self, queue: bytes, doing: str) -> int:
        return len((await self._values(queue, doing))[0])

    async def _oldest(self, queue: bytes, doing: str) -> tuple[Item | None, int]:
        nodes, index = await self._values(queue, doing)
        if not nodes:
            return None, index
        node = nodes[0]
        return Item(node.key, _value_of(node), node.modified_index, is_last=len(nodes) == 1), index

    async def _remove(self, queue: bytes, item: Item, doing: str) -> bool:
        compare = {"prevIndex": str(item.at)}
        removed = not (await self.client.ask("DELETE", item.key, compare, doing=doing, repeat=False)).error
        if removed and item.is_last:
            with suppress(RendezvousError):  # an empty directory is of no use, and does no harm
                await self.client.ask("DELETE", self._queue(queue), {"dir": "true"}, doing=doing, repeat=True)
        return removed

    async def _pushed(self, queue: bytes, at: int, doing: str) -> None:
        await self.client.watch(self._queue(queue), at + 1, doing, recursive=True)


def _name(key: bytes) -> str:
    """The name of a key in its directory.

    Where the base64 of a key has a slash, torch makes a directory of it, which it does not find again; here
    it is a dash, so that a key is always one name.
    """
    return b64encode(key).decode().replace("/", "-") or _EMPTY


def _value_of(node: Node) -> bytes:
    """The value that lies in etcd; raises `StoreError` if it is not base64, or there is a directory."""
    if node.dir:
        raise StoreError(f"etcd's key {node.key!r} is a directory; it should hold a value in base64")
    try:
        return b64decode(node.value, validate=True)
    except (binascii.Error, ValueError) as error:
        shown = node.value[:40]
        raise StoreError(f"etcd's key {node.key!r} holds {shown!r}, which is no value in base64") from error


def _key_at(path: str) -> str | None:
    """The key at a path; None if nobody who follows this layout has put it there."""
    name = path.rpartition("/")[2]
    if name == _EMPTY:
        return ""
    try:
        return key_from_bytes(b64decode(name.replace("-", "/"), validate=True))
    except (binascii.Error, ValueError):
        return None
