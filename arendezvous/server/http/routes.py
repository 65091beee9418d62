"""Describes a resource: its routes, each with who may use it and what ``/openapi.json`` says of it."""

from __future__ import annotations

import enum
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from aiohttp import web

from arendezvous.server.context import ServerContext
from arendezvous.server.http.responses import JSON, PROBLEM_JSON
from arendezvous.server.tcp.answers import Answers
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER, SERVER_HEADER

OCTETS: Final = "application/octet-stream"
EVENTS: Final = "text/event-stream"
FORM: Final = "application/x-www-form-urlencoded"
TAGS: Final = {
    "runs": "Runs: what they look like, what happens to them, closing and reopening.",
    "members": "The nodes of a run: joining, hearing of the round, heartbeats, leaving.",
    "store": "The key-value store; clients of torch's TCPStore see the same keys.",
    "server": "The server itself.",
    "page": "The live page.",
}

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Needs(enum.Enum):
    """Names what whoever uses a route has to show, where the server asks for tokens."""

    NOTHING = "nothing"  #: everybody may use it; it shows and changes nothing of anybody
    SCOPE = "scope"  #: a token good for the run in the path; without a run there, for the whole server
    ANY_SCOPE = "any scope"  #: any good token: the handler itself looks at what it is good for


class Parameter(msgspec.Struct, frozen=True, rename={"place": "in"}):
    """A parameter of a route, in the ``path``, ``query`` or ``header``, with its JSON schema."""

    name: str
    place: str
    description: str
    schema: Mapping[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})
    required: bool = False


class Content(msgspec.Struct, frozen=True):
    """One form that a body may have: the types of which its JSON is one; none: nothing is said about it."""

    media: str
    kinds: tuple[Any, ...] = ()


class Answer(msgspec.Struct, frozen=True):
    """One answer that is no error: when it is given, with which bodies (none: without), and more headers."""

    description: str
    contents: tuple[Content, ...] = ()
    headers: Mapping[str, str] = {}


class Route(msgspec.Struct, frozen=True):
    """A method of a resource."""

    method: str  # in capitals
    path: str  # as the router has it
    name: str  # the same for ever
    handler: Handler  # its docstring's first line tells everybody what it does
    tag: str  # one of `TAGS`
    answers: Mapping[int, Answer]  # those that are no errors, by status
    problems: Mapping[int, str] = {}  # when it fails, by status, beyond what all routes have in common
    parameters: tuple[Parameter, ...] = ()
    bodies: tuple[Content, ...] = ()  # the forms of its body; none: it takes none
    needs: Needs = Needs.SCOPE  # what whoever uses it has to show
    head: bool = True  # whether HEAD works as well as GET

    @property
    def template(self) -> str:
        """The path as OpenAPI has it: without what its parameters must look like."""
        return re.sub(r":[^{}]*}", "}", self.path)

    @property
    def has_head(self) -> bool:
        """Whether HEAD works."""
        return self.method == "GET" and self.head

    @property
    def summary(self) -> str:
        """Says what it does, in one line."""
        return (self.handler.__doc__ or "").partition("\n")[0]


class Resource(msgspec.Struct, frozen=True):
    """Routes that belong together, tried in this order; `shared` puts in what they share, and ends it."""

    routes: tuple[Route, ...]
    shared: Callable[[web.Application], AsyncIterator[None]] | None = None


CONTEXT: Final = web.AppKey("context", ServerContext)
ANSWERS: Final = web.AppKey("answers", Answers)
NEEDS: Final[web.AppKey[Mapping[Any, Needs]]] = web.AppKey("needs", dict)  # by handler
_REFUSAL: Final = web.RequestKey("refusal", web.HTTPException)
ROUTES: Final[web.AppKey[tuple[Route, ...]]] = web.AppKey("routes", tuple)


def routes_of(resources: tuple[Resource, ...]) -> tuple[Route, ...]:
    """All routes of these resources."""
    return tuple(route for resource in resources for route in resource.routes)


def add_resources(app: web.Application, resources: tuple[Resource, ...]) -> None:
    """Has `app` answer what is asked for at these resources."""
    routes = routes_of(resources)
    app[ROUTES] = routes
    app[NEEDS] = {route.handler: route.needs for route in routes}
    for resource in resources:
        if resource.shared is not None:
            app.cleanup_ctx.append(resource.shared)
    for route in routes:
        path = re.sub(r"{(\w+)}", r"{\1:[^/]+}", route.path)  # aiohttp's default takes no braces
        options: dict[str, Any] = {"expect_handler": _expect_later}
        if route.method == "GET":
            app.router.add_get(path, route.handler, allow_head=route.head, **options)
        else:
            app.router.add_route(route.method, path, route.handler, **options)
    _refuse_elsewhere(app.router)


