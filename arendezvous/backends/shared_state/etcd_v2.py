"""``etcd-v2://``: a rendezvous in etcd's v2 key space, shared with stock ``etcd-v2`` agents."""

from __future__ import annotations

import logging
import math
from base64 import b64decode
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import anyio

from arendezvous.backends.shared_state.compare_and_set import CompareAndSetBackend
from arendezvous.backends.shared_state.fenced_value import Fence, FencedValue
from arendezvous.errors import RendezvousConnectionError, RendezvousSettingsError, RendezvousStateError
from arendezvous.etcd.client_v2 import EtcdV2Client, KeysReply
from arendezvous.etcd.cluster import EtcdCluster
from arendezvous.net.addresses import own_address
from arendezvous.net.backoff import DEFAULT_BACKOFF
from arendezvous.net.reach import Reach
from arendezvous.stores.etcd.v2 import EtcdV2Store
from arendezvous.wire.torch_state.state import Annex

logger = logging.getLogger(__name__)

DEFAULT_PREFIX: Final = "/torch/elastic"  # what stock torch has, and cannot be told to have otherwise
STATE_TTL: Final = 7200  # seconds, as in stock torch

CALM: Final = 1.0  # seconds
WRITE_TIMEOUT: Final = 2.0  # a member of etcd that has just lost its leader would keep a write for some 7 s


class EtcdV2FencedKey(FencedValue):
    """The state is one key, which every write gives its time to live anew; etcd's index is the fence.

    Etcd pushes every change, whoever made it: nothing has to be announced. But a change that keeps the pulse
    is a heartbeat, or was made by a stock node. If such changes come one after the other, they are told of
    once a second, which is how often stock nodes look: else N heartbeats would have N nodes read the state N
    times. While there is no key, the fence is the negated index at which it was found absent.

    Args:
        client: The client; neither opened nor closed here.
        path: The key.
        ttl: After how many seconds without a write the state vanishes.
    """

    sees_everything = True

    def __init__(self, client: EtcdV2Client, path: str, ttl: int = STATE_TTL) -> None:
        self._client = client
        self._path = path
        self._ttl = str(ttl)
        self._absent = 0
        self._told = -math.inf

    async def get(self) -> tuple[bytes, Fence]:
        reply = await self._client.get(self._path, "reading the rendezvous")
        if reply.found is None:
            self._absent = self._absent or -max(1, reply.index)
            return b"", self._absent
        if reply.node.dir:
            said = f"etcd's key {self._path!r} is a directory; it should hold the state of a rendezvous"
            raise RendezvousStateError(said)
        self._absent = 0
        return reply.node.value.encode(), reply.node.modified_index

    async def set(self, value: bytes, fence: Fence) -> tuple[bool, bytes, Fence]:
        """See `FencedValue.set`. If the connection breaks meanwhile, the key tells what became of it."""
        assert isinstance(fence, int)  # noqa: S101 - it was given out here
        condition = {"prevIndex": str(fence)} if fence > 0 else {"prevExist": "false"}
        parameters = {"value": value.decode(), "ttl": self._ttl, **condition}
        doing, seconds = "writing the rendezvous", min(WRITE_TIMEOUT, self._client.read_timeout)
        try:
            reply = await self._client.ask(
                "PUT", self._path, parameters, doing=doing, repeat=False, seconds=seconds
            )
        except RendezvousConnectionError:
            held, now = await self.get()
            return held == value, held, now
        if reply.found is None:
            held, now = await self.get()
            return False, held, now
        self._absent = 0
        return True, value, reply.node.modified_index

    def topic(self, fence: Fence, pulse: str) -> str:
        return f"{int(fence)} {pulse}"

    async def wait(self, topic: str) -> None:
        """Waits for a change since the fence; goes on for as long as etcd cannot be reached."""
        first, _, pulse = (topic or "0 0").partition(" ")
        fence = int(first)
        index, calm, pauses = abs(fence), math.inf, DEFAULT_BACKOFF.start()
        while True:
            event: KeysReply | None = None
            with anyio.move_on_after(calm - anyio.current_time()) as scope:
                event = await self._client.watch(self._path, index + 1, "watching the rendezvous")
            now = anyio.current_time()
            changed = event is not None and not event.error
            if event is not None and changed and now < self._told + CALM and _has_pulse(event, pulse):
                index, calm = event.node.modified_index, self._told + CALM
                continue
            if changed or scope.cancelled_caught:
                self._told = now
                return
            try:
                reply = await self._client.get(self._path, "reading the rendezvous")
            except RendezvousConnectionError as error:
                logger.debug("nothing is pushed for %s: %s", self._path, error)
                await pauses.sleep()
                continue
            if (reply.node.modified_index if reply.found else -abs(fence)) != fence:
                return
            index = reply.index


def _has_pulse(event: KeysReply, pulse: str) -> bool:
    """Whether the state has this pulse after the event; it is not decoded for that."""
    try:
        data = b64decode(event.node.value)
    except ValueError:
        return False
    shown = b'"pulse":"' + pulse.encode() + b'"'
    return shown in data or (pulse == Annex().pulse and b'"pulse":' not in data)


class EtcdV2Backend(CompareAndSetBackend):
    """A run in etcd's v2 key space, with the keys and the state of stock torch's ``etcd-v2``.

    Args:
        cluster: How to reach the cluster, as `EtcdV2Store` takes it.
        run_id: The run; stock calls it the ``--rdzv-id``.
        read_timeout: Seconds that a request, or connecting, may take before `RendezvousConnectionError`.
        prefix: The directory of all that is kept. Stock agents find nothing but the default.
        ttl: After how many seconds without a write the state of the run vanishes, and what our nodes have
            stored once they are gone.

    Raises:
        RendezvousSettingsError: An argument is not what it has to be.
    """

    name = "etcd-v2"

    def __init__(
        self,
        cluster: EtcdCluster | str | Sequence[str],
        run_id: str,
        *,
        read_timeout: float = 60.0,
        prefix: str = DEFAULT_PREFIX,
        ttl: int = STATE_TTL,
    ) -> None:
        base = "/" + prefix.strip("/")
        if not run_id or {"", ".", ".."} & set(run_id.split("/")):
            expected = "a name that makes a key of etcd: not empty, without empty parts, '.' and '..'"
            raise RendezvousSettingsError.of("run_id", run_id, expected)
        store = EtcdV2Store(
            cluster,
            read_timeout=read_timeout,
            connect_timeout=read_timeout,
            prefix=f"{base.rstrip('/')}/store",
            ttl=ttl,
        )
        self._where = [urlsplit(endpoint.url).netloc for endpoint in store.client.endpoints]
        fenced = EtcdV2FencedKey(store.client, f"{base.rstrip('/')}/rendezvous/{run_id}", ttl)
        super().__init__(fenced, run_id, store=store)
        self._etcd = store

    @property
    def endpoint(self) -> str:
        return f"etcd-v2://{','.join(self._where)}"

    @property
    def reach(self) -> Reach:
        return self._etcd.client.reach

    async def _open(self) -> None:
        await self._resources.enter_async_context(self._etcd)
        member = urlsplit(self._etcd.client.current.url)
        self._address = await own_address(member.hostname or "", member.port or 0)
        await super()._open()
        self._check_open().start(self._etcd.keep)
