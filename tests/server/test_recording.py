"""What the server records of its runs."""

from __future__ import annotations

import pytest

import arendezvous as ar
from arendezvous import events
from arendezvous.backends.tcp.session import SessionBackend
from arendezvous.events import NodeState, RdzvEvent
from arendezvous.law.operations import Close, Reopen
from tests.kit.events_kit import fresh  # noqa: F401 - used by every test, as a fixture


async def test_rounds_drains_departures_closing_and_reopening_are_recorded() -> None:
    async with ar.serve("127.0.0.1:0") as server:
        async with (
            SessionBackend("127.0.0.1", server.port, "job") as operator,
            ar.open_rendezvous(server.tcp_url, run_id="job", min_nodes=1, node="a") as rdzv,
        ):
            await rdzv.next_rendezvous()
            await rdzv.drain(30, "preempted")
            await operator.propose(Close("me", "enough"))
            await rdzv.leave("done")
            await operator.propose(Reopen(1, "me"))

        kinds = ("RoundCompleted", "NodeDraining", "NodeDeparted", "RunClosed", "RunReopened")
        every = [one.event for one in events.history() if isinstance(one.event, RdzvEvent)]
        recorded = [(event.message, event.node_state) for event in every if event.name.endswith(kinds)]
        assert recorded == [
            ("round 0 is complete with 1 node", NodeState.RUNNING),
            ("a is draining and will be gone within 30 s: preempted", NodeState.RUNNING),
            ("the run was closed by me: enough", NodeState.SUCCEEDED),
            ("a left: done", NodeState.SUCCEEDED),
            ("the run is open again by me: incarnation 2", NodeState.INIT),
        ]


async def test_a_bad_destination_is_found_when_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARENDEZVOUS_EVENTS", "nowhere")
    with pytest.raises(ar.RendezvousSettingsError, match="nowhere"):
        async with ar.serve("127.0.0.1:0"):
            pass
