"""Every public name can be had from where the documentation says it is."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("package", ["arendezvous", "arendezvous.testing", "arendezvous.events"])
def test_every_name_that_a_package_lists_can_be_imported_from_it(package: str) -> None:
    module = importlib.import_module(package)

    missing = [name for name in module.__all__ if not hasattr(module, name)]

    assert missing == []


def test_a_name_that_is_none_of_ours_is_an_attribute_error() -> None:
    module = importlib.import_module("arendezvous")

    with pytest.raises(AttributeError, match="no attribute 'open_rendezvouz'"):
        module.open_rendezvouz  # noqa: B018 - looking is the point
