"""What nodes bring to a round: at all members, over every backend that carries it, and refused elsewhere."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous import sync
from arendezvous.law.rules import RoundRules
from arendezvous.opening import create_handler
from arendezvous.rendezvous.parameters import RendezvousParameters
from tests.kit.ports import held_ports
from tests.kit.waiting import until

ROLES: Any = {"roles": {"trainer": ar.Role(1), "generator": ar.Role(2, 3)}, "facts": {"step": "max"}}
QUICK: Any = {"last_call_timeout": 0.0, "is_host": False}
DATA = {"url": "x", "n": [1, 2.5]}
SCHEMES = ["memory", "tcp", "http"]


@asynccontextmanager
async def place(scheme: str) -> AsyncIterator[str]:
    """The URL of a fresh place."""
    if scheme == "memory":
        yield f"memory://{id(object())}"
        return
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server:
        yield f"tcp://127.0.0.1:{server.port}" if scheme == "tcp" else str(server.http_url)


def opened(url: str, node: str, **options: Any) -> ar.AsyncRendezvousHandler:
    used = {**QUICK, **options}
    if not url.startswith("tcp"):
        del used["is_host"]
    return ar.open_rendezvous(url, run_id="job", node=node, **used)


class Fleet:
    """Nodes that join together, and what each was told."""

    def __init__(self) -> None:
        self.infos: dict[str, ar.RendezvousInfo] = {}
        self.errors: dict[str, ar.RendezvousError] = {}

    async def meet(self, joins: dict[ar.AsyncRendezvousHandler, dict[str, Any]]) -> None:
        async def join(node: ar.AsyncRendezvousHandler, brings: dict[str, Any]) -> None:
            try:
                self.infos[node.node] = await node.next_rendezvous(**brings)
            except ar.RendezvousError as error:
                self.errors[node.node] = error

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for node, brings in joins.items():
                    tasks.start_soon(join, node, brings)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_members_of_roles_see_their_shares_the_facts_and_each_others_data(scheme: str) -> None:
    async with (
        place(scheme) as url,
        opened(url, "t", **ROLES) as trainer,
        opened(url, "g0", **ROLES, label="rack") as first,
        opened(url, "g1", **ROLES) as second,
    ):
        fleet = Fleet()
        await fleet.meet({
            first: {"role": "generator", "slots": 4, "data": DATA, "facts": {"step": 3}},
            trainer: {"role": "trainer", "slots": 2, "facts": {"step": 41}},
            second: {"role": "generator", "data": (1, None), "facts": {"step": 7.5}},
        })  # fmt: skip
        assert not fleet.errors
        trained, one, two = (fleet.infos[name] for name in ("t", "g0", "g1"))
        assert (trained.rank, trained.role, trained.role_rank, trained.role_size) == (0, "trainer", 0, 1)
        assert {one.rank, two.rank} == {1, 2}
        assert one.role_rank == one.rank - 1
        assert {info.total_slots for info in fleet.infos.values()} == {7}
        assert {info.digest for info in fleet.infos.values()} == {one.digest}
        assert (trained.first_slot, trained.slots, one.slots) == (0, 2, 4)
        assert all(info.facts == {"step": 41} for info in fleet.infos.values())
        copy = pickle.loads(pickle.dumps(one))
        assert (copy.role, copy.first_slot, copy.facts) == (one.role, one.first_slot, {"step": 41})
        rosters = [await info.members() for info in fleet.infos.values()]
        assert rosters[0] == rosters[1] == rosters[2]
        found = {member.name: member for member in rosters[0]}
        assert [member.rank for member in rosters[0]] == [0, 1, 2]
        assert (found["g0"].data, found["g0"].label) == (DATA, "rack")
        assert (found["g1"].data, found["t"].data, found["t"].slots) == ([1, None], None, 2)
        assert found["t"].addresses
        await second.leave("enough")
        gone = {member.name: member.gone for member in await trained.members()}
        assert (gone["t"], gone["g0"]) == (None, None)
        left = gone["g1"]
        assert left is not None
        assert (left.cause, left.reason) == (ar.Cause.LEFT, "enough")


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_nodes_whose_facts_differ_get_no_rank_and_are_told_who_brought_what(scheme: str) -> None:
    options = {"min_nodes": 3, "facts": {"model": "same"}}
    async with (
        place(scheme) as url,
        opened(url, "a", **options) as a,
        opened(url, "b", **options) as b,
        opened(url, "c", **options) as c,
    ):
        fleet = Fleet()
        brought = {"a": "x", "b": {"v": 1}, "c": "x"}
        await fleet.meet({node: {"facts": {"model": brought[node.node]}} for node in (a, b, c)})
        assert not fleet.infos
        for error in fleet.errors.values():
            assert isinstance(error, ar.FactsDifferError)
            assert '{"v":1} by 1 node (b)' in error.message
            assert '"x" by 2 nodes (' in error.message
        await fleet.meet({node: {"facts": {"model": "y"}} for node in (a, b, c)})
        assert {info.facts["model"] for info in fleet.infos.values()} == {"y"}


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_what_a_node_brings_counts_for_one_round(scheme: str) -> None:
    async with place(scheme) as url, opened(url, "a", min_nodes=1, max_nodes=2) as a:
        first = await a.next_rendezvous(slots=3, data="one")
        assert (first.total_slots, (await first.members())[0].data) == (3, "one")
        second = await a.next_rendezvous(data="two")
        assert (second.total_slots, (await second.members())[0].data) == (1, "two")
        third = await a.next_rendezvous()
        assert (third.total_slots, (await third.members())[0].data) == (1, None)
        assert len({first.digest, second.digest, third.digest}) == 3
        with pytest.raises(ar.RendezvousStateError, match="is over"):
            await first.members()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"data": {"urls": [1, {2}]}}, r"data\['urls'\]\[1\] is \{2\}"),
    ({"data": [0, float("nan")]}, r"data\[1\] is nan, but must be a finite number"),
    ({"data": {1: 2}}, "a key of data is 1, but must be a text"),
    ({"data": 2**63}, "data is 9223372036854775808"),
    ({"data": "x" * 4095}, "data is '4097 bytes as JSON'"),
    ({"data": b"bytes"}, "data is b'bytes'"),
    ({"data": "\ud800"}, "Unicode"),
    ({"slots": 0}, "slots is 0"),
    ({"slots": True}, "slots is True"),
    ({"slots": "2"}, "slots is '2'"),
    ({"role": 3}, "role is 3"),
    ({"role": "cook"}, "role is 'cook', but must be left out: this run has no roles"),
    ({"facts": {"step": 1}}, "facts is"),
    ({"facts": [1]}, r"facts is \[1\], but must be a dict"),
]


@pytest.mark.parametrize(("brings", "said"), BAD)
async def test_what_cannot_be_brought_is_refused_with_the_path_of_what_is_wrong(
    brings: dict[str, Any], said: str
) -> None:
    async with opened("memory://bad", "a", min_nodes=1) as node:
        with pytest.raises(ar.RendezvousSettingsError, match=said):
            await node.next_rendezvous(**brings)
        assert (await node.next_rendezvous()).rank == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"roles": {"a": ar.Role(1)}, "nnodes": 3}, "min_nodes is 3, but must be left out, or 1"),
        ({"roles": {"a": 2}}, "role 'a' is 2, but must be a Role"),
        ({"roles": ["a"]}, r"roles is \['a'\], but must be a dict"),
        ({"min_nodes": 1, "facts": {"a": "most"}}, "the reducer of fact 'a' is 'most', .* one of min, max"),
        ({"min_nodes": 1, "node_unit": 2}, "node_unit is 2"),
        ({"min_nodes": 2, "node_unit": 0}, "node_unit is 0"),
        ({"roles": {"a": ar.Role(1)}, "rank_policy": "given", "rank": 0}, "rank_policy is 'given'"),
    ],
)
def test_rules_that_contradict_each_other_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ar.RendezvousSettingsError, match=said):
        ar.open_rendezvous("memory://", run_id="job", **options)


@pytest.mark.parametrize("url", ["c10d://127.0.0.1:1", "etcd-v2://127.0.0.1:1", "static://127.0.0.1:1"])
@pytest.mark.parametrize("option", ["roles", "facts", "node_unit"])
def test_backends_that_cannot_carry_them_refuse_rules_at_once(url: str, option: str) -> None:
    rules: Any = {"roles": {"a": ar.Role(1)}, "facts": {"a": "max"}, "node_unit": 2}
    with pytest.raises(
        ar.RendezvousSettingsError, match=f"^{option} must be left out for {url[:4]}.*: it is"
    ):
        ar.open_rendezvous(url, run_id="job", min_nodes=1, **{option: rules[option]})


def test_units_are_options_of_torchs_parameters_and_roles_are_not() -> None:
    made = create_handler(RendezvousParameters("tcp", "h", "job", 2, 4, node_unit="2", unit_label="yes"))
    assert made.settings.run.rules == RoundRules(node_unit=2, unit_label=True)
    assert create_handler(RendezvousParameters("tcp", "h", "job", 2, 4)).settings.run.rules is None
    with pytest.raises(ar.RendezvousSettingsError, match="roles must be left out: it is an argument of open"):
        create_handler(RendezvousParameters("tcp", "h", "job", 2, 4, roles="a"))


async def test_backends_that_cannot_carry_it_refuse_what_a_node_brings() -> None:
    with held_ports(1) as [port]:
        opening = ar.open_rendezvous(f"c10d://127.0.0.1:{port}", run_id="job", min_nodes=1, is_host=True)
        async with opening as node:
            with pytest.raises(
                ar.RendezvousSettingsError, match=r"^data must be left out for c10d://: it is an"
            ):
                await node.next_rendezvous(data=1)
    async with ar.open_rendezvous("static://127.0.0.1:0", run_id="job", min_nodes=1, rank=0) as node:
        with pytest.raises(ar.RendezvousSettingsError, match=r"^slots must be left out for static://"):
            await node.next_rendezvous(slots=2)


def test_who_blocks_brings_the_same() -> None:
    with sync.open_rendezvous("memory://blocks", run_id="job", roles={"a": ar.Role(1)}) as node:
        info = node.next_rendezvous(role="a", slots=3, data={"x": 1})
        assert (info.role, info.role_rank, info.slots, info.total_slots) == ("a", 0, 3, 3)
        assert info.members()[0].data == {"x": 1}


@pytest.mark.parametrize("remembers", [False, True])
async def test_shares_facts_and_the_roster_outlive_the_server(tmp_path: Path, *, remembers: bool) -> None:
    kept: Any = {"data_dir": tmp_path} if remembers else {}
    options: Any = {**ROLES, "disconnect_grace": 60.0}
    brings: Any = {"role": "generator", "facts": {"step": 3}, "data": "mine"}
    with held_ports(1) as [port]:
        url = f"tcp://127.0.0.1:{port}"
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(AsyncExitStack())
            await server.enter_async_context(ar.serve(f"127.0.0.1:{port}", **kept))
            nodes = [opened(url, name, **options) for name in ("t", "g0", "g1")]
            for node in nodes:
                await stack.enter_async_context(node)
            fleet = Fleet()
            trainer = {"role": "trainer", "slots": 8, "facts": {"step": 41}}
            await fleet.meet({nodes[0]: trainer, nodes[1]: brings, nodes[2]: brings})
            before = await fleet.infos["t"].members()
            await server.aclose()
            again = await stack.enter_async_context(ar.serve(f"127.0.0.1:{port}", **kept))

            def shares() -> list[Any]:
                run = again.coordinator.runs.get("job")
                roster = None if run is None else run.state.roster
                return [] if roster is None or roster.shares is None else list(roster.shares)

            await until(lambda: len(shares()) == 3 and None not in shares())
            assert [(one.role, one.first_slot, one.total_slots) for one in shares()] == [
                ("trainer", 0, 10), ("generator", 8, 10), ("generator", 9, 10),
            ]  # fmt: skip
            assert [one.facts for one in shares()] == [{"step": 41}] * 3
            run = again.coordinator.runs["job"]
            assert run.state.roster is not None
            assert run.state.roster.members(0, 3) == before
            assert run.state.digest == fleet.infos["t"].digest
