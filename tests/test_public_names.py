"""Every public name can be had from where the documentation says it is."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

PACKAGES = ["arendezvous", "arendezvous.sync", "arendezvous.events", "arendezvous.testing"]


def documented(module: ModuleType) -> dict[str, str | None]:
    """What `help()` says of each public class and function of a module, and of each method that is ours."""
    told = {}
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isroutine(thing) or inspect.isclass(thing):
            told[name] = inspect.getdoc(thing)
        ours = [base for base in getattr(thing, "__mro__", ()) if base.__module__.startswith("arendezvous")]
        methods = {
            method: inspect.getattr_static(thing, method)
            for base in ours
            for method in vars(base)
            if not method.startswith("_")
        }
        told |= {
            f"{name}.{method}": inspect.getdoc(value)
            for method, value in methods.items()
            if inspect.isroutine(value) or isinstance(value, property)
        }
    return told


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_that_a_package_lists_can_be_imported_from_it(package: str) -> None:
    module = importlib.import_module(package)

    missing = [name for name in module.__all__ if not hasattr(module, name)]

    assert missing == []


def test_a_name_that_is_none_of_ours_is_an_attribute_error() -> None:
    module = importlib.import_module("arendezvous")

    with pytest.raises(AttributeError, match="no attribute 'open_rendezvouz'"):
        module.open_rendezvouz  # noqa: B018 - looking is the point


@pytest.mark.parametrize("package", PACKAGES)
def test_help_says_what_each_public_name_does_and_sends_nobody_elsewhere_for_it(package: str) -> None:
    told = documented(importlib.import_module(package))
    assert len(told) > 2
    assert [name for name, text in told.items() if not text or text.startswith("See ")] == []
