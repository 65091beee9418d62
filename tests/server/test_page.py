"""The live page in a real browser: it shows what happens, asks before it acts, and trusts nobody."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import resources

import aiohttp
import msgspec
import pytest

import arendezvous as ar
from arendezvous.coordinator.budget import CoordinatorLimits
from arendezvous.coordinator.run import Attachment
from arendezvous.keyspace.grants import EVERYTHING, Grant, Scope
from arendezvous.law.operations import Drain, Join, Leave, Progress, Quarantine, Update
from arendezvous.law.rules import Brought
from arendezvous.law.state import Cause, NodeDesc, RunSettings
from arendezvous.server.access.authority import Authority
from arendezvous.server.access.limits import DEFAULT_LIMITS, ServerLimits
from arendezvous.server.http.resources.page import FILES, path_of
from tests.kit import ROOT
from tests.kit.browser import Page, browser, browser_page, find_browser
from tests.kit.listener_kit import http_server
from tests.kit.script_kit import script

in_browser = pytest.mark.skipif(
    find_browser() is None,
    reason="there is no Chromium here; install one, or name it in ARENDEZVOUS_CHROMIUM",
)

PAIR = RunSettings(2, 2, keep_alive_interval=3600.0)  # nobody sends heartbeats for those who join like this
ALONE = RunSettings(1, 1, keep_alive_interval=3600.0)
EVIL = "<img src=/page/x onerror=window.hacked=1>"


def join(
    server: ar.Server,
    run: str,
    name: str,
    settings: RunSettings = PAIR,
    addr: str = "",
    after: tuple[int, int] = (0, -1),
    brings: Brought | None = None,
) -> Attachment:
    """Has a node join without a process of its own."""
    attachment = server.coordinator.attach(run, name, name.encode(), lambda _: None)
    server.coordinator.propose(attachment, Join(NodeDesc(name, addr, brings=brings), settings, after))
    return attachment


@pytest.fixture(scope="module")
def chromium() -> Iterator[str]:
    """One browser for all tests; each has pages of its own in it."""
    with browser() as address:
        yield address


@asynccontextmanager
async def looking(
    chromium: str,
    authority: Authority | None = None,
    *,
    http: str = "127.0.0.1:0",
    limits: ServerLimits = DEFAULT_LIMITS,
) -> AsyncIterator[tuple[ar.Server, Page]]:
    """A server and a browser that looks at its page."""
    async with (
        ar.serve("127.0.0.1:0", http=http, authority=authority, limits=limits) as server,
        browser_page(chromium) as page,
    ):
        assert server.http_url is not None
        await page.open(f"{server.http_url}/")
        yield server, page


async def sign(page: Page, name: str = "ann") -> None:
    """Says who decides, in the question that is open."""
    await page.until("document.activeElement.id === 'ask-by'")
    await page.type(name)


async def use_token(page: Page, token: str) -> None:
    await page.until("document.querySelector('#token').open")
    await page.click("#token-input")
    await page.type(token)
    await page.press("Enter")


# Without a browser


def test_the_package_has_every_file_of_the_page_and_no_other() -> None:
    page = resources.files("arendezvous.server") / "page"
    assert {file.name for file in page.iterdir()} == set(FILES)


def test_the_page_asks_for_nothing_but_its_own_files() -> None:
    page = resources.files("arendezvous.server") / "page"
    for name in FILES:
        text = (page / name).read_text()
        asked = re.findall(r'(?:src|href)="([^"#]+)"|from "\./([^"]+)"|\burl\(([^)]*)\)', text)
        for first, second, third in asked:
            target = first or f"/page/{second or third}"
            assert target in {path_of(known) for known in FILES} | {
                "/v1/runs",
                "/metrics",
                "/openapi.json",
            }, (name, target)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), name


def test_the_page_has_no_script_and_no_style_of_its_own() -> None:
    text = (resources.files("arendezvous.server") / "page" / "index.html").read_text()
    assert not re.search(r"<style|style=|\son\w+=|javascript:", text)
    assert re.findall(r"<script[^>]*>([^<]*)</script>", text) == ["", ""]


async def test_each_file_comes_with_its_type_a_strict_policy_and_a_tag() -> None:
    async with (
        ar.serve(
            "127.0.0.1:0", http="127.0.0.1:0", authority=Authority.of("a-good-long-token-of-mine")
        ) as server,
        aiohttp.ClientSession(server.http_url) as client,
    ):
        for name, kind in FILES.items():
            async with client.get(path_of(name)) as answer:
                assert (answer.status, answer.content_type) == (200, kind)
                policy = answer.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
                assert "unsafe" not in policy
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                tag = answer.headers["ETag"]
            async with client.get(path_of(name), headers={"If-None-Match": f'"other", {tag}'}) as answer:
                assert (answer.status, await answer.read()) == (304, b"")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:29401", 200), ("job.localhost", 200),
        ("host-of-ours", 200), ("", 200),
        ("evil.example:29401", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403),
        ("[", 403), ("evil.example.", 403),
    ],
)  # fmt: skip
async def test_a_site_whose_name_leads_here_is_told_nothing(host: str, status: int) -> None:
    async with (
        ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server,
        aiohttp.ClientSession(server.http_url, headers={"Host": host}) as client,
    ):
        for method, path, body in (("GET", "/v1/runs", None), ("POST", "/v1/runs/job/close", b"{}")):
            async with client.request(method, path, data=body) as answer:
                assert answer.status == status, (method, await answer.text())


async def test_with_tokens_the_server_may_have_any_name() -> None:
    token = "t" * 32
    headers = {"Host": "rendezvous.example", "Authorization": f"Bearer {token}"}
    async with (
        ar.serve("127.0.0.1:0", http="127.0.0.1:0", authority=Authority.of(token)) as server,
        aiohttp.ClientSession(server.http_url, headers=headers) as client,
        client.get("/v1/runs") as answer,
    ):
        assert answer.status == 200


# In a browser


@in_browser
async def test_a_run_starts_and_a_node_is_killed_and_the_page_shows_it_without_a_reload(
    chromium: str,
) -> None:
    async with looking(chromium) as (server, page):
        await page.until_text("#empty-title", "Nobody has joined yet")
        await page.run("window.untouched = true")
        node = str(ROOT / "tests" / "kit" / "node_process.py")
        options = ("--min", "2", "--max", "3", "--grace", "0.1", "--last-call", "0.3")
        async with (
            script(node, server.tcp_url, "alpha", *options) as alpha,
            script(node, server.tcp_url, "beta", *options),
            script(node, server.tcp_url, "gamma", *options),
        ):
            await page.until_text("#runs", "job")
            await page.until_text("#timeline", "round 0 is complete with")
            await page.until_text("#members", "alpha")
            await page.until_text("#figures", "complete")
            await alpha.line_with('"member"')
            alpha.kill()
            await page.until_text("#timeline", "alpha is lost: its connection broke")
            await page.until_text("#gone", "alpha (connection lost)")
            await page.until_text("#news", "alpha is lost")
            await page.until_text("#explain", "dropped: alpha, its connection broke")
            await page.until(
                "![...document.querySelectorAll('#members .name')].some(e => e.textContent === 'alpha')"
            )
        await page.until_text("#gone", "gamma")
        assert await page.run("window.untouched && performance.getEntriesByType('navigation').length") == 1
        assert page.complaints == []
        assert all(url.startswith(f"{server.http_url}/") for url in page.requests), page.requests


@in_browser
async def test_closing_asks_first_and_cancel_changes_nothing(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        join(server, "job", "a", ALONE)
        await page.until_text("#figures", "complete")
        await page.click("#close-button")
        await page.until("document.querySelector('#ask').open")
        assert await page.run("document.querySelector('#ask-title').textContent") == "Close job?"
        await page.click("#ask-no")
        await page.until("!document.querySelector('#ask').open")
        assert server.coordinator.runs["job"].state.closed is None
        await page.click("#close-button")
        await page.click("#ask-yes")
        assert server.coordinator.runs["job"].state.closed is None  # not without a name
        await page.click("#ask-by")
        await page.type("ann")
        await page.click("#ask-reason")
        await page.type("enough for today")
        await page.press("Enter")
        await page.until_text("#explain", "closed by ann")
        await page.until_text("#figures", "by ann")
        await page.until_text("#timeline", "enough for today")
        await page.click("#reopen-button")
        await page.until("document.querySelector('#ask-by').value === 'ann'")
        await page.click("#ask-yes")
        await page.until_text("#timeline", "the run is open again by ann")
        assert page.complaints == []


@in_browser
async def test_a_server_with_tokens_shows_nothing_until_a_good_one_is_given(chromium: str) -> None:
    token, reader = "t" * 32, "r" * 32
    authority = Authority([(token, EVERYTHING), (reader, Grant(Scope.READ))])
    async with looking(chromium, authority) as (server, page):
        join(server, "job", "a", ALONE)
        await page.until_text("#token-wrong", "asks for a token")
        await use_token(page, "w" * 32)
        await page.until_text("#token-wrong", "does not know the token")
        await use_token(page, reader)
        await page.until_text("#members", "a")
        await page.until_text("#link", "live, read-only")
        acts = "[...document.querySelectorAll('[data-act]')].filter((one) => one.checkVisibility()).length"
        assert await page.run(acts) == 0
        await page.click("#token-button")
        await use_token(page, token)
        await page.until("document.documentElement.dataset.may === 'act'")
        await page.click("#close-button")
        await sign(page)
        await page.press("Enter")
        await page.until_text("#explain", "closed by ann")
        assert (
            await page.run("JSON.stringify(localStorage) + document.cookie") == '{"arendezvous-name":"ann"}'
        )
        assert not any(token in url for url in page.requests)


@in_browser
async def test_a_token_of_one_run_shows_that_run(chromium: str) -> None:
    authority = Authority([("t" * 32, Grant(Scope.RUN, "mine"))])
    async with looking(chromium, authority) as (server, page):
        join(server, "early", "b", ALONE)  # another run
        await use_token(page, "t" * 32)
        await page.until_text("#link", "live, for run mine: your token is good for no other")
        await page.until_text("#empty-title", "There is no run mine here")
        join(server, "mine", "a", PAIR)
        join(server, "theirs", "b", ALONE)
        await page.until_text("#runs", "gathering")
        await page.until_text("#members", "a")
        join(server, "mine", "c", PAIR)
        await page.until_text("#runs", "2 members")
        asked = [url for url in page.requests if url.endswith(("/v1/runs", "/v1/events"))]
        assert asked == [f"{server.http_url}/v1/events"] * 2, asked  # without the token, and with it
        assert await page.run("document.querySelector('#runs').innerText.includes('theirs')") is False
        await page.run("location.hash = '#/runs/theirs'")
        await page.until_text("#empty-text", "is good for run 'mine'")


@in_browser
async def test_runs_that_the_server_forgets_go_from_the_page(chromium: str) -> None:
    limits = ServerLimits(coordinator=CoordinatorLimits(max_runs=2))
    async with looking(chromium, limits=limits) as (server, page):
        for run_id in ("first", "second"):
            server.coordinator.propose(join(server, run_id, "a", ALONE), Leave("a"))
        await page.until_text("#runs-count", "2")
        await page.until_text("#run-title", "first")
        join(server, "third", "a", ALONE)
        await page.until_text("#runs", "third")
        await page.until_text("#empty-title", "There is no run first here")
        names = "[...document.querySelectorAll('#runs .name')].map((one) => one.textContent)"
        assert await page.run(names) == ["second", "third"]
        join(server, "fourth", "a", ALONE)
        await page.until_text("#runs", "fourth")
        assert await page.run(names) == ["fourth", "third"]


@in_browser
async def test_the_ages_of_heartbeats_grow_by_themselves(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        join(server, "job", "a", ALONE)
        await page.until_text("#members .beat", "s ago")
        age = "document.querySelector('#members .beat span').textContent"
        await page.until(f"parseFloat({age}) > 1")
        label = "document.querySelector('#members meter').getAttribute('aria-label')"
        assert "until it counts as dead" in await page.run(label)


@in_browser
async def test_a_run_that_is_not_there_yet_is_shown_once_it_is(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        await page.run("location.hash = '#/runs/later%20on'")
        await page.until_text("#empty-title", "There is no run later on here")
        join(server, "later on", "a", ALONE)
        await page.until_text("#run-title", "later on")
        await page.until_text("#members", "a")


@in_browser
async def test_draining_a_node_asks_for_how_long_and_why(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        join(server, "job", "a", ALONE)
        await page.until_text("#members", "a")
        await page.click("#members td.act button")
        await page.until("document.querySelector('#ask').open")
        await sign(page)
        await page.run("document.querySelector('#ask-seconds').value = '600'")
        await page.click("#ask-reason")
        await page.type("its disk is full")
        await page.press("Enter")
        await page.until_text("#members .chip", "draining")
        await page.until_text(
            "#timeline", "a is draining and will be gone within 600 s: its disk is full (by ann)"
        )


@in_browser
async def test_an_operator_holds_a_run_resizes_it_and_keeps_a_node_out(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        join(server, "job", "a", ALONE)
        await page.until_text("#members", "a")
        await page.click("#hold-button")
        await sign(page)
        await page.click("#ask-reason")
        await page.type("storage")
        await page.press("Enter")
        await page.until_text("#explain", "the run was held by ann")
        await page.until_text("#figures", "held")
        await page.click("#release-button")
        await page.click("#ask-yes")
        await page.until_text("#timeline", "the run was released by ann")
        await page.click("#resize-button")
        await page.run("document.querySelector('#ask-nodes').value = '1:3'")
        await page.click("#ask-yes")
        await page.until_text("#explain", "the run was resized by ann to 1 to 3 nodes")
        await page.click("#members td.act button:last-child")
        await page.click("#ask-reason")
        await page.type("bad NIC")
        await page.press("Enter")
        await page.until_text("#quarantined", "a, by ann, until pardoned: bad NIC")
        await page.click("#quarantined button")
        await page.click("#ask-yes")
        await page.until_text("#timeline", "a may come in again by ann")


@in_browser
async def test_names_that_are_markup_are_shown_as_they_are(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        brings = Brought(slots=8, data=msgspec.json.encode({EVIL: 1}))
        attachment = join(server, EVIL, EVIL, addr=EVIL, brings=brings)
        server.coordinator.propose(attachment, Update(EVIL, msgspec.json.encode(EVIL)))
        other = join(server, EVIL, f"{EVIL} too", addr="javascript:alert(1)")
        server.coordinator.propose(attachment, Progress(EVIL, 1234))
        server.coordinator.steer(EVIL, Drain(EVIL, 600.0, EVIL))
        await page.until_text("#run-title", EVIL)
        await page.until_text("#members .name", EVIL)
        await page.until_text("#members .address", EVIL)
        await page.until_text("#members .work", "8 slots")
        await page.until_text("#members .work", "step 1,234")
        await page.until_text("#members .brings code", EVIL)
        await page.until_text("#timeline", f"will be gone within 600 s: {EVIL}")
        await page.click("#members td.act button:first-child:not(:disabled)")
        await page.until_text("#ask-title", f"Drain {EVIL} too?")
        await page.press("Escape")
        server.coordinator.propose(attachment, Leave(EVIL, EVIL))
        server.coordinator.propose(other, Leave(f"{EVIL} too"))
        await page.until_text("#gone", f"{EVIL} (left) in round 0: {EVIL}")
        assert await page.run("document.querySelectorAll('main img').length") == 0
        assert await page.run("window.hacked") is None
        assert page.complaints == []


@in_browser
async def test_the_browser_runs_no_script_that_is_not_of_the_page(chromium: str) -> None:
    async with looking(chromium) as (_, page):
        await page.until_text("#empty-title", "Nobody")
        markup = "document.body.innerHTML = '<b>x</b>'"
        assert await page.run(f"(() => {{ try {{ {markup} }} catch {{ return 'no'; }} }})()") == "no"
        inline = "const one = document.createElement('script'); one.textContent = 'window.hacked = 1';"
        assert await page.run(f"(() => {{ try {{ {inline} }} catch {{ return 'no'; }} }})()") == "no"


@in_browser
async def test_a_lost_connection_is_shown_and_the_page_comes_back_by_itself(
    chromium: str, free_port: int
) -> None:
    address = f"127.0.0.1:{free_port}"
    async with browser_page(chromium) as page:
        async with ar.serve("127.0.0.1:0", http=address) as server:
            join(server, "before", "a", ALONE)
            await page.open(f"http://{address}/")
            await page.until_text("#link", "live")
            await page.until_text("#members", "a")
        await page.until_text("#link", "connection lost, trying again")
        await page.until_text("#lost", "What is shown is from")
        await page.until("document.querySelector('#close-button').disabled")
        acts = "[...document.querySelectorAll('[data-act]')]"
        assert await page.run(f"{acts}.every((one) => one.disabled)") is True
        beat = "document.querySelector('#members .beat').textContent + "
        beat += "document.querySelector('#members meter').value"
        shown = await page.run(beat)
        await page.until("!/^0/.test(document.querySelector('#lost-age').textContent)")
        assert await page.run(beat) == shown  # nothing is known of the node, so its heart does not age
        assert await page.faults() == []
        await page.run("window.setTimeout = () => 0")  # so that nothing is tried unless it is asked for
        await page.until_text("#lost", "Trying now")
        async with ar.serve("127.0.0.1:0", http=address) as server:
            join(server, "after", "b", ALONE)
            await page.click("#retry-button")
            await page.until_text("#runs", "after")
            await page.until_text("#link", "live")


@in_browser
async def test_what_happens_while_the_connection_is_lost_is_told_afterwards_and_nothing_twice(
    chromium: str,
) -> None:
    async with http_server() as serving, browser_page(chromium) as page:
        join(serving.server, "job", "a", ALONE)
        await page.open(f"{serving.server.http_url}/")
        await page.until_text("#timeline", "a joins the round")
        for connection in list(serving.listener.connections):
            connection.abort()
        serving.server.coordinator.steer("job", Drain("a", 600.0, "meanwhile"))
        await page.until_text("#timeline", "a is draining and will be gone within 600 s: meanwhile")
        texts = await page.run(
            "[...document.querySelectorAll('#timeline .text')].map((one) => one.textContent)"
        )
        assert texts == [
            "a is draining and will be gone within 600 s: meanwhile",
            "a joins the round",  # and what followed from it
            "round 0 is complete with 1 node",
        ]


@in_browser
async def test_thousands_of_nodes_are_shown_a_part_at_a_time_and_found_by_a_filter(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        many = RunSettings(3000, 3000, keep_alive_interval=3600.0)
        for number in range(3000):
            join(server, "big", f"node-{number}", many, addr=f"10.1.{number // 250}.{number % 250}")
        await page.until_text("#members-count", "3,000 nodes")
        rows = "document.querySelectorAll('#members tr').length"
        assert await page.run(rows) == 200
        await page.click("#members-more-button")
        assert await page.run(rows) == 400
        await page.run("document.querySelector('#members-filter').focus()")
        await page.type("node-2999")
        await page.until_text("#members-count", "1 of 3000 nodes")
        assert await page.run("document.querySelector('#members .address').textContent") == "10.1.11.249"
        await page.run("document.querySelector('#members-filter').select()")
        await page.type("10.1.3.7")
        await page.until_text("#members", "node-757")
        await page.run(
            "const s = document.querySelector('#members-state'); s.value = 'spare';"
            "s.dispatchEvent(new Event('input'))"
        )
        await page.until_text("#members-more", "No node is like that.")


@in_browser
async def test_many_runs_are_listed_and_found_by_a_filter(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        for number in range(400):
            join(server, f"run-{number:03}", "a", ALONE)
        await page.until_text("#runs-count", "400")
        await page.until_text("#runs-more", "more runs than are listed")
        await page.run("document.querySelector('#runs-filter').focus()")
        await page.type("run-399")
        await page.click("#runs a")
        await page.until_text("#run-title", "run-399")
        assert await page.run("document.title") == "run-399 · arendezvous"


@in_browser
async def test_everybody_can_use_it_in_either_colours_on_any_screen(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        settings = RunSettings(3, 3, keep_alive_interval=3600.0, disconnect_grace=600.0)
        for name in ("a", "b", "c", "d", "e", "f" * 200):  # which is shown in full
            join(server, "job", name, settings, addr="host.example")
        server.coordinator.steer("job", Drain("a", 600.0, "maintenance"))
        server.coordinator.steer("job", Quarantine("z", False, None, "ann", "bad NIC"))
        server.coordinator.detach(server.coordinator.runs["job"].attachments["b"])
        for text in ("draining", "connection lost", "waits for the next round", "spare"):
            await page.until_text("#members", text)
        await page.until("!document.querySelector('#rounds-panel').hidden")
        for width in (360, 1280):
            for dark in (False, True):
                await page.shape(width, 800, dark=dark)
                assert await page.faults() == [], (width, dark)
                assert await page.run("document.documentElement.scrollWidth <= window.innerWidth") is True
        ground = await page.run("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(14, 17, 22)"
        await page.click("#close-button")
        assert await page.faults() == []


@in_browser
async def test_it_opens_on_the_run_that_needs_somebody(chromium: str) -> None:
    async with ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server, browser_page(chromium) as page:
        for name in ("fine", "loses"):
            settings = RunSettings(1, 1, keep_alive_interval=3600.0, disconnect_grace=600.0)
            attachment = join(server, name, "a", settings)
        join(server, "begins", "a", PAIR)
        server.coordinator.propose(join(server, "done", "a", ALONE), Leave("a", "", Cause.FINISHED))
        server.coordinator.detach(attachment)
        await page.open(f"{server.http_url}/")
        await page.until_text("#run-title", "loses")
        names = "[...document.querySelectorAll('#runs .name')].map((one) => one.textContent)"
        assert await page.run(names) == ["loses", "begins", "fine", "done"]
        assert await page.run("document.querySelector('#runs .need').textContent") == "1 lost"
        await page.shape(390, 844)  # on a phone the list is behind a button
        list_is_seen = "document.querySelector('#runs').checkVisibility()"
        assert await page.run(list_is_seen) is False
        await page.click("#runs-button")
        await page.click("#runs li:last-child a")
        await page.until_text("#run-title", "done")
        assert await page.run(list_is_seen) is False


@in_browser
async def test_rounds_are_bars_that_tell_who_was_late_and_like_events_are_one_line(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        settings = RunSettings(3, 3, keep_alive_interval=3600.0)
        for name in "abc":
            join(server, "job", name, settings)
        leaves = server.coordinator.runs["job"].attachments["c"]
        server.coordinator.propose(leaves, Leave("c", "out of memory", Cause.FAILED))
        for name in "abc":
            join(server, "job", name, settings, after=(1, 0))
        await page.until_text("#round-name", "Round 1")
        texts = "[...document.querySelectorAll('#timeline .text')].map((one) => one.textContent)"
        assert await page.run(texts) == [
            "c failed: out of memory",
            "2 nodes join again",
            "round 1 gathers",
            "c joins the round",
            "round 1 is complete with 3 nodes",
            "3 nodes join the round",
            "round 0 is complete with 3 nodes",
        ]
        assert await page.run("document.querySelector('#timeline ol .names').textContent") == "a, b"
        await page.run("document.querySelector('#rounds button[tabindex=\"0\"]').focus()")
        await page.press("ArrowLeft")
        await page.until_text("#round-name", "Round 0")
        await page.until_text("#round-facts", "c failed: out of memory")


@in_browser
async def test_filters_are_in_the_address_and_names_and_commands_can_be_copied(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        join(server, "o'job", "alpha")
        join(server, "o'job", "beta", addr="10.0.0.2")
        await page.run('location.hash = "#/runs/o\'job?nodes=bet"')
        await page.until_text("#members-count", "1 of 2 nodes")
        await page.run("document.querySelector('#members-filter').focus()")
        await page.type("a")
        assert await page.run("location.hash") == "#/runs/o'job?nodes=beta"
        copied = "document.querySelector('#copy-curl').dataset.copy"
        assert await page.run(copied) == f"curl -s '{server.http_url}/v1/runs/o%27job'"
        await page.click("#members .address .copy")
        await page.until_text("#said", "Copied.")
        assert await page.run("document.querySelector('#members .address .copy').dataset.copy") == "10.0.0.2"


@in_browser
async def test_the_colours_can_be_chosen_and_are_kept(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        await page.shape(1000, 700, dark=True)
        await page.until_text("#theme-button", "Auto")
        await page.click("#theme-button")
        await page.until_text("#theme-button", "Light")
        ground = "getComputedStyle(document.body).backgroundColor"
        assert await page.run(ground) == "rgb(246, 247, 249)"
        await page.open(f"{server.http_url}/")
        await page.until_text("#theme-button", "Light")
        assert await page.run(ground) == "rgb(246, 247, 249)"


@in_browser
async def test_the_keyboard_reaches_everything_and_the_first_stop_skips_the_list(chromium: str) -> None:
    async with looking(chromium) as (server, page):
        join(server, "job", "a", ALONE)
        await page.until_text("#members", "a")
        stops = []
        for _ in range(20):
            await page.press("Tab")
            stops.append(
                await page.run("document.activeElement.id || document.activeElement.textContent.trim()")
            )
        assert stops[0] == "Skip to the run"
        assert {"token-button", "theme-button", "runs-filter", "close-button", "members-filter"} <= set(stops)
