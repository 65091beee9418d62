"""Rounds of roles and of whole units: who is let in, who is a spare, and which rank each has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import Phase as HypothesisPhase
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from arendezvous.errors import RendezvousError, RendezvousSettingsError
from arendezvous.law import machine
from arendezvous.law.events import LawEvent, NodePromoted, RoundCompleted
from arendezvous.law.operations import Drain, Join, Leave, Tick
from arendezvous.law.rules import Brought, Role, RoundRules
from arendezvous.law.state import Cause, NodeDesc, Phase, RendezvousState, RunSettings
from tests.kit import law_invariants as inv
from tests.kit.law_explorer import Scope, explore
from tests.kit.law_world import Action, World

TRAINERS: Any = {"trainer": Role(1), "generator": Role(1, 3)}


def ruled(least: int, most: int, last_call: float = 0.0, policy: str = "sticky", **rules: Any) -> RunSettings:
    return RunSettings(least, most, last_call, 2, 1, 1, policy, RoundRules(**rules))


def of_roles(last_call: float = 0.0, policy: str = "sticky", unit: int = 1, **roles: Role) -> RunSettings:
    least = max(1, sum(role.min_nodes for role in roles.values()))
    return ruled(
        least, sum(role.most for role in roles.values()), last_call, policy, roles=roles, node_unit=unit
    )


class Run:
    """A run by the law, at time 0 unless it is told otherwise."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.state = RendezvousState(settings)
        self.descs: dict[str, NodeDesc] = {}
        self.now = 0.0

    def join(self, *names: str, label: str = "", **brings: Any) -> list[LawEvent]:
        """Has nodes join, or join again; of a name like ``trainer-1`` the role is what is before the dash."""
        events = []
        for name in names:
            role = name.partition("-")[0] if self.settings.agreed.roles else ""
            if name not in self.descs or label or brings:
                self.descs[name] = NodeDesc(name, label=label, brings=Brought(role, **brings))
            after = (self.state.incarnation, self.state.round - (not self.state.complete))
            events += self.apply(Join(self.descs[name], self.settings, after))
        return events

    def apply(self, operation: Any) -> list[LawEvent]:
        events = machine.apply(self.state, operation, self.now)
        inv.check_state(self.state, self.now)
        return events

    def wait(self, seconds: float) -> list[LawEvent]:
        self.now += seconds
        for node in self.state.nodes:
            self.state.last_heartbeats[node] = self.now
        return self.apply(Tick())

    @property
    def order(self) -> list[str]:
        """The members, in rank order."""
        assert self.state.complete
        return sorted(self.state.participants, key=self.state.participants.__getitem__)

    @property
    def spares(self) -> list[str]:
        return list(self.state.redundancy_list)


def test_a_round_of_roles_has_one_block_of_ranks_for_each_in_their_order() -> None:
    run = Run(of_roles(**TRAINERS))
    run.join("generator-1", "generator-2")
    assert not run.state.complete, "no round without a trainer"
    run.join("trainer-1")
    assert run.order == ["trainer-1", "generator-1", "generator-2"]
    shares = [machine.view(run.state, node, 0.0).share for node in run.order]
    assert [(s.role, s.role_rank, s.role_size) for s in shares if s is not None] == [
        ("trainer", 0, 1), ("generator", 0, 2), ("generator", 1, 2),
    ]  # fmt: skip


def test_a_round_is_complete_at_once_when_every_role_is_full_and_not_before() -> None:
    run = Run(of_roles(30.0, **TRAINERS))
    run.join("trainer-1", "generator-1", "generator-2")
    assert (run.state.complete, run.state.deadline) == (False, 30.0)
    run.join("generator-3")
    assert run.state.complete


def test_whoever_comes_for_a_full_role_is_a_spare_of_that_role_alone() -> None:
    run = Run(of_roles(**TRAINERS))
    run.join("trainer-1", "generator-1", "trainer-2", "generator-2")
    assert (run.spares, list(run.state.wait_list)) == (["trainer-2"], ["generator-2"])
    run.apply(Leave("generator-1"))
    assert run.spares == ["trainer-2"], "a trainer takes no generator's place"
    run.apply(Leave("trainer-1"))
    assert run.order == ["trainer-2", "generator-2"]


def test_nobody_gets_a_rank_while_a_role_lacks_its_least() -> None:
    run = Run(of_roles(**TRAINERS))
    run.join("trainer-1", "generator-1")
    run.apply(Leave("trainer-1", cause=Cause.FAILED))
    run.join("generator-1", "generator-2")
    assert run.state.phase("generator-1") is run.state.phase("generator-2") is Phase.GATHERING
    run.join("trainer-2")
    assert run.order == ["trainer-2", "generator-1", "generator-2"]


