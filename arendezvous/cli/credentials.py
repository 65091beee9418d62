"""The options by which commands that talk to a server are given a token and TLS settings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from arendezvous.cli.exits import code_of, fail
from arendezvous.errors import RendezvousError

if TYPE_CHECKING:
    from arendezvous.net.credentials import Credentials

given: Final[ContextVar[Credentials]] = ContextVar("given")
"""What the command that runs was given; each that `takes_credentials` was."""

_PANEL: Final = "Token and TLS"


def _file(text: str, variable: str) -> Any:
    return typer.Option(
        help=text, envvar=variable, show_default=False, rich_help_panel=_PANEL, metavar="FILE"
    )


_TOKEN_FILE: Final = typer.Option(
    help="The file with the token; or put the token itself into ARENDEZVOUS_TOKEN.",
    show_default=False,
    rich_help_panel=_PANEL,
    metavar="FILE",
)
_SERVER_NAME: Final = typer.Option(
    help="The name that the server's certificate must have, if it is not the URL's host.",
    envvar="ARENDEZVOUS_TLS_SERVER_NAME",
    show_default=False,
    rich_help_panel=_PANEL,
    metavar="NAME",
)
_TLS: Final = typer.Option(
    "--tls",
    help="Speak TLS and trust the system's authorities.",
    envvar="ARENDEZVOUS_TLS",
    rich_help_panel=_PANEL,
)
_OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "token_file": (Annotated[str, _TOKEN_FILE], ""),
    "tls": (Annotated[bool, _TLS], False),
    "tls_ca": (Annotated[str, _file("Speak TLS and trust these authorities.", "ARENDEZVOUS_TLS_CA")], ""),
    "tls_cert": (Annotated[str, _file("The certificate to show the server.", "ARENDEZVOUS_TLS_CERT")], ""),
    "tls_key": (Annotated[str, _file("The key of --tls-cert.", "ARENDEZVOUS_TLS_KEY")], ""),
    "tls_server_name": (Annotated[str, _SERVER_NAME], ""),
}


def takes_credentials(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options for a token and for TLS; while it runs, `given` has what they say."""

    @functools.wraps(command)
    def with_credentials(*args: Any, **kwargs: Any) -> None:
        from arendezvous.net.credentials import Credentials
        from arendezvous.net.tls import COMMAND_NAMES

        options = {name: kwargs.pop(name, default) for name, (_, default) in _OPTIONS.items()}
        try:
            credentials = Credentials.of(
                token_file=options["token_file"],
                tls=options["tls"] or None,
                ca=options["tls_ca"],
                cert=options["tls_cert"],
                key=options["tls_key"],
                server_name=options["tls_server_name"],
                names=COMMAND_NAMES,
            )
        except RendezvousError as error:
            fail(error.message, code_of(error))
        reset = given.set(credentials)
        try:
            command(*args, **kwargs)
        finally:
            given.reset(reset)

    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, annotation=annotation, default=default)
        for name, (annotation, default) in _OPTIONS.items()
    ]
    parameters = [*signature.parameters.values(), *added]
    with_credentials.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_credentials
