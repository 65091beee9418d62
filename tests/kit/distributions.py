"""Makes distributions with entry points, as if somebody had installed them."""

from __future__ import annotations

import textwrap
from pathlib import Path


def write_distribution(site: Path, name: str, group: str, entry_points: str, module: str) -> None:
    """Writes a distribution with one module of the same name, and its metadata, into a folder for the path.

    Args:
        site: The folder; it is made.
        name: The name of the distribution and of its module.
        group: The group of its entry points.
        entry_points: The lines of that group.
        module: The text of the module.
    """
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry_points}\n")
    (site / f"{name}.py").write_text(textwrap.dedent(module))