def test_a_rank_is_kept_where_it_lies_in_the_block_of_its_role() -> None:
    run = Run(of_roles(trainer=Role(1, 2), generator=Role(1, 4)))
    run.join("trainer-1", "generator-1")
    run.join("generator-2", "generator-3", "trainer-1", "generator-1")
    assert run.order == ["trainer-1", "generator-1", "generator-2", "generator-3"]
    run.apply(Leave("generator-1"))
    run.join("trainer-2", "trainer-1", "generator-2", "generator-3")
    assert run.order == ["trainer-1", "trainer-2", "generator-2", "generator-3"]


@pytest.mark.parametrize(
    ("settings", "desc", "said"),
    [
        (
            of_roles(**TRAINERS),
            NodeDesc("x", brings=Brought("cook")),
            "'cook', .* trainer, generator",
        ),
        (of_roles(**TRAINERS), NodeDesc("x"), "role is '', but must be one of trainer, generator"),
        (RunSettings(1, 2), NodeDesc("x", brings=Brought("cook")), "role is 'cook', .* left out"),
        (RunSettings(1, 2), NodeDesc("x", brings=Brought(facts={"a": 1})), "facts is .* left out"),
        (ruled(1, 2, facts={"step": "max"}), NodeDesc("x"), r"facts\['step'\] is 'missing'"),
        (ruled(1, 2, facts={"a": "max"}), NodeDesc("x", brings=Brought(facts={"a": True})), "finite number"),
        (ruled(1, 2, facts={"a": "max"}), NodeDesc("x", brings=Brought(facts={"a": 2**53 + 1})), "2\\*\\*53"),
        (ruled(1, 2, facts={"a": "all"}), NodeDesc("x", brings=Brought(facts={"a": 1})), "a bool"),
        (ruled(1, 2, facts={"a": "same"}), NodeDesc("x", brings=Brought(facts={"a": "x" * 2000})), "1024"),
        (ruled(1, 2, facts={"a": "max"}), NodeDesc("x", brings=Brought(facts={"a": 1, "b": 1})), "agrees: a"),
    ],
)
def test_who_does_not_bring_what_the_run_needs_is_told_what_that_is(
    settings: RunSettings, desc: NodeDesc, said: str
) -> None:
    state = RendezvousState(settings)
    with pytest.raises(RendezvousSettingsError, match=said):
        machine.apply(state, Join(desc, settings), 0.0)
    assert not state.nodes


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ruled(1, 5, roles={"a": Role(2, 3)}), "min_nodes is 1, but must be left out, or 2"),
        (lambda: ruled(2, 5, roles={"a": Role(2, 3)}), "max_nodes is 5, but must be left out, or 3"),
        (lambda: of_roles(policy="given", a=Role(1)), "rank_policy is 'given'"),
        (lambda: ruled(1, 1, node_unit=2), "node_unit is 2, but must be a number of which 1 to 1 of nodes"),
        (lambda: of_roles(unit=4, a=Role(4), b=Role(1, 3)), "of which 1 to 3 of role 'b' can be a multiple"),
        (lambda: ruled(1, 2, unit_label=True), "unit_label is True"),
        (lambda: RoundRules(roles={"a": Role(2, 1)}), "role 'a'"),
        (lambda: RoundRules(roles={"": Role(1)}), "role is ''"),
        (lambda: Brought(slots=0), "slots is 0"),
        (lambda: Brought(data=b"{"), "data is .* must be JSON"),
        (lambda: Brought(data=b"\xff"), "data is .* must be JSON"),
        (lambda: Brought(data=b'"' + b"x" * 4095 + b'"'), "4097 bytes"),
    ],
)
def test_rules_that_cannot_be_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(RendezvousSettingsError, match=said):
        make()


def test_roles_in_another_order_are_another_agreement() -> None:
    one, other = of_roles(a=Role(1), b=Role(1)), of_roles(b=Role(1), a=Role(1))
    run = Run(one)
    run.join("a-1")
    with pytest.raises(RendezvousSettingsError, match=r"^roles is "):
        machine.apply(run.state, Join(NodeDesc("b-1", brings=Brought("b")), other), 0.0)


def test_a_world_is_a_multiple_of_the_unit_and_who_is_over_is_a_spare() -> None:
    run = Run(ruled(2, 8, 5.0, node_unit=2))
    run.join("a", "b", "c")
    events = run.wait(5.0)
    assert (run.order, run.spares) == (["a", "b"], ["c"])
    assert NodePromoted("c", Phase.REDUNDANT) in events
    assert run.join("d") != []
    assert (run.spares, list(run.state.wait_list)) == ([], ["c", "d"]), "they are a unit together"
    run.join("a", "b")
    events = run.wait(5.0)
    assert (run.order, events[-1]) == (["a", "b", "c", "d"], RoundCompleted(1, 4))


