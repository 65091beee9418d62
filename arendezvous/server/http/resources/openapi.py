"""``/openapi.json``: what the HTTP door can do, for programs (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final

import msgspec
from aiohttp import web

from arendezvous.server.http.resources.described_runs import RUNS
from arendezvous.server.http.resources.described_server import SERVER
from arendezvous.server.http.resources.described_store import STORE
from arendezvous.server.http.resources.describing import (
    OF_ALL,
    OF_BODIES,
    OF_GUARDED,
    PROBLEM,
    Answer,
    Content,
    Operation,
    Parameter,
)
from arendezvous.server.metrics import package_version
from arendezvous.wire.http.bodies import SUMMARY, EventBody, ForgottenBody, ResetBody

OPERATIONS: Final[tuple[Operation, ...]] = (*RUNS, *STORE, *SERVER)
_STREAMED: Final = (EventBody, ForgottenBody, ResetBody, SUMMARY.twin)  # only in streams of events
_TAGS: Final = {
    "runs": "Runs: what they look like, what happens to them, closing and reopening.",
    "members": "The nodes of a run: joining, hearing of the round, heartbeats, leaving.",
    "store": "The key-value store; clients of torch's TCPStore see the same keys.",
    "server": "The server itself.",
    "page": "The live page.",
}
_ATTRIBUTE: Final = re.compile(r"^ {8}(\w+): (.*)$")

Json = dict[str, Any]


def add_openapi(app: web.Application) -> None:
    """Adds the description."""
    app.router.add_get("/openapi.json", _openapi)


async def _openapi(_: web.Request) -> web.Response:
    return web.Response(
        body=_encoded(), content_type="application/json", headers={"Cache-Control": "no-cache"}
    )


@cache
def _encoded() -> bytes:
    return msgspec.json.encode(description())


def description() -> Json:
    """The whole description, as JSON would have it."""
    kinds = list(dict.fromkeys([*_STREAMED, *(kind for content in _contents() for kind in content.kinds)]))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    for component in components.values():
        _explain(component)
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        item = paths.setdefault(operation.path, {})
        item[operation.method.lower()] = _operation(operation, by_kind)
        if operation.head:
            item["head"] = _head(operation, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "arendezvous",
            "summary": "Nodes of distributed jobs meet, agree on ranks, and meet again.",
            "version": package_version(),
            "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        },
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Where the server asks for a token.",
                }
            },
        },
    }


def _contents() -> Iterator[Content]:
    yield PROBLEM
    for operation in OPERATIONS:
        yield from operation.bodies
        for answer in operation.answers.values():
            yield from answer.contents


def _operation(operation: Operation, schemas: Mapping[Any, Json]) -> Json:
    described: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": _responses(operation, schemas),
    }
    if operation.bodies:
        described["requestBody"] = {"content": _content(operation.bodies, schemas)}
    if operation.is_open:
        described["security"] = []
    return described


def _head(operation: Operation, schemas: Mapping[Any, Json]) -> Json:
    """The same without a body."""
    described = _operation(operation, schemas)
    described["operationId"] = f"{operation.name}Head"
    described["summary"] = f"As GET, without the body: {operation.summary}"
    for response in described["responses"].values():
        response.pop("content", None)
    return described


def _responses(operation: Operation, schemas: Mapping[Any, Json]) -> Json:
    responses = {str(status): _answer(answer, schemas) for status, answer in operation.answers.items()}
    for status, when in sorted(_problems(operation).items()):
        responses[str(status)] = {"description": when, "content": _content((PROBLEM,), schemas)}
    return responses


def _problems(operation: Operation) -> dict[int, str]:
    problems = dict(OF_ALL)
    if not operation.is_open:
        problems |= OF_GUARDED
    if operation.bodies:
        problems |= OF_BODIES
    return problems | dict(operation.problems)


def _answer(answer: Answer, schemas: Mapping[Any, Json]) -> Json:
    described: Json = {"description": answer.description}
    if answer.contents:
        described["content"] = _content(answer.contents, schemas)
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    return described


def _content(contents: Iterable[Content], schemas: Mapping[Any, Json]) -> Json:
    described: Json = {}
    for one in contents:
        kinds = [schemas[kind] for kind in one.kinds]
        schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        described[one.media] = {"schema": schema} if kinds else {}
    return described


def _parameter(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.required,
        "schema": dict(parameter.schema),
    }


def _explain(schema: Json) -> None:
    """Moves what a docstring says of single attributes to the properties of these names."""
    text, _, attributes = schema.get("description", "").partition("Attributes:")
    if text:
        schema["description"] = " ".join(text.split())
    name = ""
    for line in attributes.splitlines():
        found = _ATTRIBUTE.match(line)
        if found is not None:
            name = found[1]
            _describe(schema, name, found[2])
        elif name and line.strip():
            _describe(schema, name, line.strip())


def _describe(schema: Json, name: str, text: str) -> None:
    known = schema.get("properties", {}).get(name)
    if known is not None:
        known["description"] = f"{known.get('description', '')} {text}".strip()
