"""What the doctor says of a run whose record others have broken."""

from __future__ import annotations

import pytest

import arendezvous as ar
from arendezvous.backends.shared_state.compare_and_set import CompareAndSetBackend
from arendezvous.doctor.checks import Level, check_run


@pytest.mark.parametrize("state", [b"not base64", b"\xff\xfe", b"gASVAA==", b"Y3Bvc2l4CnN5c3RlbQo="])
async def test_a_record_that_is_not_understood_is_shown_with_what_to_do(state: bytes) -> None:
    async with ar.MemoryStore() as store:
        await store.set("torch.rendezvous.job", state)
        check = await check_run(CompareAndSetBackend.over(store, "job"))

    assert check.level is Level.FAILED
    assert "the rendezvous state" in check.found
    assert "use another run id" in check.advice
