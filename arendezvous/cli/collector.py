"""The garbage collector of a process that serves, or holds many nodes at once."""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (10_000, 50, 50)  # allocations, and collections of the generation before


def tune_collector() -> None:
    """Has the collector look less often at what stays: what is loaded by now never, the rest more rarely.

    A server's objects live as long as its members, and are freed by their reference counts. With the
    defaults, which suit programs that make many cycles, a tenth to a quarter of what many who connect and
    join cost goes into looking for some.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
