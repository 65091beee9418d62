"""The common parts of the checks of a store."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from typing import Final, TypeVar

Refusal = TypeVar("Refusal", bound=Exception)

SOON: Final = 0.05
"""Seconds in which something that must not happen would have happened."""

LONG: Final = 30.0
"""Seconds after which something that must happen will not."""


def fresh() -> str:
    """A key that nobody has used."""
    return f"check-{secrets.token_hex(6)}"


async def refused(kind: type[Refusal], operation: Awaitable[object]) -> Refusal:
    """Awaits `operation` and returns the error of this kind that it raises.

    Raises:
        AssertionError: It raised none.
    """
    try:
        result = await operation
    except kind as error:
        return error
    raise AssertionError(f"{result!r} was returned, but {kind.__name__} should have been raised")
