"""Answers of the members of an etcd cluster over HTTP: whole ones, streams of lines, and none at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import aiohttp
import anyio

from arendezvous.net.http_client import FAULTS

OK: Final = 200
BAD_REQUEST: Final = 400
NOT_FOUND: Final = 404
SERVER_ERROR: Final = 500

MAX_REPLY: Final = 1 << 28


@dataclass(eq=False)
class EtcdMember:
    """One member, as a client sees it.

    Attributes:
        url: Its base URL.
        gateway: The index of the prefix of etcd v3's gateway that it answers to, as far as is known.
    """

    url: str
    gateway: int = 0


class EndpointTrouble(Exception):
    """An endpoint did not do what it was asked.

    Attributes:
        done: Whether it may have done it all the same.
        final: Whether asking again later is useless.
    """

    def __init__(self, said: str, *, done: bool = False, final: bool = False) -> None:
        super().__init__(said)
        self.done = done
        self.final = final


def no_reply(said: str) -> EndpointTrouble:
    """Builds the error for what etcd would not send."""
    return EndpointTrouble(f"sent what is no reply of etcd ({said})", done=True)


class EtcdAnswer(NamedTuple):
    """An answer to a request; of a stream the body is still to come from the `response`.

    Whoever gets that closes it; it is None if the body is here.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]
    response: aiohttp.ClientResponse | None = None

    @property
    def told(self) -> str:
        """The status, and how the body begins, for an error that quotes them."""
        excerpt = self.body[:80].decode(errors="backslashreplace").strip()
        return f"answers with status {self.status} and {excerpt!r}"


class Stream:
    """Lines that an endpoint sends for as long as it likes.

    After `patience` seconds without a byte it is asked whether it lives, by `ask`, which raises
    `EndpointTrouble` if not.

    Its fields:
        _buffer: What has come and has not been returned.
        _searched: How many bytes of it are known to hold no end of a line.
    """

    def __init__(
        self,
        endpoint: EtcdMember,
        response: aiohttp.ClientResponse,
        patience: float,
        ask: Callable[[], Awaitable[None]],
    ) -> None:
        self.endpoint = endpoint
        self._response = response
        self._patience = patience
        self._ask = ask
        self._buffer = bytearray()
        self._searched = 0

    @property
    def ready(self) -> bool:
        """Whether a whole line has come that `line` has not returned yet."""
        return self._buffer.find(b"\n") >= 0

    async def line(self) -> bytes:
        """Returns the next line; `EndpointTrouble`: the stream is broken. Cancelling loses nothing."""
        while (at := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched > MAX_REPLY:
                raise EndpointTrouble(f"sent a message of more than {MAX_REPLY} bytes")
            try:
                with anyio.move_on_after(self._patience) as scope:
                    chunk = await self._response.content.readany()
            except FAULTS as error:
                raise EndpointTrouble(f"broke off ({str(error) or type(error).__name__})") from error
            if scope.cancelled_caught:
                await self._ask()
            elif not chunk:
                raise EndpointTrouble("ended the stream")
            else:
                self._buffer += chunk
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        self._searched = 0
        return line

    def close(self) -> None:
        """Ends the stream."""
        self._response.close()
