"""The house is kept as the design says, and the checker of its rules can fail."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.kit import ROOT
from tests.kit import house_rules as house

PACKAGE = ROOT / "arendezvous"


@cache
def package() -> dict[str, house.Module]:
    """The modules of the package, which take a second to read; nobody changes them."""
    return house.load(PACKAGE)


def test_the_arrows_between_modules_point_one_way() -> None:
    assert house.import_faults(package()) == []


def test_no_modules_import_each_other() -> None:
    assert house.cycles(package()) == []


def test_modules_and_functions_are_short_and_flat() -> None:
    assert house.size_faults(package()) == []
    assert house.size_faults(house.load(ROOT / "benchmarks")) == []


def test_tasks_are_started_in_one_place_and_scopes_are_left_where_they_are_entered() -> None:
    assert house.task_faults(package()) == []


def test_every_part_of_the_package_has_its_place() -> None:
    parts = {name.split(".")[0] for name in package()}
    assert parts - {""} <= set(house.LAYERS)
    assert set(house.PURE) <= parts


def test_no_docstring_begins_as_a_question_does() -> None:
    assert list(house.word_faults(package())) == []


def test_one_name_is_one_class() -> None:
    assert house.repeated_classes(package()) == []


def test_a_docstring_that_begins_as_a_question_is_found(tmp_path: Path) -> None:
    good = 'class B:\n    """Holds what is left."""'
    modules = make(
        tmp_path,
        a='"""What it is."""\ndef f():\n    """Where it is."""',
        net__b=good,
    )
    assert list(house.word_faults(modules)) == [
        "the docstring of a begins with What",
        "the docstring of a.f begins with Where",
    ]


def test_a_name_of_two_classes_is_found(tmp_path: Path) -> None:
    modules = make(
        tmp_path, a="class A:\n    class B: ...", b="class B: ...\nclass Store: ...", c="class Store: ..."
    )
    assert house.repeated_classes(modules) == ["B is in a, b"]


def make(root: Path, **files: str) -> dict[str, house.Module]:
    """Writes a made-up package, one file for each keyword (``__`` is a directory), and loads it."""
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return house.load(root)


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("law__machine", "from arendezvous.rendezvous.driver import x",
         "law.machine imports rendezvous.driver, which stands below it"),
        ("law__machine", "import arendezvous", "law.machine is pure and imports arendezvous"),
        ("law__machine", "from ..backends import port",
         "law.machine imports backends.port, which stands below it"),
        ("law__lists", "import time", "law.lists is pure and imports time"),
        ("wire__frames", "def f():\n    from asyncio import sleep",
         "wire.frames is pure and imports asyncio"),
        ("keyspace__keyspace", "open('x')", "keyspace.keyspace is pure and calls open()"),
        ("rendezvous__driver", "import arendezvous.backends.tcp",
         "rendezvous.driver imports the concrete backends.tcp"),
        ("rendezvous__driver", "from ..stores import tcp",
         "rendezvous.driver imports the concrete stores.tcp"),
        ("server__tcp", "from ..stores import tcp",
         "server.tcp is of the server and imports the client stores.tcp"),
        ("server__tcp", "def f():\n    from arendezvous.backends.tcp import x",
         "server.tcp imports backends.tcp, which stands below it"),
        ("backends__tcp", "from arendezvous.server.http import messages",
         "backends.tcp is of the client and imports the HTTP listener's server.http"),
        ("rendezvous__static", "def f():\n    from arendezvous.server.tcp import x",
         "rendezvous.static imports the server's server.tcp; it is to be passed in"),
        ("stores__http", "import arendezvous.server.tcp",
         "stores.http imports server.tcp, which stands below it"),
        ("sync", "import torch.distributed", "sync imports torch; only torch.handler does"),
        ("sync", "def f():\n    import torch", "sync imports torch; only torch.handler does"),
        ("cli__run", "def f():\n    from benchmarks.plan import x",
         "cli.run imports benchmarks, which the wheel has not"),
    ],
)  # fmt: skip
def test_a_forbidden_import_is_found(tmp_path: Path, name: str, text: str, fault: str) -> None:
    around = dict.fromkeys(("rendezvous__driver", "backends__port", "backends__tcp", "stores__tcp"), "")
    assert house.import_faults(make(tmp_path, **{**around, name: text})) == [fault]


def test_a_way_from_the_api_to_the_server_is_found_however_long(tmp_path: Path) -> None:
    modules = make(
        tmp_path,
        rendezvous__handler="from arendezvous.rendezvous.changes import x",
        rendezvous__changes="from arendezvous.backends.port import x",
        backends__port="def f():\n    from arendezvous.server.serve import x",
        server__serve="",
    )
    way = "rendezvous.handler -> rendezvous.changes -> backends.port -> server.serve"
    assert house.import_faults(modules) == [f"rendezvous.handler comes to the server: {way}"]


def test_allowed_imports_are_no_faults(tmp_path: Path) -> None:
    modules = make(
        tmp_path,
        law__machine="from arendezvous.errors import X\nfrom arendezvous.law.state import Y\nimport msgspec",
        errors="", law__state="", torch__handler="import torch",
        stores__tcp="from arendezvous.errors import X",
        rendezvous__driver="from arendezvous.law.machine import apply",
        sync="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    )  # fmt: skip
    assert house.import_faults(modules) == []
    assert house.cycles(modules) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("asyncio.create_task(f())", "a uses create_task; only net.background starts tasks"),
        ("loop.create_task(f())", "a uses create_task; only net.background starts tasks"),
        ("start = asyncio.ensure_future", "a uses ensure_future; only net.background starts tasks"),
        ("from asyncio import TaskGroup", "a uses asyncio.TaskGroup; only net.background starts tasks"),
        ("async def f():\n    async with asyncio.TaskGroup() as tasks:\n        pass",
         "a uses asyncio.TaskGroup; only net.background starts tasks"),
        ("def f():\n    anyio.CancelScope(shield=True).__enter__()",
         "a calls __enter__ for the scope anyio.CancelScope(shield=True); enter it by with"),
        ("async def f():\n    tasks = anyio.create_task_group()\n    await tasks.__aenter__()",
         "a calls __aenter__ for the scope tasks; enter it by with"),
        ("self._scope = anyio.move_on_after(1)\nself._scope.__exit__(None, None, None)",
         "a calls __exit__ for the scope self._scope; enter it by with"),
        ("stack.enter_context(anyio.fail_after(1))",
         "a calls enter_context for the scope anyio.fail_after(1); enter it by with"),
        ("async def f():\n    group = create_task_group()\n    await stack.enter_async_context(group)",
         "a calls enter_async_context for the scope group; enter it by with"),
        ("self._tasks: TG = anyio.create_task_group()", "a keeps a task group in self._tasks"),
    ],
)  # fmt: skip
def test_a_task_or_scope_in_the_wrong_place_is_found(tmp_path: Path, text: str, fault: str) -> None:
    assert house.task_faults(make(tmp_path, a=text)) == [fault]


def test_only_one_place_writes_to_the_terminal(tmp_path: Path) -> None:
    assert house.terminal_faults(package()) == []
    modules = make(tmp_path, cli__output="typer.echo(1)", cli__a="typer.echo(1)", b="print(1)")
    assert house.terminal_faults(modules) == [
        "b calls print; only cli.output does",
        "cli.a calls typer.echo; only cli.output does",
    ]


def test_the_one_place_starts_tasks_and_scopes_are_entered_by_with(tmp_path: Path) -> None:
    modules = make(
        tmp_path,
        net__background="async def f():\n    asyncio.get_running_loop().create_task(g())",
        a="async def f():\n    async with anyio.create_task_group() as tasks:\n        tasks.start_soon(g)",
        b="def f(tasks: anyio.abc.TaskGroup) -> None:\n    tasks.start_soon(g)",
        d="with anyio.CancelScope() as scope:\n    self.scope = scope\n    self._backend.__enter__()",
        c="self.scope = anyio.CancelScope()\nwith self.scope:\n    pass",
    )
    assert house.task_faults(modules) == []


def test_an_import_cycle_is_found_and_a_lazy_import_does_not_break_it(tmp_path: Path) -> None:
    circle = {"a": "from arendezvous.b import x", "b": "import arendezvous.c", "d": "import arendezvous.a"}
    assert house.cycles(make(tmp_path, **circle, c="from . import a")) == [["a", "b", "c"]]
    assert house.cycles(make(tmp_path, **circle, c="def f():\n    from . import a")) == [["a", "b", "c"]]
    assert house.cycles(make(tmp_path, **circle, c="")) == []


def test_a_long_module_is_found(tmp_path: Path) -> None:
    found = house.size_faults(make(tmp_path, big="x = 1\n" * 501, small="x = 1\n" * 2, tiny="x = 1\n" * 2))
    assert found == ["big has 501 lines, at most 500 are allowed"]


def test_a_long_body_is_found_and_its_docstring_does_not_count(tmp_path: Path) -> None:
    def module(lines: int) -> str:
        return 'def f():\n    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * lines

    assert house.size_faults(make(tmp_path, a=module(60))) == []
    found = house.size_faults(make(tmp_path, a=module(61)))
    assert found == ["a.f has a body of 61 lines, at most 60 are allowed"]


def test_deep_nesting_is_found_and_elif_is_not_deeper(tmp_path: Path) -> None:
    deep = "def f():\n" + "".join("    " * i + "if x:\n" for i in range(1, 6)) + "    " * 6 + "pass\n"
    assert house.size_faults(make(tmp_path, a=deep)) == ["a.f is nested 5 deep, at most 4 is allowed"]
    chain = "def f():\n    if x:\n        pass\n" + "    elif y:\n        pass\n" * 6
    assert house.size_faults(make(tmp_path, a=chain)) == []


def test_the_files_that_contributors_are_sent_to_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    table = page[page.index("## Where do I change what") : page.index("Put a line into")]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`([a-z_./-]+(?:/|\.py|\.md))`", row) for row in rows]
    assert len(rows) > 9
    assert all(named)
    for name in (name for names in named for name in names):
        assert any((root / name).exists() for root in (PACKAGE, ROOT)), name


def test_the_oldest_versions_that_ci_tries_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "tests" / "data" / "oldest.txt").read_text().splitlines()
    tried = sorted(line.replace("==", ">=") for line in lines if not line.startswith("#"))
    assert tried == sorted(project["dependencies"])


def test_a_source_distribution_says_how_to_contribute_and_how_to_report_a_hole() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    for name in ("CONTRIBUTING.md", "SECURITY.md", "LICENSE", "README.md", "CHANGELOG.md"):
        assert name in targets["sdist"]["include"]
        assert (ROOT / name).is_file()