def test_members_are_not_asked_to_meet_for_less_than_a_unit() -> None:
    run = Run(ruled(4, 8, node_unit=4))
    run.join("a", "b", "c", "d")
    for name in "efg":
        run.join(name)
        assert not run.state.wait_list
    run.join("h")
    assert len(run.state.wait_list) == 4


def test_spares_that_make_no_unit_do_not_have_members_wait_for_a_last_call() -> None:
    run = Run(ruled(2, 8, 30.0, node_unit=2))
    run.join("a", "b", "c")
    run.wait(30.0)
    assert run.spares == ["c"]
    run.join("a", "b")
    assert (run.state.round, run.order, run.spares) == (1, ["a", "b"], ["c"])


def test_units_of_a_label_stand_together_and_where_they_stood() -> None:
    run = Run(ruled(2, 6, 5.0, node_unit=2, unit_label=True))
    run.join("a", label="x")
    run.join("b", label="y")
    run.join("c", label="x")
    run.join("d", label="y")
    run.join("e", label="z")
    run.wait(5.0)
    assert (run.order, run.spares) == (["a", "c", "b", "d"], ["e"])
    run.apply(Leave("a"))
    run.join("f", label="x")
    assert list(run.state.wait_list) == ["f"], "it makes the broken unit whole again"
    run.join("b", "c", "d")
    run.wait(5.0)
    assert run.order == ["f", "c", "b", "d"]


def test_a_label_that_lost_more_than_it_keeps_gives_way_to_another() -> None:
    run = Run(ruled(2, 4, node_unit=2, unit_label=True))
    run.join("a", label="x")
    run.join("b", label="y")
    run.join("c", label="x")
    run.join("d", label="y")
    assert run.order == ["a", "c"]
    assert list(run.state.wait_list) == ["b", "d"]
    run.apply(Drain("a", 10.0))
    run.join("b", "d", "c")
    assert run.order == ["b", "d"]
    assert run.spares == ["c"]


def test_a_member_may_come_back_in_another_role_and_with_other_data() -> None:
    run = Run(of_roles(5.0, a=Role(1, 2), b=Role(0, 2)))
    run.join("a-1", "a-2")
    run.wait(5.0)
    run.descs["a-2"] = NodeDesc("a-2", brings=Brought("b", 4, b"[1]"))
    run.join("a-1", "a-2")
    share = machine.view(run.state, "a-2", 0.0).share
    assert share is not None
    assert (run.order, share.role, share.first_slot, share.total_slots) == (["a-1", "a-2"], "b", 1, 5)
    run.descs["a-2"] = NodeDesc("a-2", brings=Brought("cook"))
    with pytest.raises(RendezvousError, match="cook"):
        run.join("a-2")
    assert run.state.phase("a-2") is Phase.MEMBER


def test_what_is_brought_is_in_the_digest() -> None:
    def digest(*brings: Brought | None) -> str:
        run = Run(RunSettings(2, 2))
        for name, brought in zip("ab", brings, strict=True):
            run.apply(Join(NodeDesc(name, brings=brought), run.settings))
        return run.state.digest

    plain = digest(None, None)
    kinds: Sequence[Brought] = (Brought(slots=2), Brought(data=b"1"), Brought(data=b"2"), Brought(slots=3))
    assert len({plain, *(digest(None, one) for one in kinds), *(digest(one, None) for one in kinds)}) == 9


