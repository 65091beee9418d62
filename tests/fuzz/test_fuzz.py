"""Every target stands a few inputs, the same in each run; ``python -m tests.fuzz`` finds others."""

from __future__ import annotations

import pytest

from tests.fuzz.runner import Target, run
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_whatever_comes_from_outside_is_understood_or_refused(target: Target) -> None:
    assert run(target, examples=40) >= 40
