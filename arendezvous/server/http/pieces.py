"""Long bodies of answers: made and sent piece by piece, by turns with what the server does for others."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from arendezvous.keyspace.values import PIECE, Pieces
from arendezvous.server.http.routes import CONTEXT
from arendezvous.server.tcp.paced import UNIT, Buffer, cut

BASE64_PIECE: Final = PIECE // 4 * 3  # bytes that are a piece of base64; to be divided by 3


class PiecesBody(Payload):
    """A body of `size` bytes whose pieces, of about `PIECE` bytes, are made when it is their turn.

    Values of the store that it is made of (`reading`) count there until it has been sent; it takes `kept`
    bytes besides. For HEAD no piece is made.
    """

    def __init__(
        self,
        request: web.Request,
        pieces: Iterable[Buffer],
        size: int,
        content_type: str,
        *,
        reading: Iterable[bytes | Pieces] = (),
        kept: int = 0,
    ) -> None:
        super().__init__(pieces, content_type=content_type)
        context = request.app[CONTEXT]
        self.kept = kept
        self._pieces = pieces
        self._size = size
        self._turns = context.shared.turns
        self._entries = context.keys.keyspace.entries
        self._reading = [value for value in reading if len(value) > PIECE]

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Gives the body as text, as every `Payload` does."""
        return b"".join(self._pieces).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Sends the body; waits while the client does not read, and for its turns in between."""
        for value in self._reading:
            self._entries.begin_reading(value)
        try:
            for piece in self._pieces:
                await self._turns.wait(1 + len(piece) // UNIT)
                await writer.write(piece)
        finally:
            for value in self._reading:
                self._entries.end_reading(value)


def send_in_pieces(request: web.Request, response: web.Response) -> int:
    """Has the body of an answer sent piece by piece, if it is long.

    Returns the bytes that are kept for it until it has been sent, besides those that have been written.
    """
    body = response.body
    if isinstance(body, bytes) and len(body) > PIECE:
        content_type = response.headers["Content-Type"]
        body = response.body = PiecesBody(request, cut(body), len(body), content_type, kept=len(body))
    return body.kept if isinstance(body, PiecesBody) else 0


def in_base64(value: bytes | Pieces) -> Iterator[bytes]:
    """Gives a value in base64, piece by piece."""
    if isinstance(value, bytes) and len(value) <= BASE64_PIECE:
        yield base64.b64encode(value)
        return
    rest = b""
    for piece in cut(value, BASE64_PIECE):
        some = rest + piece if rest else piece
        whole = len(some) // 3 * 3
        rest = bytes(some[whole:])
        yield base64.b64encode(some[:whole])
    if rest:
        yield base64.b64encode(rest)


def base64_size(value: bytes | Pieces) -> int:
    """The bytes of a value in base64."""
    return (len(value) + 2) // 3 * 4
