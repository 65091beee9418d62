"""Writes the table of ``docs/reference/settings.md``: run ``python -m tests.kit.option_page`` for it."""

from __future__ import annotations

from typing import Final

from arendezvous.law.rules import RoundRules
from arendezvous.law.state import RunSettings
from arendezvous.rendezvous.option_groups import RendezvousOptions
from arendezvous.rendezvous.options import Setting, settings_of
from arendezvous.schemes import OURS
from tests.kit import ROOT

PAGE: Final = ROOT / "docs" / "reference" / "settings.md"
BEGIN, END = "<!-- options -->\n", "<!-- end -->\n"
_AGREED: Final = {
    "nnodes", "last_call_timeout", *RunSettings.__struct_fields__, *RoundRules.__struct_fields__,
}  # fmt: skip


def filled(page: str) -> str:
    """The page with its table as it has to be."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    rows = [_row(name, setting) for name, setting in settings_of(RendezvousOptions).items()]
    table = ["| option | default | what | of |", "|---|---|---|---|", *rows]
    return before + BEGIN + "\n".join(table) + "\n" + END + after


def _row(name: str, setting: Setting) -> str:
    option = setting.option
    agreed = " *" if name in _AGREED else ""
    default = option.otherwise or "-" if option.default in (None, "") else _shown(option.default)
    takers = [scheme for scheme in OURS if name in scheme.settings]
    schemes = "all" if len(takers) == len(OURS) else ", ".join(f"`{scheme.name}`" for scheme in takers)
    if len(takers) == len(OURS) - 1:
        (missing,) = set(OURS) - set(takers)
        schemes = f"all but `{missing.name}`"
    return f"| `{name}`{agreed} | {default} | {option.text} | {schemes} |"


def _shown(default: object) -> str:
    return (
        f"`{default}`"
        if isinstance(default, str)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
