"""Traces: a span for each join and one for each round, and links that lead from one member to the others."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import SpanContext, StatusCode

import arendezvous as ar
from arendezvous.stores.memory import MemoryStore
from tests.kit.memory_nodes import meet, members, node
from tests.kit.waiting import until

pytestmark = pytest.mark.virtual


@pytest.fixture
def exporter(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InMemorySpanExporter]:
    """Keeps the spans of a test; the provider of the process can be set but once, so it is stood in for."""
    sampler: Sampler = getattr(request, "param", ALWAYS_ON)
    provider, exporter = TracerProvider(sampler), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def spans(exporter: InMemorySpanExporter, name: str) -> dict[str, ReadableSpan]:
    """The spans of a name, each by its node."""
    found = [span for span in exporter.get_finished_spans() if span.name == f"rendezvous.{name}"]
    return {str((span.attributes or {})["arendezvous.node"]): span for span in found}


def context(span: ReadableSpan) -> SpanContext:
    found: SpanContext | None = span.get_span_context()
    assert found is not None
    return found


async def test_a_join_and_a_round_are_spans_that_say_whose_and_which(exporter: InMemorySpanExporter) -> None:
    roles = {"actor": ar.Role(1), "critic": ar.Role(1)}
    async with (
        node("a", 2, roles=roles) as a,
        node("b", 2, roles=roles) as b,
    ):
        with trace.get_tracer("the job").start_as_current_span("job") as job:
            other = asyncio.create_task(b.next_rendezvous(role="critic"))
            await a.next_rendezvous(role="actor")
        await other
        assert set(spans(exporter, "join")) == {"a", "b"}
        assert spans(exporter, "round") == {}
    expected = {
        "arendezvous.run_id": "job", "arendezvous.node": "a", "arendezvous.endpoint": "memory://nodes",
        "arendezvous.incarnation": 1, "arendezvous.round": 0, "arendezvous.rank": 0,
        "arendezvous.world_size": 2, "arendezvous.role": "actor",
    }  # fmt: skip
    for span in (spans(exporter, "join")["a"], spans(exporter, "round")["a"]):
        assert span.attributes == expected
        assert span.parent == job.get_span_context()
        assert span.status.status_code is StatusCode.UNSET


async def test_every_round_links_to_its_join_and_to_that_of_the_first_member(
    exporter: InMemorySpanExporter,
) -> None:
    async with members(3):
        pass
    joins = {name: context(span) for name, span in spans(exporter, "join").items()}
    assert len({one.trace_id for one in joins.values()}) == 3
    ways: dict[str, set[str]] = {"join": set(), "first member": set()}
    for name, span in spans(exporter, "round").items():
        for link in span.links:
            way = str((link.attributes or {})["arendezvous.link"])
            linked = (link.context.trace_id, link.context.span_id)
            ways[way].add(next(n for n, one in joins.items() if (one.trace_id, one.span_id) == linked))
            assert way != "join" or joins[name].span_id == link.context.span_id
    assert ways["join"] == {"n0", "n1", "n2"}
    assert len(ways["first member"]) == 1
    linking = sum(len(span.links) == 2 for span in spans(exporter, "round").values())
    assert linking == 2


async def test_what_changes_in_a_round_is_an_event_of_its_span(exporter: InMemorySpanExporter) -> None:
    async with members(2) as ((a, b), _):
        changes = a.changes()
        await b.leave("had enough")
        await anext(changes)
    event = spans(exporter, "round")["n0"].events[0]
    assert event.name == "NodeLeft"
    assert "had enough" in str((event.attributes or {})["arendezvous.change"])


async def test_the_next_join_ends_the_span_of_a_round(exporter: InMemorySpanExporter) -> None:
    async with members(2) as (nodes, _):
        again = await meet(*nodes)
        assert set(spans(exporter, "round")) == {"n0", "n1"}
        assert {info.round for info in again} == {1}
    rounds = [span for span in exporter.get_finished_spans() if span.name == "rendezvous.round"]
    assert [(span.attributes or {})["arendezvous.round"] for span in rounds] == [0, 0, 1, 1]


async def test_a_join_that_fails_is_an_error_and_one_that_is_cancelled_is_none(
    exporter: InMemorySpanExporter,
) -> None:
    async with node("late", timeout=ar.RendezvousTimeout(join=1.0)) as late:
        with pytest.raises(ar.RendezvousTimeoutError):
            await late.next_rendezvous()
    async with node("stopped") as stopped:
        join = asyncio.create_task(stopped.next_rendezvous())
        await until(lambda: stopped.history)
        join.cancel()
        await asyncio.wait([join])
    found = spans(exporter, "join")
    assert found["late"].status.status_code is StatusCode.ERROR
    assert "only 1 of at least 2 nodes came within 1 s" in str(found["late"].status.description)
    assert found["late"].events[0].name == "exception"
    assert found["stopped"].status.status_code is StatusCode.UNSET
    kinds = [(found[name].attributes or {})["error.type"] for name in ("late", "stopped")]
    assert kinds == ["RendezvousTimeoutError", "CancelledError"]


@pytest.mark.parametrize("exporter", [ALWAYS_OFF], indirect=True)
async def test_nothing_is_sent_for_spans_that_are_not_recorded(exporter: InMemorySpanExporter) -> None:
    async with members(2) as (_, infos):
        assert await infos[0].store.num_keys() == 0
    assert exporter.get_finished_spans() == ()


async def test_nothing_is_done_in_a_program_that_does_not_trace(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    async with members(2) as (_, infos):
        assert await infos[0].store.num_keys() == 0
        assert "opentelemetry.trace" not in sys.modules
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize("answer", [b"nonsense", ar.StoreError("it is full")])
async def test_a_store_that_gives_no_link_is_in_no_ones_way(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception
) -> None:
    async def compare_set(*_: object) -> bytes:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(MemoryStore, "compare_set", compare_set)
    async with members(2) as (_, infos):
        assert {info.world_size for info in infos} == {2}
    assert [len(span.links) for span in spans(exporter, "round").values()] == [1, 1]
