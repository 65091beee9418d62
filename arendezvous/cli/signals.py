"""SIGINT and SIGTERM as the orderly end of a command."""

from __future__ import annotations

import asyncio
import signal
from types import TracebackType
from typing import Final, Self

import anyio

ENDING: Final = (signal.SIGINT, signal.SIGTERM)


class CancelledBySignals:
    """A block that SIGINT and SIGTERM cancel, and that swallows that cancellation; for the main thread.

    Attributes:
        signal: Which signal has come; None while none has.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._scope = anyio.CancelScope()

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it; 0 if none has come."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> Self:
        self._scope.__enter__()
        for number in ENDING:
            asyncio.get_running_loop().add_signal_handler(number, self._end, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for number in ENDING:
            asyncio.get_running_loop().remove_signal_handler(number)
        return bool(self._scope.__exit__(kind, error, trace))

    def _end(self, number: signal.Signals) -> None:
        self.signal = number
        self._scope.cancel()
