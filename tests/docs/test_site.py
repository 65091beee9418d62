"""The site has every page and every public name, and is built without a warning where mkdocs is installed."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import arendezvous as ar
from tests.kit import ROOT

NAV = re.findall(r"^ +- (?:\w+: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
DOCS = ROOT / "docs"


def test_every_page_is_in_the_navigation_once() -> None:
    pages = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    assert sorted(NAV) == pages


def test_the_reference_of_the_api_has_every_public_name_and_no_other() -> None:
    page = (DOCS / "reference" / "api.md").read_text()
    named = re.findall(r"^::: arendezvous\.([\w.]+)$", page, re.MULTILINE)
    beside = ("sync", "torch", "events", "testing")
    of_these = [
        f"{package}.{name}"
        for package in beside
        for name in importlib.import_module(f"arendezvous.{package}").__all__
    ]
    assert sorted(named) == sorted([*ar.__all__, *beside, *of_these])


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocstrings") is None, reason="needs mkdocs: pip install '.[docs]'"
)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "Joins the next round" in (tmp_path / "reference" / "api" / "index.html").read_text()
