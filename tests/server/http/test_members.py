"""Joining a run with plain requests: sessions, views by long-poll or stream, and who may say what."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

import arendezvous as ar
from arendezvous.coordinator import late_answers
from arendezvous.law.events import LawEvent, NodeDeparted
from arendezvous.law.state import Cause
from arendezvous.server.http import sessions
from tests.kit.http_kit import PAIR, SESSION, Events, following, join, problem_of, served
from tests.kit.waiting import until, until_seen

A = "/v1/runs/job/members/a"
B = "/v1/runs/job/members/b"


def shows(joined: dict[str, str]) -> dict[str, str]:
    """The header that shows a session."""
    return {SESSION: joined["session"]}


async def test_two_nodes_meet_by_requests_alone() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a = await join(client, "a")
        assert (a["view"]["phase"], a["view"]["rank"], a["expiry"]) == ("gathering", -1, 15.0)
        waiting = asyncio.create_task(
            client.get(f"{A}/view", params={"since": a["view"]["revision"], "wait": 9}, headers=shows(a))
        )
        b = await join(client, "b")
        async with await waiting as answer:
            view = await answer.json()
        assert (view["phase"], view["rank"], view["world_size"]) == ("member", 0, 2)
        assert (b["view"]["rank"], b["view"]["digest"]) == (1, view["digest"])
        async with client.get("/v1/runs/job/members") as answer:
            members = await answer.json()
        assert [member["name"] for member in members["members"]] == ["a", "b"]
        async with client.post(f"{A}/keep-alive", headers=shows(a)) as answer:
            assert (await answer.json())["rank"] == 0
        parameters = {"reason": "done", "cause": "finished"}
        async with client.delete(B, headers=shows(b), params=parameters) as answer:
            gone = (await answer.json())["gone"]
        assert (gone["cause"], gone["reason"]) == ("finished", "done")
        async with client.get(f"{A}/view", headers=shows(a)) as answer:
            notice = (await answer.json())["notices"][-1]
        assert (notice["node"], notice["cause"], notice["reason"]) == ("b", "finished", "done")


async def test_a_long_poll_without_news_is_304() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a = await join(client, "a")
        parameters = {"since": a["view"]["revision"], "wait": "0.05"}
        async with client.get(f"{A}/view", params=parameters, headers=shows(a)) as answer:
            assert (answer.status, await answer.read()) == (304, b"")


async def test_a_node_whose_join_is_a_stream_is_told_all_that_it_must_know() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        body = {"node": {"name": "a"}, "settings": PAIR}
        async with client.post(
            "/v1/runs/job/members", json=body, headers={"Accept": "text/event-stream"}
        ) as answer:
            assert answer.status == 201
            events = Events(answer)
            assert (await events.next()).name == "joined"
            await join(client, "b")
            view = await events.next()
            assert view.name == "view"
            assert b'"phase":"member","rank":0' in view.data


async def test_the_stream_of_a_node_that_is_gone_says_why_and_ends() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a = await join(client, "a")
        async with following(client, f"{A}/view", shows(a)) as events:
            await events.next()
            async with client.delete(A, headers=shows(a), params={"reason": "enough"}) as answer:
                assert answer.status == 200
            last = await events.next()
            assert b'"phase":"gone"' in last.data
            assert b'"reason":"enough"' in last.data
            with pytest.raises(EOFError):
                await events.next()


async def test_a_stream_goes_on_after_the_view_that_was_seen_last() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a = await join(client, "a")
        seen = str(a["view"]["revision"])
        async with following(client, f"{A}/view", {**shows(a), "Last-Event-ID": seen}) as events:
            await join(client, "b")
            first = await events.next()
        assert b'"phase":"member"' in first.data
        assert int(first.id) > int(seen)
        async with following(client, f"{A}/view", {**shows(a), "Last-Event-ID": seen}) as events:
            again = await events.next()
        assert (again.id, again.data) == (first.id, first.data)


async def departure_of(client: aiohttp.ClientSession, server_events: asyncio.Queue[LawEvent]) -> NodeDeparted:
    while True:
        event = await server_events.get()
        if isinstance(event, NodeDeparted):
            return event


async def test_a_node_whose_stream_breaks_has_the_grace_to_come_back() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        events: asyncio.Queue[LawEvent] = asyncio.Queue()
        server.coordinator.observe(lambda run_id, now, event: events.put_nowait(event))
        a = await join(client, "a", disconnect_grace=0.05)
        async with following(client, f"{A}/view", shows(a)) as stream:
            await stream.next()
        departed = await departure_of(client, events)
        assert (departed.node, departed.cause) == ("a", Cause.CONNECTION_LOST)
        async with client.get(f"{A}/view", headers=shows(a)) as answer:
            assert await problem_of(answer) == (410, "session-over")
            body = await answer.json()
        assert "connection lost" in body["detail"]
        assert body["view"]["gone"]["cause"] == "connection lost"


async def test_a_node_that_never_had_a_stream_lives_by_its_heartbeats() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        events: asyncio.Queue[LawEvent] = asyncio.Queue()
        server.coordinator.observe(lambda run_id, now, event: events.put_nowait(event))
        await join(client, "a", disconnect_grace=0.0, keep_alive_interval=0.1, keep_alive_max_attempt=1)
        departed = await departure_of(client, events)
        assert (departed.node, departed.cause) == ("a", Cause.NO_HEARTBEAT)


@pytest.mark.parametrize(
    ("method", "path", "accept"),
    [
        ("POST", f"{A}/keep-alive", "*/*"),
        ("GET", f"{A}/view", "*/*"),
        ("GET", f"{A}/view", "text/event-stream"),
        ("PUT", A, "*/*"),
        ("POST", "/v1/runs/job/members", "text/event-stream"),
    ],
)
async def test_a_request_brings_a_node_back_whose_stream_broke(method: str, path: str, accept: str) -> None:
    body = {"node": {"name": "a"}, "settings": {**PAIR, "disconnect_grace": 60.0}}
    async with asyncio.timeout(120), served() as (server, client):
        a = await join(client, "a", disconnect_grace=60.0)
        suspects = server.coordinator.runs["job"].state.suspects
        suspected = asyncio.Event()
        finish = sessions.Session.stream_ends

        def ends(session: sessions.Session, news: asyncio.Event) -> None:
            finish(session, news)
            suspected.set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sessions.Session, "stream_ends", ends)
            async with following(client, f"{A}/view", shows(a)) as stream:
                await stream.next()
            await suspected.wait()
        assert list(suspects) == ["a"]
        headers = {**shows(a), "Accept": accept}
        content = None if path.startswith(A + "/") else body
        async with client.request(method, path, headers=headers, json=content) as answer:
            assert answer.status < 300
            assert list(suspects) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/view"), ("POST", "/keep-alive"), ("DELETE", ""), ("PUT", "")],
)
async def test_one_node_cannot_speak_for_another(method: str, path: str) -> None:
    async with asyncio.timeout(120), served() as (_, client):
        await join(client, "a")
        b = await join(client, "b")
        body = {"settings": PAIR} if method == "PUT" else None
        for headers in (shows(b), {}, {SESSION: "x" * 32}, {SESSION: ""}):
            async with client.request(method, A + path, json=body, headers=headers) as answer:
                assert await problem_of(answer) == (403, "not-your-session")
                assert b["session"] not in await answer.text()
        async with client.get(A) as answer:
            assert (await answer.json())["phase"] == "member"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/view"), ("POST", "/keep-alive"), ("DELETE", ""), ("PUT", "")]
)
async def test_a_session_that_is_over_is_410_and_an_unknown_node_404(method: str, path: str) -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a = await join(client, "a")
        await join(client, "b")
        async with client.delete(A, headers=shows(a)) as answer:
            assert answer.status == 200
        body = {"settings": PAIR} if method == "PUT" else None
        async with client.request(method, A + path, json=body, headers=shows(a)) as answer:
            assert await problem_of(answer) == (410, "session-over")
        nobody = f"/v1/runs/job/members/nobody{path}"
        async with client.request(method, nobody, json=body, headers=shows(a)) as answer:
            assert await problem_of(answer) == (404, "no-such-member")


async def test_a_name_that_is_taken_is_waited_for_in_a_session_and_refused_there() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        first = await join(client, "a")
        body = {"node": {"name": "a"}, "settings": PAIR}
        async with client.post("/v1/runs/job/members", json=body, headers={SESSION: "x" * 32}) as answer:
            assert await problem_of(answer) == (403, "not-your-session")
        second = await join(client, "a")
        assert (second["view"]["phase"], second["session"] != first["session"]) == ("claiming", True)
        parameters = {"since": second["view"]["revision"], "wait": 9}
        waiting = asyncio.create_task(client.get(f"{A}/view", params=parameters, headers=shows(second)))
        await asyncio.sleep(0)
        async with client.post(f"{A}/keep-alive", headers=shows(first)) as answer:
            assert (await answer.json())["phase"] == "gathering"
        async with await waiting as answer:
            refused = await answer.json()
        assert (refused["phase"], refused["gone"]["cause"]) == ("gone", "name taken")
        async with client.post(f"{A}/keep-alive", headers=shows(second)) as answer:
            assert await problem_of(answer) == (410, "session-over")
        async with client.post(f"{A}/keep-alive", headers=shows(first)) as answer:
            assert answer.status == 200


async def test_a_name_is_had_by_one_process_whatever_way_the_other_one_came() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        body = {"node": {"name": "a"}, "settings": PAIR}
        async with ar.open_rendezvous(server.tcp_url, run_id="job", min_nodes=2, node="a") as one:
            joining = asyncio.create_task(one.next_rendezvous())
            await until_seen(one.explain, lambda status: status.nodes)
            waiting = await join(client, "a")
            assert waiting["view"]["phase"] == "claiming"
            joining.cancel()
            await asyncio.wait([joining])
            async with client.get(f"{A}/view", headers=shows(waiting)) as answer:
                assert (await answer.json())["phase"] == "gathering"
        async with client.post("/v1/runs/job/members", json=body, headers=shows(waiting)) as answer:
            assert answer.status == 201


async def test_whoever_waits_for_a_name_and_breaks_off_its_stream_waits_no_more() -> None:
    async with asyncio.timeout(120), served() as (server, client):
        await join(client, "a")
        body = {"node": {"name": "a"}, "settings": PAIR}
        headers = {"Accept": "text/event-stream"}
        async with client.post("/v1/runs/job/members", json=body, headers=headers) as answer:
            event = await Events(answer).next()
            joined = json.loads(event.data)
            assert (event.name, joined["view"]["phase"]) == ("joined", "claiming")
        await until(lambda: not server.coordinator.runs["job"].claims)
        async with client.get(f"{A}/view", headers=shows(joined)) as answer:
            assert await problem_of(answer) == (410, "session-over")


async def test_a_node_that_came_in_by_tcp_is_nobodys_over_http() -> None:
    async with (
        asyncio.timeout(120),
        served() as (server, client),
        ar.open_rendezvous(server.tcp_url, run_id="job", min_nodes=1, node="a") as rendezvous,
    ):
        await rendezvous.next_rendezvous()
        async with client.delete(A, headers={SESSION: "x" * 32}) as answer:
            assert await problem_of(answer) == (403, "not-your-session")


async def test_a_join_that_is_repeated_goes_on_with_its_session() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        body = {"node": {"name": "a"}, "settings": PAIR}
        keyed = {"Idempotency-Key": "0123456789abcdef"}
        found = []
        for headers in (keyed, keyed):
            async with client.post("/v1/runs/job/members", json=body, headers=headers) as answer:
                found.append((await answer.json())["session"])
        async with client.post("/v1/runs/job/members", json=body, headers={SESSION: found[0]}) as answer:
            found.append((await answer.json())["session"])
        assert len(set(found)) == 1
        async with client.delete(A, headers=keyed) as answer:
            assert answer.status == 200
        async with client.post("/v1/runs/job/members", json=body, headers=keyed) as answer:
            assert await problem_of(answer) == (410, "session-over")
        assert (await join(client, "a"))["session"] not in found


async def test_members_join_the_next_round_in_their_sessions() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a, b = await join(client, "a"), await join(client, "b")
        after = {"incarnation": 1, "round": 0}
        async with client.put(A, json={"settings": PAIR, "after": after}, headers=shows(a)) as answer:
            assert (await answer.json())["phase"] == "waiting"
        async with client.put(B, json={"settings": PAIR, "after": after}, headers=shows(b)) as answer:
            view = await answer.json()
        assert (view["phase"], view["round"], view["rank"]) == ("member", 1, 1)


async def test_the_stream_of_a_node_that_joins_again_tells_it_nothing_before_the_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(late_answers, "QUIET", 60.0)
    monkeypatch.setattr(late_answers, "LONGEST", 60.0)
    async with asyncio.timeout(120), served() as (_, client):
        a, b = await join(client, "a"), await join(client, "b")
        async with following(client, A + "/view", headers=shows(a)) as events:
            assert json.loads((await events.next()).data)["round"] == 0
            body = {"settings": PAIR, "after": {"incarnation": 1, "round": 0}}
            async with client.put(A, json=body, headers=shows(a)) as answer:
                assert (await answer.json())["phase"] == "waiting"
            async with client.put(B, json=body, headers=shows(b)) as answer:
                assert (await answer.json())["phase"] == "member"
            view = json.loads((await events.next()).data)
    assert (view["phase"], view["round"], view["rank"]) == ("member", 1, 0)


async def test_the_node_in_the_body_must_be_the_one_in_the_path() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a = await join(client, "a")
        body = {"settings": PAIR, "node": {"name": "b"}}
        async with client.put(A, json=body, headers=shows(a)) as answer:
            assert await problem_of(answer) == (400, "bad-body")


async def test_anybody_may_have_a_member_drained() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        await join(client, "a")
        b = await join(client, "b")
        async with client.post(f"{A}/drain", json={"seconds": 60, "reason": "maintenance"}) as answer:
            assert (await answer.json())["phase"] == "member"
        async with client.get(f"{B}/view", headers=shows(b)) as answer:
            notice = (await answer.json())["notices"][-1]
        assert (notice["node"], notice["cause"], notice["reason"]) == ("a", None, "maintenance")
        async with client.post("/v1/runs/job/members/nobody/drain", json={"seconds": 1}) as answer:
            assert await problem_of(answer) == (404, "no-such-member")


async def test_a_cause_that_is_not_for_a_node_to_say_is_refused() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a = await join(client, "a")
        async with client.delete(A, headers=shows(a), params={"cause": "no heartbeat"}) as answer:
            assert await problem_of(answer) == (400, "bad-query")


async def test_a_node_is_shown_to_anybody_for_as_long_as_it_is_known() -> None:
    async with asyncio.timeout(120), served() as (_, client):
        a = await join(client, "a")
        async with client.delete(A, headers=shows(a)) as answer:
            assert answer.status == 200
        async with client.get(A) as answer:
            assert (await answer.json())["phase"] == "gone"
        async with client.get(B) as answer:
            assert await problem_of(answer) == (404, "no-such-member")


async def test_sessions_that_are_over_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_ENDED", 2)
    async with asyncio.timeout(120), served() as (_, client):
        ended = [await join(client, node) for node in ("x", "y", "z")]
        for joined in ended:
            async with client.delete(
                f"/v1/runs/job/members/{joined['node']}", headers=shows(joined)
            ) as answer:
                assert answer.status == 200
        found = []
        for joined in ended:
            async with client.get(
                f"/v1/runs/job/members/{joined['node']}/view", headers=shows(joined)
            ) as answer:
                found.append(answer.status)
    assert found == [404, 410, 410]