async def _expect_later(request: web.Request) -> None:
    """Leaves it to who reads the body to say that it may come: by then it is known who asks.

    aiohttp says it before anything else, and fails with a 500 where the header is no text.
    """


def _refuse_elsewhere(router: web.UrlDispatcher) -> None:
    """Has what no route takes refused by a handler of ours.

    aiohttp refuses it, too, but looks at ``Expect`` first, see `_expect_later`. It takes no other router.
    """
    resolve, nowhere = router.resolve, web.PlainResource("/")

    async def resolved(request: web.Request) -> web.UrlMappingMatchInfo:
        match = await resolve(request)
        if match.http_exception is not None:
            request[_REFUSAL] = match.http_exception
            route = web.ResourceRoute("*", _refuse, nowhere, expect_handler=_expect_later)
            match = web.UrlMappingMatchInfo({}, route)
        return match

    router.resolve = resolved  # type: ignore[method-assign]  # as above


async def _refuse(request: web.Request) -> web.StreamResponse:
    raise request[_REFUSAL]


def needs_of(request: web.Request) -> Needs:
    """Tells what whoever makes a request has to show; without a route, as for what is the whole server's."""
    return request.app[NEEDS].get(request.match_info.handler, Needs.SCOPE)


def json(*kinds: Any) -> Content:
    """JSON of one of these types."""
    return Content(JSON, kinds)


def path(name: str, description: str) -> Parameter:
    """A part of the path."""
    return Parameter(name, "path", description, {"type": "string", "minLength": 1}, required=True)


def query(name: str, description: str, **schema: Any) -> Parameter:
    """A parameter of the query; a string, unless `schema` says otherwise."""
    return Parameter(name, "query", description, schema or {"type": "string"})


def operation(*names: str) -> Parameter:
    """The parameter that says what to do, of a resource to which several things can be done."""
    return Parameter("op", "query", "What to do.", {"type": "string", "enum": names}, required=True)


def header(name: str, description: str, *, required: bool = False, **schema: Any) -> Parameter:
    """A header; any text, unless `schema` says otherwise."""
    return Parameter(name, "header", description, schema or {"type": "string"}, required=required)


class ProblemBody(msgspec.Struct, frozen=True):
    """Tells what is wrong, as problem details (RFC 9457); some problems have further members.

    Attributes:
        type: Names the kind of problem, for programs.
        title: The status in words.
        status: The status.
        detail: What is wrong, what was expected and what to do.
    """

    type: str
    title: str
    status: int
    detail: str


TEXT: Final = Content("text/plain", (str,))
EVENT_STREAM: Final = Content(EVENTS, (str,))
PROBLEM: Final = Content(PROBLEM_JSON, (ProblemBody,))
RUN_ID: Final = path("run_id", "The run.")
WAIT: Final = query(
    "wait", "How many seconds to wait for it; 0: not at all.", type="number", minimum=0, maximum=3600
)
IDEMPOTENCY: Final = header(
    IDEMPOTENCY_HEADER,
    "A text that is never used for another request: a repetition gets the answer of the first.",
    type="string", pattern="^[!-~]{1,128}$",
)  # fmt: skip
SAME_SERVER: Final = header(SERVER_HEADER, "The start of the server that the request is meant for.")
CHANGING: Final = (IDEMPOTENCY, SAME_SERVER)
TOO_MANY_WAITS: Final = {507: "The store is full, so that nothing more can be waited for."}
NO_RUN: Final = {404: "There is no such run."}
REFUSED: Final = {
    409: "The state of the run does not allow it; `error` names the kind, `data` has the facts."
}
REPEATED: Final = {
    409: "The request was made before, to a server that has ended since; or the value is no number.",
    422: "The Idempotency-Key was used for another request.",
    507: "The store is full; nothing was changed.",
}
"""The problems of whatever is carried out once for each idempotency key."""
OF_ALL: Final = {400: "The request is not to be understood; the detail says what was expected."}
OF_PROTECTED: Final = {
    401: "The server asks for a token, and it is missing or wrong.",
    403: "The token is not good for this; or another site's page asks.",
    429: "There were too many wrong tokens of late.",
}
OF_BODIES: Final = {
    408: "The body comes too slowly.",
    413: "The body is too long.",
    415: "The body is of another type or encoding.",
    503: "The bodies of requests under way are too long together, the client's or all; try again.",
}
