"""Queues in etcd's v2 key space: etcd numbers the values of a directory in the order of their coming."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio

from arendezvous.stores.etcd.queues import Turns, uncut
from arendezvous.stores.etcd_v2.client import EtcdV2Client, Node
from arendezvous.stores.etcd_v2.layout import Layout, to_text, value_of


class EtcdV2Queues:
    """The queues of one store.

    Args:
        client: Where they are.
        layout: Where they lie there.
        ttl: What is sent along with what is written.
        written: Called with the path of what was written.
    """

    def __init__(
        self, client: EtcdV2Client, layout: Layout, ttl: Mapping[str, str], written: Callable[[str], None]
    ) -> None:
        self._client = client
        self._layout = layout
        self._ttl = ttl
        self._written = written
        self._turns = Turns()

    async def push(self, queue: bytes, value: bytes, doing: str) -> None:
        """Appends a value."""
        parameters = {"value": to_text(value), **self._ttl}
        path = self._layout.queue(queue)
        reply = await self._client.ask("POST", path, parameters, doing=doing, repeat=False)
        self._written(reply.node.key)

    async def values(self, queue: bytes, doing: str) -> tuple[tuple[Node, ...], int]:
        """The values, the oldest first, and etcd's index at that moment."""
        reply = await self._client.get(self._layout.queue(queue), doing, sorted_=True)
        return (reply.found.nodes if reply.found else ()), reply.index

    async def length(self, queue: bytes, doing: str) -> int:
        """The number of values."""
        return len((await self.values(queue, doing))[0])

    def busy(self, queue: bytes) -> bool:
        """Whether somebody waits for a value, or takes one."""
        return queue in self._turns

    async def take(self, queue: bytes, doing: str) -> tuple[bytes | None, int]:
        """Takes the oldest value; gives None if there is none, and the index at which that was so.

        A value that is being taken when the caller is cancelled goes back to the end of the queue.
        """
        while True:
            nodes, index = await self.values(queue, doing)
            if not nodes:
                return None, index
            if await self._claim(queue, nodes[0], last=len(nodes) == 1, doing=doing):
                return value_of(nodes[0]), index

    async def wait_and_take(self, queue: bytes, doing: str) -> bytes:
        """Takes the oldest value, and waits for one; of the callers here, the first is served first."""
        async with self._turns.of(queue):
            value, index = await self.take(queue, doing)
            while value is None:
                await self._client.watch(self._layout.queue(queue), index + 1, doing, recursive=True)
                value, index = await self.take(queue, doing)
            return value

    async def _claim(self, queue: bytes, item: Node, *, last: bool, doing: str) -> bool:
        """Removes `item`; False if another has been quicker."""
        claimed = False

        async def claim() -> None:
            nonlocal claimed
            compare = {"prevIndex": str(item.modified_index)}
            reply = await self._client.ask("DELETE", item.key, compare, doing=doing, repeat=False)
            claimed = not reply.error
            if claimed and last:  # an empty directory is of no use; one that is not is not deleted
                await self._client.ask(
                    "DELETE", self._layout.queue(queue), {"dir": "true"}, doing=doing, repeat=True
                )

        async def put_back() -> None:
            await self.push(queue, value_of(item), doing)

        try:
            await uncut(claim)
        except anyio.get_cancelled_exc_class():
            if claimed:
                await uncut(put_back)
            raise
        return claimed
