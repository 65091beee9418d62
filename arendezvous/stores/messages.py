"""The store whose operations are messages of the keyspace, wherever that is: here, or at a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

from arendezvous.keyspace import messages
from arendezvous.stores.arguments import (
    checked_items,
    checked_keys,
    checked_number,
    key_from_bytes,
    key_to_bytes,
    value_to_bytes,
)
from arendezvous.stores.port import Store


class MessageStore(Store):
    """A store that asks a keyspace; what answers at once is the same for all of them.

    Its fields:
        _before: What stands before each key of its users there.
        _ask: Asks the keyspace, and returns its reply.
    """

    _before: ClassVar[bytes] = b""
    _ask: Callable[[messages.StoreRequest], Awaitable[Any]]

    async def set(self, key: str, value: bytes | str) -> None:
        await self._ask(messages.Set(self._key(key), value_to_bytes(value)))

    async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        wanted, new = value_to_bytes(expected, "expected"), value_to_bytes(desired, "desired")
        request = messages.CompareSet(self._key(key), wanted, new)
        value: bytes | None = (await self._ask(request)).value
        return value or b""

    async def add(self, key: str, delta: int) -> int:
        reply: messages.Number = await self._ask(messages.Add(self._key(key), checked_number("delta", delta)))
        return reply.number

    async def check(self, keys: Sequence[str]) -> bool:
        reply: messages.Ready = await self._ask(messages.Check(self._all(keys)))
        return reply.ready

    async def delete_key(self, key: str) -> bool:
        reply: messages.Number = await self._ask(messages.DeleteKey(self._key(key)))
        return reply.number > 0

    async def num_keys(self) -> int:
        reply: messages.Number = await self._ask(messages.NumKeys())
        return reply.number

    async def append(self, key: str, value: bytes | str) -> None:
        await self._ask(messages.Append(self._key(key), value_to_bytes(value)))

    async def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        items = checked_items(keys, values)
        await self._ask(messages.MultiSet([(self._before + key, value) for key, value in items]))

    async def queue_push(self, key: str, value: bytes | str) -> None:
        await self._ask(messages.QueuePush(self._key(key), value_to_bytes(value)))

    async def queue_len(self, key: str) -> int:
        reply: messages.Number = await self._ask(messages.QueueLen(self._key(key)))
        return reply.number

    async def list_keys(self) -> list[str]:
        reply: messages.Keys = await self._ask(messages.ListKeys())
        start = len(self._before)
        return [key_from_bytes(key[start:]) for key in reply.keys if key.startswith(self._before)]

    def _key(self, key: str) -> bytes:
        return self._before + key_to_bytes(key)

    def _all(self, keys: Sequence[str]) -> list[bytes]:
        return [self._key(key) for key in checked_keys(keys)]
