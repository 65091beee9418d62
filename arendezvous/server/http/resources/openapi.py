"""``/openapi.json``: what the HTTP listener can do, for programs (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final

import msgspec
from aiohttp import web

from arendezvous.server.http import routes
from arendezvous.server.http.responses import JSON
from arendezvous.server.http.routes import Answer, Content, Needs, Resource, Route, json
from arendezvous.server.metrics import package_version
from arendezvous.wire.http.bodies import SUMMARY, EventBody, ForgottenBody, ResetBody

_STREAMED: Final = (EventBody, ForgottenBody, ResetBody, SUMMARY.twin)  # only in streams of events
_ATTRIBUTE: Final = re.compile(r"^ {8}(\w+): (.*)$")

Json = dict[str, Any]


_DESCRIPTION: Final = web.AppKey[Callable[[], bytes]]("description")


async def _openapi(request: web.Request) -> web.Response:
    """Describes what there is here, for programs."""
    body = request.app[_DESCRIPTION]()
    return web.Response(body=body, content_type=JSON, headers={"Cache-Control": "no-cache"})


async def _shared(app: web.Application) -> AsyncIterator[None]:
    made: Callable[[], bytes] = cache(lambda: msgspec.json.encode(description(app[routes.ROUTES])))
    app[_DESCRIPTION] = made
    yield


RESOURCE: Final = Resource((
    Route(
        "GET", "/openapi.json", "openapi", _openapi, "server",
        {200: Answer("The description.", (json(dict[str, Any]),))}, needs=Needs.NOTHING,
    ),
), _shared)  # fmt: skip


def description(all_routes: tuple[Route, ...]) -> Json:
    """The whole description, as JSON would have it."""
    kinds = list(
        dict.fromkeys([*_STREAMED, *(kind for content in _contents(all_routes) for kind in content.kinds)])
    )
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    for component in components.values():
        _explain(component)
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Json] = {}
    for route in all_routes:
        item = paths.setdefault(route.template, {})
        item[route.method.lower()] = _operation(route, by_kind)
        if route.has_head:
            item["head"] = _head(route, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "arendezvous",
            "summary": "Nodes of distributed jobs meet, agree on ranks, and meet again.",
            "version": package_version(),
            "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        },
        "tags": [{"name": name, "description": text} for name, text in routes.TAGS.items()],
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


def _contents(all_routes: tuple[Route, ...]) -> Iterator[Content]:
    yield routes.PROBLEM
    for route in all_routes:
        yield from route.bodies
        for answer in route.answers.values():
            yield from answer.contents


def _operation(route: Route, schemas: Mapping[Any, Json]) -> Json:
    described: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": msgspec.to_builtins(route.parameters),
        "responses": _responses(route, schemas),
    }
    if route.bodies:
        described["requestBody"] = {"content": _content(route.bodies, schemas)}
    if route.needs is Needs.NOTHING:
        described["security"] = []
    return described


def _head(route: Route, schemas: Mapping[Any, Json]) -> Json:
    """The same without a body."""
    described = _operation(route, schemas)
    described["operationId"] = f"{route.name}Head"
    described["summary"] = f"As GET, without the body: {route.summary}"
    for response in described["responses"].values():
        response.pop("content", None)
    return described


def _responses(route: Route, schemas: Mapping[Any, Json]) -> Json:
    responses = {str(status): _answer(answer, schemas) for status, answer in route.answers.items()}
    problems = routes.OF_ALL | (routes.OF_PROTECTED if route.needs is not Needs.NOTHING else {})
    problems |= (routes.OF_BODIES if route.bodies else {}) | dict(route.problems)
    for status, when in sorted(problems.items()):
        responses[str(status)] = {"description": when, "content": _content((routes.PROBLEM,), schemas)}
    return responses


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
