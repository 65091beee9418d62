"""Random histories of six nodes, with any settings: what the explorer is too thorough for."""

from __future__ import annotations

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arendezvous.law.state import RANK_POLICY_NAMES, NodeDesc, RunSettings
from tests.kit import law_invariants as inv
from tests.kit.law_world import Action, World

NODES = "abcdef"
SECONDS = st.floats(0, 20, allow_nan=False).map(lambda seconds: round(seconds, 2))
SETTINGS = st.builds(
    lambda least, more, last_call, grace, policy: RunSettings(
        least, least + more, last_call, 2.5, 3, grace, policy
    ),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.5, 30.0]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(RANK_POLICY_NAMES),
)


class Histories(RuleBasedStateMachine):
    """Does anything, in any order; `World` checks the invariants at each step."""

    world: World

    @initialize(
        settings=SETTINGS,
        labels=st.lists(st.sampled_from("xy"), min_size=6, max_size=6),
        records=st.booleans(),
    )
    def open(self, settings: RunSettings, labels: list[str], *, records: bool) -> None:
        self.world = World.of(NODES, settings, amnesias=2, records=records)
        if settings.rank_policy == "given":
            ranks: list[int | None] = [rank % settings.max_nodes for rank in range(len(NODES))]
        else:
            ranks = [None] * len(NODES)
        self.world.descs = {
            node: NodeDesc(node, addr=f"10.0.0.{len(NODES) - i}", label=labels[i], rank=ranks[i])
            for i, node in enumerate(NODES)
        }

    @rule(nodes=st.lists(st.sampled_from(NODES), min_size=1, max_size=6, unique=True))
    def join(self, nodes: list[str]) -> None:
        for node in nodes:
            self.world.act(Action("join", node))

    @rule(node=st.sampled_from(NODES))
    def join_twice(self, node: str) -> None:
        operation = self.world._operation(Action("join", node))
        assert operation is not None
        if self.world.propose(operation):
            self.world.repeat(operation)

    @rule(
        node=st.sampled_from(NODES), kind=st.sampled_from(["leave", "beat", "cut", "look", "resume", "tell"])
    )
    def something(self, node: str, kind: str) -> None:
        self.world.act(Action(kind, node))

    @rule(nodes=st.lists(st.sampled_from(NODES), max_size=6, unique=True))
    def look(self, nodes: list[str]) -> None:
        for node in nodes:
            self.world.act(Action("look", node))

    @precondition(lambda self: self.world.amnesias > 0 and self.world.images and not self.world.state.records)
    @rule(
        knowingly=st.booleans(),
        first=st.sampled_from(NODES),
        back=st.lists(st.sampled_from(NODES), unique=True),
    )
    def forget_and_be_told(self, first: str, back: list[str], *, knowingly: bool) -> None:
        """Another coordinator, to which some come back, one of whom keeps the image, sooner or later."""
        self.world.act(Action("restart" if knowingly else "forget"))
        for node in back:
            self.world.act(Action("resume", node)) or self.world.act(Action("join", node))
            if node == first:
                self.world.act(Action("tell", node))
        for node in back:
            self.world.act(Action("tell", node))

    @rule(node=st.sampled_from(NODES), seconds=SECONDS)
    def drain(self, node: str, seconds: float) -> None:
        self.world.act(Action("drain", node, seconds))

    @rule(kind=st.sampled_from(["close", "reopen"]))
    def steer(self, kind: str) -> None:
        self.world.act(Action(kind))

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.world.act(Action("pass", seconds=seconds))

    @rule(seconds=SECONDS)
    def time_passes_for_the_living(self, seconds: float) -> None:
        self.world.now += min(seconds, 2.5)
        for node in list(self.world.state.nodes):
            self.world.act(Action("beat", node))
        self.world.act(Action("pass", seconds=0.0))

    @precondition(lambda self: self.world.amnesias > 0)
    @rule()
    def forget(self) -> None:
        self.world.act(Action("crash" if self.world.state.records else "forget"))

    @precondition(lambda self: self.world.state.records)
    @rule(kind=st.sampled_from(["record", "record", "confirm"]))
    def record(self, kind: str) -> None:
        self.world.act(Action(kind))

    @precondition(lambda self: self.world.state.records)
    @rule()
    def record_and_confirm(self) -> None:
        self.world.act(Action("record"))
        self.world.act(Action("confirm"))

    @invariant()
    def nothing_is_overdue_or_missing(self) -> None:
        if not hasattr(self, "world"):
            return
        inv.check_wake(self.world.state, self.world.now)
        self.world.check_refusals()
        if self.world.settings.rank_policy != "given":  # two nodes that ask for one rank never settle
            self.world.fork().check_liveness()


Histories.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
TestHistories = Histories.TestCase
