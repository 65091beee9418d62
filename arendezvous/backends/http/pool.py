"""The connections of one event loop to HTTP doors, kept for whoever needs one next."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import MutableMapping
from typing import Final
from urllib.parse import unquote, urlsplit
from weakref import WeakKeyDictionary

import anyio

from arendezvous.backends.http.connection import HttpConnection
from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.credentials import Credentials
from arendezvous.net.endpoint import join_host_port
from arendezvous.wire.http.http1 import encode_request

MAX_IDLE: Final = 30.0  # seconds: servers and proxies close what is idle for a minute or so
CONNECT_TIMEOUT: Final = 5.0
MAX_REQUESTS: Final = 64  # under way at once: more would need more connections, and be no faster


class Proxy:
    """A proxy for HTTP.

    Args:
        url: Its URL, ``http://[user:password@]host[:port]``.

    Raises:
        RendezvousSettingsError: It is none.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        expected = "a URL such as http://host:3128, or no proxy for this server (NO_PROXY)"
        if parts.scheme != "http" or not parts.hostname:
            raise RendezvousSettingsError.of("the proxy in the environment", _without_user(url), expected)
        self.host, self.port = parts.hostname, parts.port or 80
        self.headers: dict[str, str] = {}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self.headers["Proxy-Authorization"] = f"Basic {base64.b64encode(user).decode()}"


class Origin:
    """A server, and how to get there.

    Attributes:
        host: Its host.
        port: Its port.
        tls: Whether to speak TLS.
        proxy: The proxy on the way; None: there is none.
    """

    def __init__(self, url: str, proxy: str | None) -> None:
        parts = urlsplit(url)
        self.url = url
        self.host = parts.hostname or ""
        self.tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.proxy = None if proxy is None else Proxy(proxy)


class HttpPool:
    """The connections for one set of credentials.

    Args:
        credentials: The TLS settings.

    Attributes:
        users: How many use it.
    """

    def __init__(self, credentials: Credentials) -> None:
        self.users = 0
        self._requests = asyncio.Semaphore(MAX_REQUESTS)
        self._tls = credentials.fresh_context()
        self._server_name = credentials.server_name
        self._plain: ssl.SSLContext | None = None
        self._idle: dict[str, list[HttpConnection]] = {}

    async def begin_request(self, due: float) -> None:
        """Waits until there are few enough requests under way; `end_request` has to follow.

        Args:
            due: When that has taken too long, by the loop's clock.

        Raises:
            TimeoutError: It has.

        Cancellation: safe.
        """
        if self._requests.locked():
            with anyio.fail_after(due - anyio.current_time()):
                await self._requests.acquire()
        else:
            await self._requests.acquire()  # at once

    def end_request(self) -> None:
        """Lets the next request begin."""
        self._requests.release()

    async def take(self, origin: Origin, due: float) -> HttpConnection:
        """Takes an idle connection, or makes one; the caller gives it back.

        Args:
            origin: The server.
            due: When that has taken too long, by the loop's clock.

        Raises:
            OSError: There is no connection to be had.
            TimeoutError: Nor after 5 s, or when it was due.

        Cancellation: safe.
        """
        idle = self._idle.get(origin.url, [])
        now = asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if connection.is_reusable and now - connection.idle_since < MAX_IDLE:
                return connection
            connection.abort("it was idle for too long")
        due = min(due, now + CONNECT_TIMEOUT)
        with anyio.fail_after(due - now):
            return await self._connect(origin, due)

    def give_back(self, origin: Origin, connection: HttpConnection) -> None:
        """Keeps a connection for the next request, if it is good for one."""
        if connection.is_reusable:
            self._idle.setdefault(origin.url, []).append(connection)
        else:
            connection.abort("it cannot be used again")

    def close(self) -> None:
        """Closes the connections that are idle."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort("it is not needed any more")
        self._idle.clear()

    async def _connect(self, origin: Origin, due: float) -> HttpConnection:
        loop = asyncio.get_running_loop()
        context = self._context() if origin.tls else None
        name = self._server_name or origin.host
        proxy = origin.proxy
        if proxy is None:
            server_hostname = name if context is not None else None
            _, connection = await loop.create_connection(
                HttpConnection, origin.host, origin.port, ssl=context, server_hostname=server_hostname
            )
            return connection
        _, connection = await loop.create_connection(HttpConnection, proxy.host, proxy.port)
        if context is None:
            return connection
        where = join_host_port(origin.host, origin.port)
        request = encode_request("CONNECT", where, {"Host": where, **proxy.headers}, b"")
        await connection.exchange("HEAD", request, due)  # the answer is of the same form: it has no body
        if connection.status != 200:
            connection.abort("the proxy refuses")
            raise ConnectionError(f"the proxy answers CONNECT with the status {connection.status}")
        await connection.start_tls(context, name)
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is not None:
            return self._tls.get()
        if self._plain is None:
            self._plain = ssl.create_default_context()
        return self._plain


_pools: Final[MutableMapping[asyncio.AbstractEventLoop, dict[Credentials, HttpPool]]] = WeakKeyDictionary()


def open_pool(credentials: Credentials) -> HttpPool:
    """The pool of this event loop for `credentials`; `close_pool` ends the use of it."""
    pools = _pools.setdefault(asyncio.get_running_loop(), {})
    pool = pools.get(credentials)
    if pool is None:
        pool = pools[credentials] = HttpPool(credentials)
    pool.users += 1
    return pool


def close_pool(credentials: Credentials, pool: HttpPool) -> None:
    """Ends one use of a pool; with the last, its connections are closed."""
    pool.users -= 1
    if pool.users == 0:
        pool.close()
        _pools[asyncio.get_running_loop()].pop(credentials, None)


def _without_user(url: str) -> str:
    return url.rpartition("@")[2]
