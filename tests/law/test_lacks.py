"""Status and errors say what a round lacks, of which role, and who is of which."""

from __future__ import annotations

import pytest

from arendezvous.law import machine
from arendezvous.law.operations import Join
from arendezvous.law.rules import Brought, Role, RoundRules
from arendezvous.law.seats import lacking
from arendezvous.law.state import NodeDesc, RendezvousState, RunSettings
from arendezvous.law.status import run_status, timeout_text

ROLES = RunSettings(3, 65, rules=RoundRules(roles={"trainer": Role(1), "generator": Role(2, 64)}))
UNITS = RunSettings(8, 16, rules=RoundRules(node_unit=4))
RACKS = RunSettings(8, 16, rules=RoundRules(node_unit=4, unit_label=True))


def descs(*kinds: str) -> list[NodeDesc]:
    """One node for each: its role, or its label after a slash."""
    made = []
    for number, kind in enumerate(kinds):
        role, _, label = kind.partition("/")
        made.append(NodeDesc(f"n{number}", label=label, brings=Brought(role)))
    return made


@pytest.mark.parametrize(
    ("settings", "kinds", "lacks"),
    [
        (RunSettings(3, 4), ["", ""], {"": 1}),
        (RunSettings(3, 4), ["", "", ""], {}),
        (ROLES, [], {"trainer": 1, "generator": 2}),
        (ROLES, ["generator", "generator", "generator"], {"trainer": 1}),
        (ROLES, ["trainer", "generator"], {"generator": 1}),
        (ROLES, ["trainer", "generator", "generator"], {}),
        (UNITS, [""] * 6, {"": 2}),
        (UNITS, [""] * 8, {}),
        (RACKS, ["/x", "/x", "/x", "/y", "/y", "/z"], {"": 3}),
        (RACKS, ["/x"] * 4 + ["/y"] * 2, {"": 2}),
        (RunSettings(1, 2, rules=RoundRules(roles={"a": Role(0, 2)})), [], {"a": 1}),
    ],
)
def test_what_is_lacking_is_told_by_role(
    settings: RunSettings, kinds: list[str], lacks: dict[str, int]
) -> None:
    assert lacking(settings, descs(*kinds)) == lacks


def test_status_and_time_outs_say_which_role_lacks_whom() -> None:
    state = RendezvousState(ROLES)
    for desc in (NodeDesc("g", brings=Brought("generator", 4)), NodeDesc("h", brings=Brought("generator"))):
        machine.apply(state, Join(desc, ROLES), 0.0)
    status = run_status("job", state, 12.0)
    assert str(status) == (
        "run 'job': round 0 gathers 3 to 65 nodes, 2 came (role trainer: 1 more needed): g (generator,"
        " 4 slots, 12 s), h (generator, 12 s)"
    )
    text = timeout_text(status, NodeDesc("g", brings=Brought("generator", 4)), 3, 10.0)
    assert "missing 1 (role trainer: 1 more needed). Start the missing nodes" in text


def test_status_says_that_rounds_have_whole_units() -> None:
    state = RendezvousState(UNITS)
    machine.apply(state, Join(NodeDesc("a"), UNITS), 0.0)
    assert "gathers 8 to 16 nodes in units of 4, 1 came (7 more needed)" in str(run_status("job", state, 0.0))
