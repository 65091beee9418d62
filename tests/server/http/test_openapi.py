"""The description of the HTTP listener is true: it names what there is, and answers are as it says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import anyio.from_thread
import pytest
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks

import arendezvous as ar
from arendezvous.coordinator.coordinator import Coordinator
from arendezvous.keyspace.host import KeyspaceHost
from arendezvous.server.access.admission import FailureThrottle
from arendezvous.server.access.limits import DEFAULT_LIMITS
from arendezvous.server.context import ServerContext
from arendezvous.server.http.listener import make_app
from arendezvous.server.http.resources import RESOURCES
from arendezvous.server.http.resources.openapi import description
from arendezvous.server.http.routes import routes_of
from arendezvous.server.serve import Server
from arendezvous.server.tcp.sharing import Shared

EXAMPLES = 10  # of each operation, the same ones in every run of the tests
PATIENCE = 120.0
STREAMS = {"/v1/events", "/v1/runs/{run_id}/events"}  # they go on for ever
SETTINGS = {"min_nodes": 1, "max_nodes": 2}
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
]


DESCRIPTION = description(routes_of(RESOURCES))


def described() -> list[tuple[str, str]]:
    """The methods and paths of the description."""
    return [(method, path) for path, item in DESCRIPTION["paths"].items() for method in item]


def shared() -> Shared:
    """What the connections of a server share."""
    return Shared(DEFAULT_LIMITS, FailureThrottle())


async def test_every_route_is_described_and_every_description_has_its_route() -> None:
    coordinator = Coordinator(asyncio.get_running_loop())
    app = make_app(ServerContext(coordinator, KeyspaceHost(), shared()))
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in app.router.routes()
        if isinstance(route.resource, web.Resource)
    }
    assert routes == set(described())
    coordinator.close()


def test_the_description_names_each_operation_once_and_explains_each_parameter() -> None:
    operations = [operation for item in DESCRIPTION["paths"].values() for operation in item.values()]
    names = [operation["operationId"] for operation in operations]
    assert sorted(set(names)) == sorted(names)
    for operation in operations:
        assert operation["summary"].endswith("."), operation
        assert operation["tags"][0] in {tag["name"] for tag in DESCRIPTION["tags"]}
        assert all(parameter["description"] for parameter in operation["parameters"]), operation


def test_the_description_has_what_the_code_says_of_single_fields() -> None:
    schema = DESCRIPTION["components"]["schemas"]["RunBody"]
    assert schema["description"] == (
        "The whole of a run at one moment; see `arendezvous.law.status.RunStatus`."
    )
    assert schema["properties"]["explain"]["description"] == "The same in words."
    assert "Last-Event-ID" in schema["properties"]["last_event"]["description"]


@pytest.fixture(scope="module")
def schema() -> schemathesis.schemas.BaseSchema:
    return schemathesis.openapi.from_dict(json.loads(json.dumps(DESCRIPTION)))


def modes() -> list[tuple[str, str, schemathesis.GenerationMode]]:
    """The operations to try, with requests as described, and others where there is something to get wrong."""
    found = []
    for method, path in described():
        operation = DESCRIPTION["paths"][path][method]
        if path not in STREAMS:
            found.append((method, path, schemathesis.GenerationMode.POSITIVE))
            if operation["parameters"] or "requestBody" in operation:
                found.append((method, path, schemathesis.GenerationMode.NEGATIVE))
    return found


def soon(wait: object) -> object:
    """A wait that is over soon, in place of a long one."""
    try:
        return min(float(str(wait)), 0.01)
    except ValueError:
        return wait


@pytest.mark.parametrize(("method", "path", "mode"), modes())
def test_the_listener_answers_nothing_that_is_not_described(
    method: str,
    path: str,
    mode: schemathesis.GenerationMode,
    schema: schemathesis.schemas.BaseSchema,
) -> None:
    operation = schema[path][method]

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(mode), known=st.booleans(), repeated=st.booleans())
    def ask(case: schemathesis.Case[Any], known: bool, repeated: bool) -> None:
        if known:
            ids = {"run_id": "known", "node": "me", "key": "known", "barrier": "known"}
            case.path_parameters = {name: ids[name] for name in case.path_parameters}
            if "/members" in path:
                case.headers["Arendezvous-Session"] = secret
        if "wait" in case.query:
            case.query["wait"] = soon(case.query["wait"])
        for _ in range(2 if repeated else 1):
            case.call_and_validate(base_url=server.http_url, checks=CHECKS, timeout=PATIENCE)

    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ar.serve("127.0.0.1:0", http="127.0.0.1:0")) as server,
    ):
        secret = portal.call(prepare, server)
        ask()


async def prepare(server: Server) -> str:
    """Makes a run with a node, and a key; returns the secret of the node's session."""
    async with aiohttp.ClientSession(server.http_url) as client:
        body = {"node": {"name": "me"}, "settings": SETTINGS}
        async with client.post("/v1/runs/known/members", json=body) as answer:
            joined = await answer.json()
        async with client.put("/v1/kv/known", data=b"17") as answer:
            assert answer.status == 201
    return str(joined["session"])


async def problem_of(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    assert answer.headers["Content-Type"].partition(";")[0] == "application/problem+json"
    body: dict[str, Any] = await answer.json(content_type=None)
    assert body["status"] == answer.status
    return body


@pytest.mark.parametrize("path", sorted(STREAMS))
async def test_a_stream_is_a_stream_as_described(path: str) -> None:
    async with (
        ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server,
        aiohttp.ClientSession(server.http_url) as client,
        client.get(path.format(run_id="job")) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "text/event-stream")


async def test_a_method_that_is_not_described_is_405_and_the_answer_says_which_are() -> None:
    async with (
        ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server,
        aiohttp.ClientSession(server.http_url) as client,
        client.patch("/v1/runs/job") as answer,
    ):
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET,HEAD"
        await problem_of(answer)


async def test_what_is_not_there_is_404_and_the_answer_says_where_to_look() -> None:
    async with (
        ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server,
        aiohttp.ClientSession(server.http_url) as client,
        client.get("/v2/runs") as answer,
    ):
        assert answer.status == 404
        assert "/openapi.json" in (await problem_of(answer))["detail"]
