"""Writes a report into pages of Markdown: between the markers that name its tables.

A page has ``<!-- bench:NAME -->`` and ``<!-- end -->``, each on a line of its own; NAME is that of a table,
or ``machine``. What is between them is replaced.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from arendezvous.bench.report import Report
from arendezvous.bench.tables import tables, to_markdown
from arendezvous.errors import RendezvousSettingsError

_MARKED: Final = re.compile(r"(<!-- bench:([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, report: Report) -> str:
    """Returns the page with the report's tables; a table that the report has not is left as it is."""
    made = {table.name: to_markdown(table) for table in tables(report)}
    made["machine"] = machine(report)

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}{made[name]}\n{match[3]}" if name in made else match[0]

    return _MARKED.sub(replace, text)


def fill_page(path: Path, report: Report) -> None:
    """Fills a page in place.

    Raises:
        RendezvousSettingsError: It cannot be read, or has no markers.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise RendezvousSettingsError.of("markdown", str(path), f"a page: {error.strerror}") from error
    if not _MARKED.search(text):
        raise RendezvousSettingsError.of("markdown", str(path), "a page with <!-- bench:NAME --> markers")
    path.write_text(fill(text, report))


def machine(report: Report) -> str:
    """In words: when, on what, with which versions."""
    about, versions = report.machine, report.versions
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return (
        f"Measured {report.at} on {about.get('processors')} processors ({about.get('model')}), "
        f"{about.get('system')}, all on loopback; {packages}."
    )