SCOPES = [
    (
        Scope("a trainer and one to two generators", of_roles(1.0, t=Role(1), g=Role(1, 2)),
              ("join", "leave", "cut", "look", "pass", "drain"), 3, nodes="abcd",
              bring={"a": Brought("t"), "b": Brought("g"), "c": Brought("g"), "d": Brought("t")},
              start=tuple(Action("join", node) for node in "abc")),
        200,
    ),
    (
        Scope("units of two, with a spare", ruled(2, 4, 1.0, node_unit=2),
              ("join", "leave", "cut", "look", "pass", "drain"), 5, nodes="abc"),
        200,
    ),
    (
        Scope("units of two of one label", ruled(2, 2, 1.0, node_unit=2, unit_label=True),
              ("join", "leave", "pass", "look", "drain"), 4, nodes="abcd",
              labels={"a": "x", "b": "x", "c": "y", "d": "y"},
              start=tuple(Action("join", node) for node in "abc")),
        200,
    ),
    (
        Scope("an amnesia of a trainer and a generator", of_roles(0.0, t=Role(1), g=Role(1, 2)),
              ("join", "look", "resume", "leave", "pass", "forget"), 4, nodes="abc", amnesias=1,
              bring={"a": Brought("t", 2), "b": Brought("g"), "c": Brought("g")},
              start=tuple(Action(kind, node) for kind in ("join", "look") for node in "abc")),
        200,
    ),
    (
        Scope("a record of units of two", ruled(2, 4, 0.0, node_unit=2),
              ("join", "look", "leave", "record", "confirm", "crash"), 5, nodes="abc", amnesias=1,
              records=True),
        100,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("scope", "floor"), SCOPES, ids=lambda one: getattr(one, "name", None))
def test_no_interleaving_breaks_an_invariant(scope: Scope, floor: int) -> None:
    found = explore(scope)
    assert found.states >= floor, found


PHASES = (HypothesisPhase.generate, HypothesisPhase.shrink)  # to explain a failure takes tracing all the time
NODES = "abcdefgh"
RECORDING = ("record", "confirm", "crash")
KINDS = (
    "join", "join", "join", "leave", "drain", "cut", "look", "look", "resume", "beat", "pass", "pass",
    "record", "confirm", "record", "confirm", "crash", "forget",
)  # fmt: skip


def worlds(**fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[World]:
    """Runs of eight nodes with roles, units and labels, and what each brings."""

    def make(
        roles: list[tuple[int, int]], unit: int, *, by_label: bool, policy: str, last_call: float,
        mix: list[tuple[int, int, str]], records: bool,
    ) -> World | None:  # fmt: skip
        named = {f"r{number}": Role(least, least + more) for number, (least, more) in enumerate(roles)}
        try:
            rules = RoundRules(
                roles=named, node_unit=unit, unit_label=by_label and unit > 1, facts={"f": "sum"}
            )
            least = max(1, sum(role.min_nodes for role in named.values()))
            most = sum(role.most for role in named.values())
            numbers = (least, most) if named else (2, 6)
            settings = RunSettings(*numbers, last_call, 2.5, 3, 1.0, policy, rules)
        except RendezvousSettingsError:
            return None
        brings, labels = {}, {}
        for node, (role, slots, label) in zip(NODES, mix, strict=True):
            brings[node] = Brought(f"r{role % len(named)}" if named else "", slots, facts={"f": slots})
            labels[node] = label
        return World.of(NODES, settings, amnesias=1, records=records, bring=brings, labels=labels)

    given_by = {
        "roles": st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=3),
        "unit": st.integers(1, 3),
        "by_label": st.booleans(),
        "policy": st.sampled_from(["sticky", "natural", "topology"]),
        "last_call": st.sampled_from([0.0, 0.5, 30.0]),
        "mix": st.lists(
            st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from("xyz")), min_size=8, max_size=8
        ),
        "records": st.booleans(),
        **fixed,
    }
    made: st.SearchStrategy[Any] = st.builds(make, **given_by)
    return made.filter(lambda world: world is not None)


def live(world: World, actions: list[tuple[str, str, float]]) -> None:
    """Does all that, and checks everything at each step."""
    for kind, node, seconds in actions:
        if world.state.records is (kind == "forget") or (kind in RECORDING and not world.state.records):
            continue
        world.act(Action(kind, node, seconds))
        inv.check_wake(world.state, world.now)
    world.check_refusals()
    world.fork().check_liveness()


def actions() -> st.SearchStrategy[list[tuple[str, str, float]]]:
    seconds = st.sampled_from([0.0, 0.4, 1.0, 3.0, 8.0])
    one = st.tuples(st.sampled_from(KINDS), st.sampled_from(NODES), seconds)
    return st.lists(one, min_size=5, max_size=40)


def some_roles(least: int, more: int, fewest: int = 1) -> st.SearchStrategy[list[tuple[int, int]]]:
    one = st.tuples(st.integers(0, least), st.integers(0 if more < 2 else 1, more))
    return st.lists(one, min_size=fewest, max_size=3)


PAIRS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "roles x units": {"unit": st.integers(2, 3), "roles": some_roles(2, 5)},
    "roles x spares": {"unit": st.just(1), "roles": some_roles(1, 1, 2)},
    "sticky x roles": {"unit": st.just(1), "policy": st.just("sticky"), "roles": some_roles(2, 3, 2)},
    "units x labels": {"unit": st.integers(2, 3), "by_label": st.just(True), "roles": st.just([])},
}


@pytest.mark.parametrize("pair", PAIRS)
def test_features_that_meet_keep_all_invariants(pair: str) -> None:
    @given(world=worlds(**PAIRS[pair]), done=actions())
    @hypothesis_settings(max_examples=200, deadline=None, derandomize=True, phases=PHASES)
    def scenario(world: World, done: list[tuple[str, str, float]]) -> None:
        live(world, done)

    scenario()
