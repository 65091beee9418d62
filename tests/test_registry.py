"""Handlers are found by the name of their backend, and one broken plug-in is in nobody's way."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arendezvous import registry as registry_module
from arendezvous.errors import RendezvousSettingsError
from arendezvous.registry import (
    RendezvousHandlerRegistry,
    get_rendezvous_handler,
    rendezvous_handler_registry,
)
from arendezvous.rendezvous.parameters import RendezvousParameters
from tests.kit.distributions import write_distribution

GROUP = "arendezvous.test_handlers"

Install = Callable[[str, str, str], None]


class Handler:
    def __init__(self, backend: str) -> None:
        self.backend = backend

    def get_backend(self) -> str:
        return self.backend


def create(params: RendezvousParameters) -> Handler:
    return Handler(params.backend)


def create_other(params: RendezvousParameters) -> Handler:
    return Handler("other")


def params(backend: str) -> RendezvousParameters:
    return RendezvousParameters(backend, "localhost:1", "job", 1, 1)


@pytest.fixture
def registry() -> RendezvousHandlerRegistry[Handler]:
    return RendezvousHandlerRegistry(GROUP)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution with entry points and one module, in a folder of its own on the path."""

    def _install(name: str, entry_points: str, module: str) -> None:
        site = tmp_path / name
        write_distribution(site, name, GROUP, entry_points, module)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return _install


PLUGIN = """
    class Handler:
        def get_backend(self):
            return "{backend}"

    def get_creator():
        return lambda params: Handler()
"""


def test_a_registered_creator_makes_the_handler(registry: RendezvousHandlerRegistry[Handler]) -> None:
    registry.register("mine", create)

    assert registry.create_handler(params("mine")).backend == "mine"
    assert registry.names() == ("mine",)


def test_the_creator_is_given_the_parameters(registry: RendezvousHandlerRegistry[Handler]) -> None:
    seen: list[RendezvousParameters] = []
    given = params("mine")

    def creator(actual: RendezvousParameters) -> Handler:
        seen.append(actual)
        return create(actual)

    registry.register("mine", creator)
    registry.create_handler(given)

    assert seen == [given]


def test_the_same_creator_can_be_registered_again(registry: RendezvousHandlerRegistry[Handler]) -> None:
    registry.register("mine", create)
    registry.register("mine", create)
    registry.register_lazy("lazy", "a:b")
    registry.register_lazy("lazy", "a:b")

    assert registry.names() == ("lazy", "mine")


def test_a_name_that_is_taken_is_refused_and_keeps_its_creator(
    registry: RendezvousHandlerRegistry[Handler],
) -> None:
    registry.register("mine", create)

    with pytest.raises(
        RendezvousSettingsError, match=r"'mine' cannot be registered with .*create_other.*already"
    ):
        registry.register("mine", create_other)
    with pytest.raises(RendezvousSettingsError, match=r"'mine' cannot be registered with 'a:b'.*already"):
        registry.register_lazy("mine", "a:b")

    assert registry.create_handler(params("mine")).backend == "mine"


@pytest.mark.parametrize("reference", ["", "module", "module:", ":attribute"])
def test_a_reference_that_names_no_attribute_is_refused(
    registry: RendezvousHandlerRegistry[Handler], reference: str
) -> None:
    with pytest.raises(RendezvousSettingsError, match="but must be module:attribute"):
        registry.register_lazy("mine", reference)


def test_an_empty_name_and_a_creator_that_cannot_be_called_are_refused(
    registry: RendezvousHandlerRegistry[Handler],
) -> None:
    not_callable: Any = "create"

    with pytest.raises(RendezvousSettingsError, match="backend is '', but must be the name"):
        registry.register("", create)
    with pytest.raises(
        RendezvousSettingsError, match="creator of backend 'mine' is 'create', but must be a function"
    ):
        registry.register("mine", not_callable)


def test_an_unknown_backend_is_answered_with_the_known_names_and_the_nearest(
    registry: RendezvousHandlerRegistry[Handler],
) -> None:
    registry.register("static", create)
    registry.register("memory", create)

    with pytest.raises(RendezvousSettingsError) as caught:
        registry.create_handler(params("sttic"))

    assert str(caught.value).startswith(
        "backend is 'sttic', but must be one of memory, static (did you mean 'static'?); others are added"
    )
    assert GROUP in str(caught.value)


def test_an_empty_registry_says_that_it_is_empty(registry: RendezvousHandlerRegistry[Handler]) -> None:
    with pytest.raises(RendezvousSettingsError, match=r"one of \(none is registered\)"):
        registry.create_handler(params("mine"))


def test_a_handler_of_another_backend_is_refused(registry: RendezvousHandlerRegistry[Handler]) -> None:
    registry.register("mine", create_other)

    with pytest.raises(RendezvousSettingsError, match="created for 'mine' is 'other', but must be 'mine'"):
        registry.create_handler(params("mine"))


async def test_an_async_creator_is_refused_and_leaves_no_coroutine_behind(
    registry: RendezvousHandlerRegistry[Any],
) -> None:
    async def creator(given: RendezvousParameters) -> Handler:
        return create(given)

    unfit: Any = creator
    registry.register("mine", unfit)

    with pytest.raises(RendezvousSettingsError, match="but must be a handler that is not yet open"):
        registry.create_handler(params("mine"))


def test_what_a_creator_raises_comes_out_as_it_is(registry: RendezvousHandlerRegistry[Handler]) -> None:
    expected = OSError("no route")

    def creator(_: RendezvousParameters) -> Handler:
        raise expected

    registry.register("mine", creator)

    with pytest.raises(OSError, match="no route") as caught:
        registry.create_handler(params("mine"))
    assert caught.value is expected


