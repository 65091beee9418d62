"""How commands write to the terminal: lines, data as JSON, and rows as aligned columns.

Whatever a line quotes was perhaps written by a server or by a node, to be taken for a command by a terminal:
so all lines go through `say`, and what is drawn by other means through `printable`.
"""

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
    if isinstance(value, bytes):  # JSON that a node brings
        return msgspec.json.decode(value) if value else None
    return value


def say(*lines: str, err: bool = False) -> None:
    """Writes lines to stdout or stderr; what cannot be printed is escaped, so that each stays one line."""
    from arendezvous.wire.foreign import printable

    for line in lines:
        typer.echo(printable(line), err=err)


def write_json(value: Any, *, indent: int | None = 2) -> None:
    """Writes an object as JSON, with the wall-clock time at its end; `indent` None makes it one line.

    All other times in it are seconds, mostly ages: they count back from that.
    """
    import json
    from datetime import UTC, datetime

    data = {**data_of(value), "time": datetime.now(UTC).isoformat(timespec="milliseconds")}
    typer.echo(json.dumps(data, indent=indent))  # which escapes all but ASCII


def write_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes rows under their headings, in columns as wide as need be."""
    from arendezvous.wire.foreign import printable

    lines = [headings, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say("  ".join(cells).rstrip())
