"""The event loops to measure with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


def runner(loop: str) -> asyncio.Runner:
    """A runner with asyncio's own loop, or with uvloop's."""
    factory: Callable[[], Any] | None = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    return asyncio.Runner(loop_factory=factory)