def test_a_lazy_creator_is_imported_when_its_name_is_asked_for(
    registry: RendezvousHandlerRegistry[Handler], install: Install
) -> None:
    install("lazy_module", "", PLUGIN.format(backend="mine") + "\n    create = get_creator()\n")
    registry.register_lazy("mine", "lazy_module:create")

    assert registry.names() == ("mine",)
    assert "lazy_module" not in sys.modules
    assert registry.create_handler(params("mine")).get_backend() == "mine"
    assert "lazy_module" in sys.modules


def test_a_lazy_creator_that_cannot_be_imported_says_why(
    registry: RendezvousHandlerRegistry[Handler],
) -> None:
    registry.register_lazy("mine", "no_such_module:create")
    registry.register_lazy("dashed", "no-such-module:create")  # which a file may be called, all the same
    registry.register_lazy("its", "arendezvous.registry:no_such_creator")
    registry.register_lazy("number", "sys:maxsize")

    with pytest.raises(
        RendezvousSettingsError, match="backend 'mine' cannot be loaded: ModuleNotFound"
    ) as caught:
        registry.create_handler(params("mine"))
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(RendezvousSettingsError, match="No module named 'no-such-module'"):
        registry.create_handler(params("dashed"))
    with pytest.raises(RendezvousSettingsError, match="backend 'its' cannot be loaded: AttributeError"):
        registry.create_handler(params("its"))
    with pytest.raises(
        RendezvousSettingsError, match=r"backend 'number' gives is .*, but must be a function"
    ):
        registry.create_handler(params("number"))


def test_a_plugin_is_found_by_its_entry_point(
    registry: RendezvousHandlerRegistry[Handler], install: Install
) -> None:
    install("plug_one", "outside = plug_one:get_creator", PLUGIN.format(backend="outside"))

    assert registry.names() == ("outside",)
    assert "plug_one" not in sys.modules
    assert registry.create_handler(params("outside")).get_backend() == "outside"


def test_a_broken_plugin_is_reported_only_when_its_name_is_asked_for(
    registry: RendezvousHandlerRegistry[Handler], install: Install
) -> None:
    install("plug_good", "good = plug_good:get_creator", PLUGIN.format(backend="good"))
    install("plug_bad", "bad = plug_bad:get_creator", "raise RuntimeError('needs a newer driver')")
    registry.register("mine", create)

    assert registry.names() == ("bad", "good", "mine")
    assert registry.create_handler(params("good")).get_backend() == "good"
    assert registry.create_handler(params("mine")).get_backend() == "mine"
    with pytest.raises(RendezvousSettingsError) as caught:
        registry.create_handler(params("bad"))

    assert str(caught.value) == (
        "the plug-in 'plug_bad:get_creator' of plug_bad for backend 'bad' cannot be loaded: "
        "RuntimeError: needs a newer driver"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_distribution_with_unreadable_entry_points_is_passed_over(
    registry: RendezvousHandlerRegistry[Handler], install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("plug_torn", "this line has no equals sign", "")
    install("plug_whole", "whole = plug_whole:get_creator", PLUGIN.format(backend="whole"))

    with caplog.at_level(logging.WARNING, registry_module.__name__):
        assert registry.create_handler(params("whole")).get_backend() == "whole"

    assert "entry points cannot be read" in caplog.text


def test_what_is_registered_wins_over_a_plugin_of_the_same_name(
    registry: RendezvousHandlerRegistry[Handler], install: Install
) -> None:
    install("plug_tcp", "tcp = plug_tcp:get_creator", "raise RuntimeError('must not be imported')")
    registry.register("tcp", create)

    assert registry.create_handler(params("tcp")).backend == "tcp"


def test_two_plugins_that_claim_one_name_are_both_named(
    registry: RendezvousHandlerRegistry[Handler], install: Install
) -> None:
    install("plug_a", "same = plug_a:get_creator", PLUGIN.format(backend="same"))
    install("plug_b", "same = plug_b:get_creator", PLUGIN.format(backend="same"))

    with pytest.raises(RendezvousSettingsError, match="claimed by one plug-in") as caught:
        registry.create_handler(params("same"))
    assert "'plug_a:get_creator' of plug_a" in str(caught.value)
    assert "'plug_b:get_creator' of plug_b" in str(caught.value)


def test_a_distribution_that_is_twice_on_the_path_counts_once(
    registry: RendezvousHandlerRegistry[Handler],
    install: Install,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("plug_twice", "twice = plug_twice:get_creator", PLUGIN.format(backend="twice"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "plug_twice"), *sys.path])

    assert registry.create_handler(params("twice")).get_backend() == "twice"


def test_a_creator_given_where_a_function_that_returns_one_is_wanted_is_reported(
    registry: RendezvousHandlerRegistry[Handler], install: Install
) -> None:
    install("plug_direct", "direct = plug_direct:create", "def create(params):\n    return None\n")

    with pytest.raises(RendezvousSettingsError, match=r"'direct' cannot be loaded: TypeError: .*'params'"):
        registry.create_handler(params("direct"))


def test_the_default_registry_knows_our_backends() -> None:
    for name in ("c10d", "etcd", "etcd-v2", "memory", "tcp"):
        made = rendezvous_handler_registry.create_handler(params(name))

        assert made.get_backend() == name


def test_a_handler_is_created_through_the_default_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh: RendezvousHandlerRegistry[Any] = RendezvousHandlerRegistry(GROUP)
    monkeypatch.setattr(registry_module, "rendezvous_handler_registry", fresh)
    fresh.register("mine", create)

    assert get_rendezvous_handler(params("mine")).get_backend() == "mine"
