"""``python -m arendezvous``: the same as ``arendezvous``."""

from __future__ import annotations

from arendezvous.cli import main

main()
