"""How long all members take to read a roster is measured, and how long a turn of the server's loop is."""

from __future__ import annotations

from tests.kit.cli_kit import running


async def test_the_rosters_of_a_few_members_are_read_and_the_turns_are_told() -> None:
    short = ("--nodes", "70", "--size", "100", "--repeat", "1")
    async with running("roster", *short, module="benchmarks") as command:
        result = await command.end()
    assert "70 members with 100 B each have all 70 of them in" in result.out
    assert "its longest turn: " in result.out
