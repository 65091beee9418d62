"""The examples of the documents, run as a reader would run them."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.kit import ROOT
from tests.kit.script_kit import script

EXAMPLES = ROOT / "docs" / "examples"


async def test_the_orchestrator_keeps_two_runs_in_one_loop() -> None:
    async with script("-W", "error", str(EXAMPLES / "orchestrator.py")) as program:
        assert await program.end() == 0, program.output
    said = program.output.splitlines()
    assert said[:3] == ["t0: round 1, world size 2", "t1: round 1, world size 2", "t2 left"]
    assert sorted(line.split(": ")[0] for line in said[3:]) == ["e0", "e1"]


async def test_a_job_service_starts_watches_and_closes_fifty_runs_and_is_in_none_of_them() -> None:
    async with script("-W", "error", str(EXAMPLES / "job_service.py")) as program:
        assert await program.end() == 0, program.output
    assert program.output.splitlines() == ["50 jobs have met", "50 are closed"]


async def test_a_trainer_and_its_generators_go_on_without_one_from_the_version_that_they_have() -> None:
    async with script("-W", "error", str(EXAMPLES / "rl.py")) as program:
        assert await program.end() == 0, program.output
    said = program.output.splitlines()
    assert said[:2] == [
        "trainer: http://g0, http://g1, http://g2 from version 0",
        "trainer: http://g0, http://g1 from version 2",
    ]  # fmt: skip
    assert sorted(said[2:]) == [f"{name}: has worked with version 3" for name in ("g0", "g1")]


async def test_a_router_sends_nothing_to_who_is_not_ready() -> None:
    async with script("-W", "error", str(EXAMPLES / "router.py")) as program:
        assert await program.end() == 0, program.output
    assert program.output.splitlines() == ["version 1 goes to r0, r1, r2", "version 2 goes to r0, r1"]


async def test_nodes_restore_the_step_that_all_of_them_have() -> None:
    async with script("-W", "error", str(EXAMPLES / "checkpoint.py")) as program:
        assert await program.end() == 0, program.output
    assert sorted(program.output.splitlines()) == [f"{name}: restores step 100" for name in "abc"]


async def test_programs_without_torch_add_up_what_each_of_them_found(free_port: int) -> None:
    command = ("-W", "error", str(EXAMPLES / "no_torch.py"), f"tcp://127.0.0.1:{free_port}", "3")
    async with script(*command) as a, script(*command) as b, script(*command) as c:
        assert [*await asyncio.gather(a.end(), b.end(), c.end())] == [0, 0, 0], a.output + b.output + c.output
    assert sorted(filter(None, a.said + b.said + c.said)) == [
        f"rank {rank} of 3: 5050 in all\n" for rank in range(3)
    ]


def test_the_example_without_torch_does_not_import_it() -> None:
    path = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})"
    code = f"{path}; import no_torch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=False).returncode == 0


async def test_synchronous_training_scripts_sum_over_all_nodes(free_port: int) -> None:
    pytest.importorskip("torch")
    command = ("-W", "ignore", str(EXAMPLES / "train_sync.py"), f"tcp://127.0.0.1:{free_port}", "2")
    async with script(*command) as a, script(*command) as b:
        assert [*await asyncio.gather(a.end(), b.end())] == [0, 0], a.output + b.output
    for rank in (0, 1):
        assert f"rank {rank} of 2: the sum is 3\n" in a.said + b.said
