"""All targets, by what they need: nothing, a server of ours, or a client of ours."""

from __future__ import annotations

from typing import Final

from tests.fuzz import answers, listeners, parsers

TARGETS: Final = (*parsers.TARGETS, *listeners.TARGETS, *answers.TARGETS)
