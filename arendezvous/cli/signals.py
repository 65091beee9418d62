"""SIGINT and SIGTERM as the orderly end of a command."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import anyio

ENDING: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """Why a block has ended.

    Attributes:
        signal: Which signal has come; None while none has.
    """

    signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it; 0 if none has come."""
        return 0 if self.signal is None else 128 + self.signal


@contextmanager
def cancelled_by_signals() -> Iterator[Stop]:
    """Cancels the block on SIGINT and SIGTERM, and swallows that cancellation; for the main thread."""
    loop, stop = asyncio.get_running_loop(), Stop()
    with anyio.CancelScope() as scope:

        def end(number: signal.Signals) -> None:
            stop.signal = number
            scope.cancel()

        for number in ENDING:
            loop.add_signal_handler(number, end, number)
        try:
            yield stop
        finally:
            for number in ENDING:
                loop.remove_signal_handler(number)
