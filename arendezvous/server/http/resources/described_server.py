"""The operations on the server itself, as ``/openapi.json`` tells of them."""

from __future__ import annotations

from typing import Any, Final

from arendezvous.server.http.resources.describing import Answer, Content, Operation, json
from arendezvous.server.http.resources.health import ServerHealth, ServerReadiness
from arendezvous.server.http.resources.metrics import OPEN_METRICS
from arendezvous.server.http.resources.page import FILES, path_of

_TEXT: Final = Content("text/plain", (str,))


def _file(name: str, media: str) -> Operation:
    answers = {
        200: Answer("The file.", (Content(media, (str,)),), {"ETag": "Names this version of it."}),
        304: Answer("It is what If-None-Match says.", headers={"ETag": "Names this version of it."}),
    }
    word = "page" if name == "index.html" else "page" + name.title().replace(".", "")
    return Operation(
        "GET", path_of(name), word, f"The live page: {name}.", "page", answers, is_open=True, head=True
    )


SERVER: Final = (
    Operation(
        "GET", "/healthz", "health", "Answers if the process lives and its event loop turns.", "server",
        {200: Answer("It does.", (_TEXT, json(ServerHealth)))}, is_open=True, head=True,
    ),
    Operation(
        "GET", "/readyz", "readiness", "Tells whether nodes may be sent here.", "server",
        {
            200: Answer("They may.", (_TEXT, json(ServerReadiness))),
            503: Answer("A door is shut, or the server ends.", (_TEXT, json(ServerReadiness))),
        },
        is_open=True, head=True,
    ),
    Operation(
        "GET", "/metrics", "metrics", "The figures of the server, for Prometheus.", "server",
        {200: Answer("The figures.", (_TEXT, Content(OPEN_METRICS, (str,))))}, head=True,
    ),
    Operation(
        "GET", "/openapi.json", "openapi", "This description.", "server",
        {200: Answer("The description.", (json(dict[str, Any]),))}, is_open=True, head=True,
    ),
    *(_file(name, media) for name, media in FILES.items()),
)  # fmt: skip
