"""The words that all commands which talk to a server take: its URL, --json, --timeout, a token, TLS."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from arendezvous.cli.command import time_option
from arendezvous.cli.exits import run_async
from arendezvous.cli.output import say, write_json
from arendezvous.errors import RendezvousSettingsError

if TYPE_CHECKING:
    from arendezvous.backends.port import RendezvousBackend
    from arendezvous.connecting import ServerConnection
    from arendezvous.net.credentials import Credentials
    from arendezvous.schemes import BackendSettings, Scheme

RunId: TypeAlias = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run.")]
Reason: TypeAlias = Annotated[str, typer.Option(metavar="TEXT", help="Why; all nodes are told.")]


@dataclass(frozen=True)
class Contact:
    """Reaches the server that a command is about, within a time-out in seconds, and answers as asked to."""

    url: str
    credentials: Credentials
    json: bool = False
    timeout: float = 5.0

    def located(self, run_id: str = "", *, shared: bool = False) -> tuple[Scheme, BackendSettings]:
        """Returns the entry of the URL's scheme, and what a backend there is made from.

        With `shared` it must be a scheme whose runs commands see.

        Raises:
            RendezvousSettingsError: The URL is malformed, or of no such scheme.
        """
        from dataclasses import replace

        from arendezvous.connecting import looked_at
        from arendezvous.schemes import parse_endpoint, scheme_named, urls_where

        scheme = scheme_named(parse_endpoint(self.url).scheme)
        where = looked_at(scheme, self.url, self.timeout, self.credentials)
        if shared and not (scheme.backend and scheme.is_shared):
            known = urls_where(lambda other: other.backend and other.is_shared)
            expected = f"a URL that begins with {known}: commands see no runs of {scheme.name}://"
            raise RendezvousSettingsError.of("URL", self.url, expected)
        return scheme, replace(where, run_id=run_id)

    def connection(self) -> ServerConnection:
        """Makes what asks whoever keeps the runs, and steers them. Raises as `located` does."""
        from arendezvous.connecting import ServerConnection

        return ServerConnection(*self.located(shared=True))

    def session(self, run_id: str) -> RendezvousBackend:
        """Makes the backend, not entered yet, through which a run is seen. Raises as `located` does."""
        scheme, where = self.located(run_id, shared=True)
        assert scheme.backend is not None  # noqa: S101 - it is shared
        return scheme.backend(where)

    def tell(self, data: Any, *lines: str) -> None:
        """Writes `data` if JSON is asked for, and else the lines."""
        if self.json:
            write_json(data)
        else:
            say(*lines)


def _option(text: str, metavar: str, variable: str | None = None) -> Any:
    return typer.Option(
        help=text, envvar=variable, show_default=False, rich_help_panel="Token and TLS", metavar=metavar
    )


_URL: Final = typer.Argument(
    metavar="URL",
    help="The server, or the cluster: tcp://host:29400, etcd://h1,h2,h3; or put it into ARENDEZVOUS_URL.",
)
_FROM_FILE: Final = "The file with the token; or put the token itself into ARENDEZVOUS_TOKEN."
_CA: Final = "Speak TLS and trust these authorities."
_NAME: Final = "The name that the server's certificate must have, if it is not the URL's host."
_TLS: Final = typer.Option(
    "--tls",
    help="Speak TLS and trust the system's authorities.",
    envvar="ARENDEZVOUS_TLS",
    rich_help_panel="Token and TLS",
)
_JSON: Final = (Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")], False)
_TIMEOUT: Final = (Annotated[float, time_option(0.1, 3600, "How long to try to reach the server.")], 5.0)
_CREDENTIALS: Final[dict[str, tuple[Any, Any]]] = {
    "token_file": (Annotated[str, _option(_FROM_FILE, "FILE")], ""),
    "tls": (Annotated[bool, _TLS], False),
    "tls_ca": (Annotated[str, _option(_CA, "FILE", "ARENDEZVOUS_TLS_CA")], ""),
    "tls_cert": (
        Annotated[str, _option("The certificate to show the server.", "FILE", "ARENDEZVOUS_TLS_CERT")],
        "",
    ),
    "tls_key": (Annotated[str, _option("The key of --tls-cert.", "FILE", "ARENDEZVOUS_TLS_KEY")], ""),
    "tls_server_name": (Annotated[str, _option(_NAME, "NAME", "ARENDEZVOUS_TLS_SERVER_NAME")], ""),
}


def contacting(command: Callable[..., Awaitable[int | None]], *, timed: bool = True) -> Callable[..., None]:
    """Makes a command of its work, whose first argument is a `Contact`; the others are of the command line.

    It takes ``--timeout`` if it is `timed`.
    """
    options = {"json": _JSON, **({"timeout": _TIMEOUT} if timed else {}), **_CREDENTIALS}

    @functools.wraps(command)
    def with_contact(url: str, **words: Any) -> None:
        async def run() -> int | None:
            from arendezvous.net.credentials import Credentials
            from arendezvous.net.tls import COMMAND_NAMES

            said = {name.removeprefix("tls_"): words.pop(name) for name in _CREDENTIALS}
            credentials = Credentials.of(**{**said, "tls": said["tls"] or None}, names=COMMAND_NAMES)
            contact = Contact(url, credentials, words.pop("json"), words.pop("timeout", Contact.timeout))
            return await command(contact, **words)

        run_async(run)

    signature = inspect.signature(command, eval_str=True)
    words, keyword = list(signature.parameters.values())[1:], inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("url", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[str, _URL]),
        *words,
        *(
            inspect.Parameter(name, keyword, annotation=kind, default=otherwise)
            for name, (kind, otherwise) in options.items()
        ),
    ]
    with_contact.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    return with_contact
