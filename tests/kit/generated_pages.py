"""Fills what the documents say as the program says it: run ``python -m tests.kit.generated_pages``.

What stands between ``<!-- NAME -->`` and ``<!-- end -->`` of a page comes from here: the table of options,
each command, the resources of HTTP, events and messages. The picture of the law is a file of its own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import typer

from arendezvous.cli.app import app
from arendezvous.law.events import LawEvent
from arendezvous.law.rules import RoundRules
from arendezvous.law.state import Cause, RunSettings
from arendezvous.rendezvous.option_groups import RendezvousOptions
from arendezvous.rendezvous.options import Option, settings_of
from arendezvous.schemes import OURS
from arendezvous.server.http.resources import RESOURCES
from arendezvous.server.http.resources.openapi import description
from arendezvous.wire.native.messages import VERSION, ClientMessage, ServerMessage
from tests.kit import ROOT, law_picture

DOCS: Final = ROOT / "docs"
_PART: Final = re.compile(r"<!-- ([a-z ]+) -->\n(.*?)<!-- end -->\n", re.DOTALL)
_AGREED: Final = {
    "nnodes", "last_call_timeout", *RunSettings.__struct_fields__, *RoundRules.__struct_fields__,
}  # fmt: skip
_COMMON: Final = {
    "json", "timeout", "token_file", "tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name",
}  # fmt: skip


def generated() -> Mapping[Path, str]:
    """Each file with generated parts, as it has to be."""
    parts: Mapping[str, Mapping[str, Callable[[], str]]] = {
        "settings": {"options": _options},
        "cli": {"common options": _common_options, **_commands()},
        "http": {"resources": _resources},
        "events": {"events": _events, "causes": _causes},
        "wire": {"messages": _messages},
    }
    pages = {DOCS / "reference" / f"{name}.md": filling for name, filling in parts.items()}
    filled = {page: _filled(page, filling) for page, filling in pages.items()}
    return {**filled, DOCS / "explanation" / "law.svg": law_picture.drawn()}


def _filled(page: Path, parts: Mapping[str, Callable[[], str]]) -> str:
    text = page.read_text()
    names = [name for name, _ in _PART.findall(text)]
    assert sorted(names) == sorted(parts), f"{page.name} has parts {names}, and not {list(parts)}"
    return _PART.sub(lambda part: f"<!-- {part[1]} -->\n{parts[part[1]]()}<!-- end -->\n", text)


def _table(*rows: tuple[str, ...]) -> str:
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    ruled = [cells[0], ("---",) * len(cells[0]), *cells[1:]]
    lines = ("|" + "|".join(row) + "|" if row[0] == "---" else "| " + " | ".join(row) + " |" for row in ruled)
    return "\n".join(lines) + "\n"


# The options of `open_rendezvous`


def _options() -> str:
    rows = [_option(name, option) for name, option in settings_of(RendezvousOptions).items()]
    return _table(("option", "default", "what", "of"), *rows)


def _option(name: str, option: Option) -> tuple[str, ...]:
    agreed = " *" if name in _AGREED else ""
    default = option.otherwise or "-" if option.default in (None, "") else _shown(option.default)
    takers = [scheme for scheme in OURS if name in scheme.settings]
    schemes = "all" if len(takers) == len(OURS) else ", ".join(f"`{scheme.name}`" for scheme in takers)
    if len(takers) == len(OURS) - 1:
        (missing,) = set(OURS) - set(takers)
        schemes = f"all but `{missing.name}`"
    return (f"`{name}`{agreed}", default, option.text, schemes)


def _shown(default: object) -> str:
    if isinstance(default, str):
        return f"`{default}`"
    return f"{default:g}" if isinstance(default, float) else str(default)


# The command line


def _command_group() -> Any:
    return typer.main.get_command(app)


def _commands() -> dict[str, Callable[[], str]]:
    return {name: partial(_command, command) for name, command in _command_group().commands.items()}


def _command(command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    names = {argument.name: argument.metavar.strip("[]") for argument in arguments}
    usage = " ".join(
        names[argument.name] if argument.required else f"[{names[argument.name]}]" for argument in arguments
    )
    told = [argument for argument in arguments if argument.name != "url" and argument.help != "The run."]
    rows: list[tuple[str, ...]] = [(f"`{names[argument.name]}`", "", argument.help) for argument in told]
    rows += [_command_option(option) for option in _options_of(command, common=False)]
    text = f"{command.help}\n\n```text\n{' '.join(filter(None, ('arendezvous', command.name, usage)))}\n```\n"
    return text + ("\n" + _table(("argument or option", "default", "what"), *rows) if rows else "")


def _common_options() -> str:
    rows = [
        _command_option(option) for option in _options_of(_command_group().commands["status"], common=True)
    ]
    return _table(("option", "default", "what"), *rows)


def _options_of(command: Any, *, common: bool) -> list[Any]:
    is_client = any(parameter.name == "url" for parameter in command.params)
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return [option for option in options if (is_client and option.name in _COMMON) is common]


def _command_option(option: Any) -> tuple[str, ...]:
    names = [f"`{name} {option.metavar}`" if option.metavar else f"`{name}`" for name in option.opts]
    default = option.default if isinstance(option.default, str | int | float) else ""
    if isinstance(option.show_default, str):
        default = option.show_default
    shown = "" if option.is_flag else f"{default:g}" if isinstance(default, float) else str(default)
    if option.envvar:
        shown = option.envvar
    return (", ".join(names), shown, option.help.replace("[", "\\["))


# HTTP


def _resources() -> str:
    rows = []
    described = description(tuple(route for resource in RESOURCES for route in resource.routes))
    for path, operations in described["paths"].items():
        if path.startswith("/page/"):
            continue
        for method, operation in operations.items():
            if method != "head":
                rows.append(_resource(method, path, operation, described["components"]["schemas"]))
    return _table(("request", "does", "takes", "body"), *rows)


def _resource(method: str, path: str, operation: Any, schemas: Mapping[str, Any]) -> tuple[str, ...]:
    takes = [
        f"`{parameter['name']}`" for parameter in operation["parameters"] if parameter["in"] != "path"
    ]  # fmt: skip
    body = [
        f"`{field}`"
        for content in operation.get("requestBody", {}).get("content", {}).values()
        for kind in content.get("schema", {}).get("anyOf", [content.get("schema", {})])
        for field in schemas.get(kind.get("$ref", "").rpartition("/")[2], {}).get("properties", ())
    ]
    fields = list(dict.fromkeys(body))
    does = "The live page." if path == "/" else operation["summary"]
    return (f"`{method.upper()} {path}`", does, ", ".join(takes), ", ".join(fields))


# Events and messages


def _events() -> str:
    rows = [
        (f"`{event.__struct_config__.tag}`", _fields(event), _first_sentence(event))
        for event in get_args(LawEvent)
    ]
    return _table(("event", "fields", "what happened"), *rows)


def _causes() -> str:
    return ", ".join(f"`{cause.value}`" for cause in Cause) + ".\n"


def _messages() -> str:
    rows = [
        (f"`{message.__struct_config__.tag}`", sender, _fields(message), _first_sentence(message))
        for sender, messages in (("client", ClientMessage), ("server", ServerMessage))
        for message in get_args(messages)
    ]
    return f"This is version {VERSION}.\n\n" + _table(("message", "of the", "fields", "what"), *rows)


def _fields(struct: Any) -> str:
    return ", ".join(f"`{name}`" for name in struct.__struct_fields__)


def _first_sentence(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text)
