"""What `deploy/` starts is a command that there is, with options that it has."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.kit import ROOT
from tests.kit.cli_kit import run

DEPLOY = ROOT / "deploy"


def _commands() -> dict[str, list[str]]:
    """The arguments of every ``arendezvous serve`` in these files, by the file."""
    container = (DEPLOY / "Containerfile").read_text()
    service = (DEPLOY / "arendezvous.service").read_text().replace("\\\n", " ")
    fleet = (DEPLOY / "kubernetes" / "fleet.yaml").read_text()
    found = {
        "Containerfile": json.loads(re.findall(r"^CMD (.*)$", container, re.MULTILINE)[0]),
        "arendezvous.service": shlex.split(re.findall(r"^ExecStart=\S+ (.*)$", service, re.MULTILINE)[0]),
        "fleet.yaml": [word.strip(' "') for word in re.findall(r"args: \[(.*)\]", fleet)[0].split(",")],
    }
    return {name: words for name, words in found.items() if words[0] == "serve"}


@pytest.mark.parametrize("name", ["Containerfile", "arendezvous.service", "fleet.yaml"])
async def test_a_server_is_started_with_options_that_there_are(name: str) -> None:
    words = _commands()[name]
    text = (await run("serve", "--help")).out
    options = [word for word in words if word.startswith("--")]
    assert len(options) >= 4
    assert [word for word in options if f" {word} " not in text] == []


def test_the_images_have_the_version_of_the_package() -> None:
    version = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
    images = [
        image
        for page in (DEPLOY / "kubernetes").glob("*.yaml")
        for image in re.findall(r"image: arendezvous:(\S+)", page.read_text())
    ]
    assert images == [version] * 2
