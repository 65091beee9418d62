"""What is told of the operations of the HTTP door: the words for it, and what many of them have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from arendezvous.server.http.problem import CONTENT_TYPE as PROBLEM_TYPE
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER, SERVER_HEADER

JSON: Final = "application/json"
OCTETS: Final = "application/octet-stream"
EVENTS: Final = "text/event-stream"
FORM: Final = "application/x-www-form-urlencoded"


class ProblemBody(msgspec.Struct, frozen=True):
    """What is wrong, as problem details (RFC 9457); some problems have further members.

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


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of an operation.

    Attributes:
        name: Its name.
        place: ``path``, ``query`` or ``header``.
        description: What it says.
        schema: Its JSON schema.
        required: Whether it must be there; one in the path always must.
    """

    name: str
    place: str
    description: str
    schema: Mapping[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})
    required: bool = False


class Content(msgspec.Struct, frozen=True):
    """One form that a body may have.

    Attributes:
        media: Its media type.
        kinds: The types of which its JSON is one; empty: nothing is said about it.
    """

    media: str
    kinds: tuple[Any, ...] = ()


class Answer(msgspec.Struct, frozen=True):
    """One answer that is no error.

    Attributes:
        description: When it is given.
        contents: The forms that its body may have; empty: it has none.
        headers: Its headers beyond the usual, each with what it says.
    """

    description: str
    contents: tuple[Content, ...] = ()
    headers: Mapping[str, str] = {}


class Operation(msgspec.Struct, frozen=True):
    """One operation: a method of a resource.

    Attributes:
        method: The method, in capitals.
        path: The path, as the router has it.
        name: A name for it, the same for ever.
        summary: What it does, in one line.
        tag: What it is about.
        answers: The answers that are no errors, by status.
        problems: When it fails, by status, beyond what all operations have in common.
        parameters: Its parameters.
        bodies: The forms of its body; empty: it takes none.
        is_open: Whether nobody has to show a token.
        head: Whether HEAD works, too.
    """

    method: str
    path: str
    name: str
    summary: str
    tag: str
    answers: Mapping[int, Answer]
    problems: Mapping[int, str] = {}
    parameters: tuple[Parameter, ...] = ()
    bodies: tuple[Content, ...] = ()
    is_open: bool = False
    head: bool = False


OF_ALL: Final = {400: "The request is not to be understood; the detail says what was expected."}
OF_GUARDED: Final = {
    401: "The server asks for a token, and it is missing or wrong.",
    403: "The token is not good for this; or another site's page asks.",
    429: "There were too many wrong tokens of late.",
}
OF_BODIES: Final = {
    408: "The body comes too slowly.",
    413: "The body is too long.",
    415: "The body is of another type or encoding.",
    503: "The bodies of all requests under way are too long together; try again.",
}
PROBLEM: Final = Content(PROBLEM_TYPE, (ProblemBody,))


def json(*kinds: Any) -> Content:
    """JSON of one of these types."""
    return Content(JSON, kinds)


def path(name: str, description: str) -> Parameter:
    """A part of the path."""
    return Parameter(name, "path", description, {"type": "string", "minLength": 1}, required=True)


def query(name: str, description: str, **schema: Any) -> Parameter:
    """A parameter of the query; a string, unless `schema` says otherwise."""
    return Parameter(name, "query", description, schema or {"type": "string"})


def header(name: str, description: str, *, required: bool = False, **schema: Any) -> Parameter:
    """A header; any text, unless `schema` says otherwise."""
    return Parameter(name, "header", description, schema or {"type": "string"}, required=required)


RUN_ID: Final = path("run_id", "The run.")
NODE: Final = path("node", "The node.")
WAIT: Final = query(
    "wait", "How many seconds to wait for it; 0: not at all.", type="number", minimum=0, maximum=3600
)
IDEMPOTENCY: Final = header(
    IDEMPOTENCY_HEADER,
    "A text that is never used for another request: a repetition gets the answer of the first.",
    type="string", pattern="^[!-~]{1,128}$",
)  # fmt: skip
SAME_SERVER: Final = header(SERVER_HEADER, "The start of the server that the request is meant for.")
