"""How commands write to stdout: data as JSON, and rows as aligned columns."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

import typer


def data_of(value: Any) -> Any:
    """Turns structs into objects with named fields, whatever form they have on a wire."""
    import msgspec

    if isinstance(value, msgspec.Struct):
        return {name: data_of(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: data_of(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [data_of(item) for item in value]
    return value


def write_json(value: Any, *, indent: int | None = 2) -> None:
    """Writes `value` as JSON; `indent` None makes it one line."""
    import json

    typer.echo(json.dumps(data_of(value), indent=indent))


def write_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes rows under their headings, in columns as wide as need be."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
