"""The benchmark of observers tells when all of them know of a change."""

from __future__ import annotations

import json

from tests.kit.cli_kit import running


async def test_few_observers_are_told_of_each_change_and_see_it() -> None:
    async with running(
        "observers", "--count", "3", "--changes", "2", "--json", module="benchmarks"
    ) as command:
        result = await command.end()
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [len(values) for values in found.values()] == [2, 2]
    assert all(seconds > 0 for values in found.values() for seconds in values)
