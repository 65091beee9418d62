"""``/``: the live page. Its files come with the package; the browser may load and send nothing else."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Final

from aiohttp import web

from arendezvous.server.http.routes import Answer, Content, Handler, Needs, Resource, Route

_PAGE: Final = resources.files("arendezvous.server") / "page"
_MEDIA: Final = {".html": "text/html", ".css": "text/css", ".svg": "image/svg+xml", ".js": "text/javascript"}
FILES: Final = {  # what an editor, say, has left beside them is not served
    file.name: media for file in _PAGE.iterdir() if (media := _MEDIA.get(PurePath(file.name).suffix))
}
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # it is asked for each time; 304 says that nothing has changed
}


def path_of(name: str) -> str:
    """Tells where a file is."""
    return "/" if name == "index.html" else f"/page/{name}"


def _serving(name: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        body, tag = _load(name)
        headers = HEADERS | {"ETag": tag}
        known = [part.strip() for part in request.headers.get("If-None-Match", "").split(",")]
        if tag in known:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=FILES[name], charset="utf-8", headers=headers)

    handler.__doc__ = f"Sends {name} of the live page, unless the browser has it already."
    return handler


@cache
def _load(name: str) -> tuple[bytes, str]:
    """The file and its tag."""
    body = (_PAGE / name).read_bytes()
    return body, f'"{hashlib.blake2b(body, digest_size=8).hexdigest()}"'


def _route(name: str, media: str) -> Route:
    tag = {"ETag": "Names this version of it."}
    word = "page" if name == "index.html" else "page" + name.title().replace(".", "")
    answers = {
        200: Answer("The file.", (Content(media, (str,)),), tag),
        304: Answer("It is what If-None-Match says.", headers=tag),
    }
    return Route("GET", path_of(name), word, _serving(name), "page", answers, needs=Needs.NOTHING)


RESOURCE: Final = Resource(tuple(_route(name, media) for name, media in sorted(FILES.items())))
