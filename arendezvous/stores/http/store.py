"""A store on our server, over HTTP: for where only HTTP gets through."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Final

import anyio
import msgspec

from arendezvous import errors
from arendezvous.net.backoff import Backoff
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.http_client import HttpClient, UnansweredError
from arendezvous.net.typed import typed
from arendezvous.stores.arguments import (
    checked_items,
    checked_keys,
    checked_number,
    key_from_bytes,
    key_to_bytes,
    value_to_bytes,
)
from arendezvous.stores.connected import ConnectedStore
from arendezvous.stores.port import DEFAULT_TIMEOUT, STORE_TIMEOUT, Timeout
from arendezvous.stores.timeouts import answered, barrier_timed_out, timed_out
from arendezvous.wire.foreign import decode_foreign, json_decoder
from arendezvous.wire.http import names
from arendezvous.wire.http.answers import HttpAnswer

JSON: Final = "application/json"
GRACE: Final = 1.0  # seconds after a time-out within which the server has to say so
POLL: Final = 25.0  # seconds that one request waits at most: proxies end those that are silent for a minute
MAX_REQUESTS: Final = 64  # under way at once, but for those that wait: more would be no faster
BACKOFF: Final = Backoff(first=0.02, last=1.0)
_LEAST_SECONDS: Final = 0.01
_LISTED: Final = 10_000
_MOST_KEYS: Final = 10_000_000
_NO_CONTENT: Final = 204
_NOT_FOUND: Final = 404
_NOT_YET: Final = (202, _NOT_FOUND)  # of a barrier, and of a queue
_EXPECTED: Final = (_NOT_FOUND, 412)  # refusals that are answers of a store
_DENIED: Final = (401, 403)
_FULL: Final = 507


class _Values(msgspec.Struct):
    values: list[bytes | None]
    ready: bool


class _Readiness(msgspec.Struct):
    missing: list[str]


class _Listing(msgspec.Struct):
    keys: list[str]
    next: str | None
    total: int


class _Length(msgspec.Struct):
    length: int


_decode_values: Final = json_decoder(_Values)
_decode_readiness: Final = json_decoder(_Readiness)
_decode_length: Final = json_decoder(_Length)
_decode_number: Final = json_decoder(int)
_decode_present: Callable[[bytes], bytes | None] = msgspec.json.Decoder(bytes | None).decode
_decode_page: Final = json_decoder(_Listing)


def _decode_listing(data: bytes) -> _Listing:
    """Decodes a page of the list of keys, and the keys in it."""
    page = _decode_page(data)
    page.keys = [key_from_bytes(names.unquote(key.encode())) for key in page.keys]
    return page


class HttpStore(ConnectedStore):
    """A client of a server's HTTP listener, for one event loop.

    It sees the keys that clients of torch's TCPStore see at the same server. Connections are kept and used
    again; those who wait have one each, and ask again every 25 seconds, so that proxies do not take them for
    dead. A request that gets no answer is sent again, with growing pauses; what changes something is carried
    out once all the same, because the server knows a repetition. If another server answers then, or none,
    `RendezvousConnectionError` is raised, because the change may have been made.

    Of what is written and deleted again between two of its requests a wait sees nothing.

    Use it as an asynchronous context manager: entering connects. Without that the first operation connects.

    Args:
        url: The server's base URL, ``http(s)://host[:port][/path]``.
        timeout: How long waiting operations wait, in seconds; None waits for ever.
        read_timeout: Seconds without an answer, or a connection, until an operation raises
            `RendezvousConnectionError`.
        connect_timeout: Seconds that entering tries to connect: servers may start later than clients. None
            stands for `timeout`.
        credentials: The token, and the TLS settings.
        proxy: The URL of the proxy; None: as the environment says (``HTTP_PROXY``, ``HTTPS_PROXY``,
            ``NO_PROXY``); empty: none.
        client: What has the connections, with their credentials and proxy; it is not closed with the store.
            None: one of its own.

    Its fields:
        _is_owner: Whether the client is closed with the store.

    Raises:
        RendezvousSettingsError: The URL or another of these is not what it has to be.
    """

    @typed
    def __init__(
        self,
        url: str,
        *,
        timeout: float | timedelta | None = DEFAULT_TIMEOUT,
        read_timeout: float = 10.0,
        connect_timeout: float | None = None,
        credentials: Credentials = NO_CREDENTIALS,
        proxy: str | None = None,
        client: HttpClient | None = None,
    ) -> None:
        super().__init__(timeout=timeout, read_timeout=read_timeout, connect_timeout=connect_timeout)
        self._client = client or HttpClient(url, credentials, proxy=proxy)
        self._is_owner = client is None
        self._requests = StoreRequests(self._client, read_timeout)

    def __repr__(self) -> str:
        return f"HttpStore({self._client.url!r})"

    async def _connect(self, seconds: float) -> None:
        await self._requests.connect(seconds)

    async def _disconnect(self) -> None:
        if self._is_owner:
            await self._client.close()

    async def set(self, key: str, value: bytes | str) -> None:
        await self._change("PUT", _path(key), f"set {key!r}", value_to_bytes(value))

    async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        wanted, new = value_to_bytes(expected, "expected"), value_to_bytes(desired, "desired")
        body = msgspec.json.encode({"expected": wanted, "desired": new})
        path = f"{_path(key)}?op=compare-set"
        answer = await self._change("POST", path, f"compare_set {key!r}", body, kind=JSON)
        if answer.status == _NO_CONTENT:
            return new
        present = decode_foreign(_decode_present, answer.member("present"), _not_understood)
        return wanted if present is None else present

    async def add(self, key: str, delta: int) -> int:
        body = b"%d" % checked_number("delta", delta)
        answer = await self._change("POST", f"{_path(key)}?op=add", f"add {key!r}", body)
        return answer.read(_decode_number)

    async def check(self, keys: Sequence[str]) -> bool:
        with self._operation():
            return not await self._missing(_all(keys), "check", 0.0)

    async def delete_key(self, key: str) -> bool:
        answer = await self._change("DELETE", _path(key), f"delete_key {key!r}")
        return answer.status == _NO_CONTENT

    async def num_keys(self) -> int:
        with self._operation():
            answer = await self._requests.look(f"{names.KEYS}?limit=0", "num_keys")
            return answer.read(_decode_listing).total

    async def append(self, key: str, value: bytes | str) -> None:
        path = f"{_path(key)}?op=append"
        await self._change("POST", path, f"append {key!r}", value_to_bytes(value))

    async def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        items = [(_quoted(key), value) for key, value in checked_items(keys, values)]
        body = msgspec.json.encode({"items": items})
        await self._change("POST", f"{names.KEYS}?op=multi-set", "multi_set", body, kind=JSON)

    async def queue_push(self, key: str, value: bytes | str) -> None:
        path = f"{_path(key, names.QUEUES)}?op=push"
        await self._change("POST", path, f"queue_push {key!r}", value_to_bytes(value))

    async def queue_len(self, key: str) -> int:
        with self._operation():
            answer = await self._requests.look(_path(key, names.QUEUES), f"queue_len {key!r}")
            return answer.read(_decode_length).length

    async def list_keys(self) -> list[str]:
        found: list[str] = []
        with self._operation():
            path = asked = f"{names.KEYS}?limit={_LISTED}"
            while asked:
                listing = (await self._requests.look(asked, "list_keys")).read(_decode_listing)
                found += listing.keys
                if listing.next is not None and (not listing.keys or len(found) > _MOST_KEYS):
                    raise _not_understood("the list of keys has no end")
                asked = "" if listing.next is None else f"{path}&after={listing.next}"
        return found

    async def get(self, key: str, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        path, seconds = _path(key), self._seconds(timeout)
        with answered(seconds, "get", [key]), self._operation():
            answer = await self._requests.look(path, f"get {key!r}")
            if answer.status != _NOT_FOUND:
                return answer.body
            return (await self._values([key], "get", seconds))[0]

    async def multi_get(self, keys: Sequence[str], *, timeout: Timeout = STORE_TIMEOUT) -> list[bytes]:
        seconds = self._seconds(timeout)
        with answered(seconds, "multi_get", checked_keys(keys)), self._operation():
            return await self._values(keys, "multi_get", seconds) if keys else []

    async def wait(self, keys: Sequence[str], timeout: Timeout = STORE_TIMEOUT) -> None:
        wanted, seconds = _all(keys), self._seconds(timeout)
        with answered(seconds, "wait", keys), self._operation():
            async with self._bounded(seconds, "wait", keys) as end:
                missing = await self._missing(wanted, "wait", end)
                while missing and anyio.current_time() < end:
                    missing = await self._missing(missing, "wait", end)
            if missing:
                raise await timed_out(self, seconds, "wait", keys)

    async def queue_pop(self, key: str, block: bool = True, *, timeout: Timeout = STORE_TIMEOUT) -> bytes:
        seconds = self._seconds(timeout) if block else 0
        with answered(seconds, "queue_pop", [key]), self._operation():
            async with self._bounded(seconds, "queue_pop", [key]) as end:
                answer = await self._pop(key, end)
            if answer.status != _NOT_FOUND:
                return answer.body
            if not block:
                raise errors.StoreQueueEmptyError(f"queue {key!r} is empty", key=key)
            raise await timed_out(self, seconds, "queue_pop", [key])

    async def barrier(self, key: str, world_size: int, timeout: Timeout = STORE_TIMEOUT) -> None:
        path = f"{_path(key)}?op=barrier&world_size={checked_number('world_size', world_size)}"
        doing, name, seconds = f"barrier {key!r}", self._requests.draw_name(), self._seconds(timeout)
        with answered(seconds, "barrier", [key]), self._operation():
            async with self._bounded(seconds, "barrier", [key]) as end:
                answer = await self._change_by(end, path, doing, name)
            if answer.status != _NO_CONTENT:
                raise await barrier_timed_out(self, seconds, key, world_size)

    async def _change(
        self, verb: str, path: str, doing: str, body: bytes = b"", *, kind: str = "application/octet-stream"
    ) -> HttpAnswer:
        with self._operation():
            return await self._requests.change(verb, path, doing, body, kind=kind)

    async def _missing(self, keys: list[str], doing: str, end: float) -> list[str]:
        """Returns those of `keys` that do not exist, and have not until `end`, or earlier."""
        body = msgspec.json.encode({"keys": keys})
        answer = await self._requests.look(f"{names.KEYS}?op=check", doing, body, wait_until=end)
        return answer.read(_decode_readiness).missing

    async def _values(self, keys: Sequence[str], doing: str, seconds: float | None) -> list[bytes]:
        body = msgspec.json.encode({"keys": _all(keys)})
        path = f"{names.KEYS}?op=multi-get"
        async with self._bounded(seconds, doing, keys) as end:
            reply = (await self._requests.look(path, doing, body, wait_until=end)).read(_decode_values)
            while not reply.ready and anyio.current_time() < end:
                reply = (await self._requests.look(path, doing, body, wait_until=end)).read(_decode_values)
        if not reply.ready:
            raise await timed_out(self, seconds, doing, keys)
        if len(reply.values) != len(keys):
            raise _not_understood(f"there are {len(reply.values)} values of {len(keys)} keys")
        return [value or b"" for value in reply.values]

    async def _pop(self, key: str, end: float) -> HttpAnswer:
        queue, doing, name = _path(key, names.QUEUES), f"queue_pop {key!r}", self._requests.draw_name()
        try:
            return await self._change_by(end, f"{queue}?op=pop", doing, name)
        except anyio.get_cancelled_exc_class():  # nobody waits for this pop any more: its value is another's
            with anyio.move_on_after(GRACE, shield=True), suppress(errors.RendezvousError):
                await self._requests.change("POST", f"{queue}?op=give-back", doing, name=name)
            raise

    async def _change_by(self, end: float, path: str, doing: str, name: str) -> HttpAnswer:
        """Asks for a change until it is made, or until `end`; returns the last answer."""
        while True:
            answer = await self._requests.change("POST", path, doing, name=name, wait_until=end)
            if answer.status not in _NOT_YET or anyio.current_time() >= end:
                return answer

    @asynccontextmanager
    async def _bounded(
        self, seconds: float | None, operation: str, keys: Sequence[str]
    ) -> AsyncIterator[float]:
        """Yields the time at which `seconds` are over, and ends the block a little later.

        Raises:
            StoreTimeoutError: The block was ended.
        """
        if seconds is None:
            yield math.inf
            return
        end = anyio.current_time() + seconds
        with anyio.CancelScope(deadline=end + GRACE) as scope:
            yield end
        if scope.cancelled_caught:
            raise await timed_out(self, seconds, operation, keys)


class StoreRequests:
    """Sends requests to one server: few at a time, and again when that is safe.

    Every request that changes something has an idempotency key, so the server carries it out once, however
    often it is sent. What the key is known for ends with the server: a request that may have been carried out
    is sent again with that server's name, and another one refuses it.

    Its fields:
        _server: Which start of the server has answered last; empty: none yet.
        _turns: Taken by each request that does not wait.
        _name: What all idempotency keys begin with.
        _count: How many were drawn.
    """

    def __init__(self, client: HttpClient, read_timeout: float) -> None:
        self._client = client
        self._read_timeout = read_timeout
        self._turns = asyncio.Semaphore(MAX_REQUESTS)
        self._server = ""
        self._name = secrets.token_hex(12)
        self._count = 0

    def draw_name(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count:x}"

    async def connect(self, seconds: float) -> None:
        """Returns once the server answers, within `seconds`. Raises as `look` does."""
        await self._send("GET", f"{names.KEYS}?limit=0", b"", {}, "connect", 0.0, seconds)

    async def look(self, path: str, doing: str, body: bytes = b"", *, wait_until: float = 0.0) -> HttpAnswer:
        """Sends a request that changes nothing: a GET, or a POST of JSON if there is a body.

        Until `wait_until`, by the event loop's clock, the server may let it wait; it may end earlier.

        Raises:
            RendezvousConnectionError: There was no answer for the `read_timeout`.
            RendezvousPermissionError: The token is missing, wrong, or not good for this.
            StoreError: The server refuses the request.
        """
        verb, headers = ("POST", {"Content-Type": JSON}) if body else ("GET", {})
        return await self._send(verb, path, body, headers, doing, wait_until, self._read_timeout)

    async def change(
        self,
        verb: str,
        path: str,
        doing: str,
        body: bytes = b"",
        *,
        name: str = "",
        kind: str = "application/octet-stream",
        wait_until: float = 0.0,
    ) -> HttpAnswer:
        """Sends a request that changes something, to be carried out once under its idempotency key, `name`.

        Raises:
            RendezvousConnectionError: Also if only another server answers; it may have been carried out.
        """
        if not self._server:
            await self.connect(self._read_timeout)
        headers = {"Content-Type": kind, names.IDEMPOTENCY_HEADER: name or self.draw_name()}
        return await self._send(verb, path, body, headers, doing, wait_until, self._read_timeout)

    async def _send(
        self,
        verb: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        doing: str,
        wait_until: float,
        patience: float,
    ) -> HttpAnswer:
        may_wait = wait_until > anyio.current_time()  # and then it must not keep others from theirs
        async with nullcontext() if may_wait else self._turns:
            end, pauses = anyio.current_time() + patience, BACKOFF.start()
            server, in_doubt = self._server, False
            while True:
                began = anyio.current_time()
                wait = min(max(wait_until - began, 0.0), POLL)
                asked = f"{path}{'&' if '?' in path else '?'}wait={wait:.3f}" if wait else path
                limit = min(max(end - began, _LEAST_SECONDS), self._read_timeout) + wait
                sent = {**headers, names.SERVER_HEADER: server} if in_doubt else headers
                try:
                    answer = await self._client.request(verb, asked, body, sent, limit=limit)
                except UnansweredError as error:
                    in_doubt = in_doubt or (error.sent and names.IDEMPOTENCY_HEADER in headers)
                    end += max(min(anyio.current_time() - began, wait), 0.0)  # that was waiting, not silence
                    lasting = error.distrusted or error.foreign or error.misdirected
                    if lasting or not await pauses.sleep(until=end):
                        doubt = "; whether it was carried out is not known" if in_doubt else ""
                        said = f"{doing}: {self._client.url} could not be reached: {error}{doubt}."
                        said += " Check the address, and that the server runs"
                        where = self._client.url
                        raise errors.RendezvousConnectionError(said, endpoint=where, doing=doing) from error
                else:
                    self._server = answer.server
                    break
        _require_good(answer, doing)
        return answer


def _require_good(answer: HttpAnswer, doing: str) -> None:
    """Raises the error that the answer stands for, except for what a caller expects."""
    if answer.is_good or answer.status in _EXPECTED:
        return
    detail = f"{doing}: {answer.detail}"
    if answer.status in _DENIED:
        raise errors.RendezvousPermissionError(detail, authenticated=answer.status == 403)
    if answer.status == _FULL:
        raise errors.StoreFullError(detail, limit=getattr(answer.error(), "limit", 0))
    if answer.kind == "other-server":
        raise errors.RendezvousConnectionError(detail, doing=doing)
    raise errors.StoreError(detail)


def _not_understood(why: str) -> errors.RendezvousConnectionError:
    return errors.RendezvousConnectionError(
        f"the server's answer is not understood: {why}", doing="reading an answer"
    )


def _quoted(key: bytes) -> str:
    most = names.MAX_KEY - 1
    if len(key) > most:
        raise errors.StoreError(f"the key {key[:40]!r}... has {len(key)} bytes; at most {most} are allowed")
    return names.quote_key(key)


def _path(key: str, base: str = names.KEYS) -> str:
    return f"{base}/{_quoted(key_to_bytes(key))}"


def _all(keys: Sequence[str]) -> list[str]:
    return [_quoted(key_to_bytes(key)) for key in checked_keys(keys)]
