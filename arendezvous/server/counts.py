"""Counts what a server does: plain integers, as cheap as can be."""

from __future__ import annotations


class ProtocolCounts:
    """The traffic of one protocol since the server was started.

    Attributes:
        opened: Connections that began.
        closed: Connections that ended.
        received: Bytes that came in, before decoding and after decryption.
        sent: Bytes that were handed to the transport.
    """

    __slots__ = ("closed", "opened", "received", "sent")

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.received = 0
        self.sent = 0


class Counts:
    """The traffic of all protocols.

    Attributes:
        native: Native sessions.
        c10d: Clients of the store that speak the protocol of torch's TCPStore.
        http: HTTP.
    """

    __slots__ = ("c10d", "http", "native")

    def __init__(self) -> None:
        self.native = ProtocolCounts()
        self.c10d = ProtocolCounts()
        self.http = ProtocolCounts()
