"""Fences: short texts that rise with every round, so that who was in an earlier one can be told from it.

A fence is a round's incarnation and number, each in hexadecimal digits behind the number of these, which is a
digit, too. So fences are compared as texts, by whatever can compare texts: a database, an object store.
"""

from __future__ import annotations

from typing import Final

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError

_EXPECTED: Final = "a fence, as info.fence has it, such as '11.10'"


def fence_of(incarnation: int, round_: int) -> str:
    """Makes the fence of a round."""
    return ".".join(f"{len(digits):x}{digits}" for digits in (f"{incarnation:x}", f"{round_:x}"))


def is_stale(fence: str, *, than: str) -> bool:
    """Tells whether `fence` is that of an earlier round than another fence of the same run.

    Whoever guards something that only the present round may change keeps the highest fence that it has seen,
    and refuses who comes with one that is stale.

    Args:
        fence: The one that is judged.
        than: The one that it is compared with.

    Raises:
        RendezvousSettingsError: One of them is no fence.
    """
    return _checked("fence", fence) < _checked("than", than)


def _checked(name: str, fence: str) -> str:
    if not isinstance(fence, str):
        raise RendezvousTypeError.of(name, fence, _EXPECTED)
    parts = fence.split(".")
    try:
        numbers = [int(part[1:], 16) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != len(("incarnation", "round")) or fence_of(*numbers) != fence:
        raise RendezvousSettingsError.of(name, fence, _EXPECTED)
    return fence
