"""The rules of the house as a checker over a source tree: imports, sizes, and words."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "arendezvous"
LAYERS = (
    "errors", "plugins", "guesses", "law", "keyspace", "wire", "events", "net", "etcd", "stores",
    "coordinator", "directory", "server", "backends", "rendezvous", "doctor", "schemes",
    "observing", "connecting", "opening", "registry", "sync", "torch", "jax", "launcher", "testing", "cli",
    "__main__",
)  # fmt: skip
"""The parts, each of which may import what stands before it and nothing that stands behind it."""
PURE = ("law", "keyspace", "wire")
API = "rendezvous.handler"  # what users hold in their hands: no module that it comes to knows the server
HOLDS_CLIENTS = "keyspace.host"  # wakes the tasks that wait for answers; the one impure module of these parts
IMPURE = frozenset({
    "anyio", "asyncio", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "trio", "uuid",
})  # fmt: skip
OUTSIDE = frozenset({"benchmarks", "tests"})  # not in the wheel
IMPURE_CALLS = frozenset({"open", "print", "input", "now", "utcnow", "today"})
STARTS_TASKS = "net.background"  # alone: whatever works in the background does so through it
WRITES = "cli.output"  # alone: what commands say goes through it
TASK_STARTERS = frozenset({"create_task", "ensure_future", "asyncio.TaskGroup"})
SCOPES = frozenset({
    "CancelScope", "create_task_group", "fail_after", "fail_at", "move_on_after", "move_on_at", "TaskGroup",
    "timeout", "timeout_at",
})  # fmt: skip
ENTERING = frozenset({"__aenter__", "__aexit__", "__enter__", "__exit__"})
STACKING = frozenset({"enter_async_context", "enter_context", "push", "push_async_exit"})
MODULE_MAX, BODY_MAX, NESTING_MAX = 500, 60, 4


@dataclass
class Module:
    """One module, by its name without the package: ``server.tcp``; the package itself is the empty name.

    Attributes:
        name: Its name.
        lines: How many it has.
        tree: Its syntax.
        imports: What it imports whenever it is imported, in full, ``arendezvous.`` included.
        lazy: What its functions import when they are called.
    """

    name: str
    lines: int
    tree: ast.Module
    is_package: bool
    imports: set[str] = field(default_factory=set)
    lazy: set[str] = field(default_factory=set)

    @property
    def everything(self) -> set[str]:
        """All that it imports, at any time."""
        return self.imports | self.lazy


def load(root: Path) -> dict[str, Module]:
    """Reads every module under `root`, the directory of the package."""
    modules: dict[str, Module] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        text = path.read_text()
        modules[name] = Module(name, len(text.splitlines()), ast.parse(text), is_package)
    for module in modules.values():
        _collect(module, module.tree, modules, lazy=False)
    return modules


def _collect(module: Module, node: ast.AST, modules: Mapping[str, Module], *, lazy: bool) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                _collect(module, other, modules, lazy=lazy)
            continue
        found = set(_targets(module, child, modules))
        (module.lazy if lazy else module.imports).update(found)
        inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        _collect(module, child, modules, lazy=inside)


def _targets(module: Module, node: ast.AST, modules: Mapping[str, Module]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if not isinstance(node, ast.ImportFrom):
        return
    base = node.module or ""
    if node.level:
        here = [PACKAGE, *filter(None, module.name.split("."))]
        keep = len(here) - node.level + module.is_package
        base = ".".join([*here[:keep], *filter(None, [node.module])])
    for alias in node.names:
        full = f"{base}.{alias.name}"
        yield full if _short(full) in modules else base


def _short(full: str) -> str | None:
    if full == PACKAGE:
        return ""
    return full.removeprefix(f"{PACKAGE}.") if full.startswith(f"{PACKAGE}.") else None


def ours(imports: set[str]) -> set[str]:
    """Those of `imports` that are modules of the package, by short name."""
    return {short for name in imports if (short := _short(name)) is not None}


def import_faults(modules: Mapping[str, Module]) -> list[str]:
    """What is wrong with who imports whom, at import and later."""
    faults: list[str] = []
    for name, module in modules.items():
        everything = module.everything
        tops = {target.split(".")[0] for target in everything}
        part = name.split(".")[0]
        if part in PURE and name != HOLDS_CLIENTS:
            faults += [f"{name} is pure and imports {other}" for other in tops & IMPURE]
            faults += [f"{name} is pure and calls {call}()" for call in _calls(module) & IMPURE_CALLS]
            if "" in ours(everything):
                faults.append(f"{name} is pure and imports {PACKAGE}")
        if "torch" in tops and name != "torch.handler":
            faults.append(f"{name} imports torch; only torch.handler does")
        faults += [f"{name} imports {other}, which the wheel has not" for other in tops & OUTSIDE]
        for other in sorted(ours(everything)):
            faults += _arrow_faults(name, part, other)
    way = _way_to_server(modules)
    if way:
        faults.append(f"{API} comes to the server: {' -> '.join(way)}")
    return sorted(faults)


def _way_to_server(modules: Mapping[str, Module]) -> list[str]:
    """How one comes from the API to a module of the server, by imports of any time; empty if one does not."""
    ways = [[API]] if API in modules else []
    seen = {API}
    for way in ways:  # it grows meanwhile
        for other in sorted((ours(modules[way[-1]].everything) & set(modules)) - seen):
            if other.split(".")[0] == "server":
                return [*way, other]
            seen.add(other)
            ways.append([*way, other])
    return []


def _arrow_faults(name: str, part: str, other: str) -> Iterator[str]:
    """What is wrong with one arrow, from module `name` of `part` to module `other`."""
    target = other.split(".")[0]
    known = part in LAYERS and target in LAYERS
    if known and LAYERS.index(target) > LAYERS.index(part):
        yield f"{name} imports {other}, which stands below it"
    if name == "rendezvous.driver" and target in ("backends", "stores") and not other.endswith(".port"):
        yield f"{name} imports the concrete {other}"
    if part == "rendezvous" and target == "server":
        yield f"{name} imports the server's {other}; it is to be passed in"
    if part == "server" and target == "stores" and other not in ("stores", "stores.port"):
        yield f"{name} is of the server and imports the client {other}"
    if part in ("backends", "stores") and other.startswith("server.http"):
        yield f"{name} is of the client and imports the HTTP listener's {other}"


def _calls(module: Module) -> set[str]:
    calls = [node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
    names = {func.id for func in calls if isinstance(func, ast.Name)}
    clocks = {func.attr for func in calls if isinstance(func, ast.Attribute)} & {"now", "utcnow", "today"}
    return names | clocks


def task_faults(modules: Mapping[str, Module]) -> list[str]:
    """What is wrong with who starts tasks, and with scopes that would have to be left by who entered them."""
    faults: list[str] = []
    for name, module in modules.items():
        if name != STARTS_TASKS:
            used = TASK_STARTERS & {found for node in ast.walk(module.tree) for found in _names(node)}
            faults += [f"{name} uses {starter}; only {STARTS_TASKS} starts tasks" for starter in used]
        faults += [f"{name} {fault}" for fault in _scope_faults(module.tree)]
    return sorted(faults)


def terminal_faults(modules: Mapping[str, Module]) -> list[str]:
    """What writes to a terminal by another way than `WRITES`, which escapes what a terminal would obey."""
    faults: list[str] = []
    for name, module in modules.items():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call) or name == WRITES:
                continue
            if ast.unparse(node.func) in ("typer.echo", "typer.secho", "click.echo", "print"):
                faults.append(f"{name} calls {ast.unparse(node.func)}; only {WRITES} does")
    return sorted(faults)


def _scope_faults(tree: ast.Module) -> Iterator[str]:
    held: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _is_scope(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            held |= {ast.unparse(target) for target in targets}
            groups = _last_name(node.value) in ("create_task_group", "TaskGroup")
            attributes = [target for target in targets if isinstance(target, ast.Attribute)]
            yield from (f"keeps a task group in {ast.unparse(one)}" for one in attributes if groups)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        method = node.func.attr
        entered = [node.func.value] if method in ENTERING else node.args if method in STACKING else []
        for one in entered:
            if _is_scope(one) or ast.unparse(one) in held:
                yield f"calls {method} for the scope {ast.unparse(one)}; enter it by with"


def _names(node: ast.AST) -> Iterator[str]:
    """What a node uses: by the last part of the name, and by the last two."""
    if isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Attribute):
        yield node.attr
        yield f"{_last_name(node.value)}.{node.attr}"
    elif isinstance(node, ast.Name):
        yield node.id


def _is_scope(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _last_name(node) in SCOPES


def _last_name(node: ast.AST) -> str:
    """The name that is used or called, without what it is an attribute of; empty if there is none."""
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def cycles(modules: Mapping[str, Module]) -> list[list[str]]:
    """Groups of modules that import each other, at import or later; none, if all is well."""
    graph = {name: ours(module.everything) & set(modules) - {name} for name, module in modules.items()}
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            at = stack.index(name)
            groups.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in order:
            visit(name)
    return sorted(group for group in groups if len(group) > 1)


QUESTION_WORDS = frozenset({"What", "Who", "Whose", "Which", "Where", "Whoever", "Whatever"})
MIRRORS = frozenset(
    {"RendezvousHandler", "RendezvousInfo", "Round", "RunObserver", "ServerConnection", "Store"}
)  # ours and torch's, or awaited and blocking


def word_faults(modules: Mapping[str, Module]) -> Iterator[str]:
    """Finds docstrings whose first line is no sentence with a verb, but begins as a question does."""
    for name, module in modules.items():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            first, _, _ = (ast.get_docstring(node) or "").partition(" ")
            if first in QUESTION_WORDS:
                where = name if isinstance(node, ast.Module) else f"{name}.{node.name}"
                yield f"the docstring of {where or PACKAGE} begins with {first}"


def repeated_classes(modules: Mapping[str, Module], *, allowed: frozenset[str] = MIRRORS) -> list[str]:
    """Finds names of classes that stand for more than one."""
    places: dict[str, list[str]] = {}
    for name, module in modules.items():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and node.name not in allowed:
                places.setdefault(node.name, []).append(name)
    return [f"{name} is in {', '.join(found)}" for name, found in places.items() if len(found) > 1]


def size_faults(modules: Mapping[str, Module]) -> list[str]:
    """What is too long or too deep."""
    faults = [
        f"{name or PACKAGE} has {module.lines} lines, at most {MODULE_MAX} are allowed"
        for name, module in modules.items()
        if module.lines > MODULE_MAX
    ]
    for name, module in modules.items():
        for node in ast.walk(module.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                faults += [f"{name}.{node.name} {fault}" for fault in _function_faults(node)]
    return faults


def _function_faults(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
    if lines > BODY_MAX:
        yield f"has a body of {lines} lines, at most {BODY_MAX} are allowed"
    depth = max((_depth(statement) for statement in body), default=0)
    if depth > NESTING_MAX:
        yield f"is nested {depth} deep, at most {NESTING_MAX} is allowed"


_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def _depth(node: ast.AST) -> int:
    """How deep blocks are nested in `node`, itself included; an elif is not deeper than its if."""
    if isinstance(node, _SCOPES):
        return 0
    below = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        below = max(below, _depth(child) - is_elif)
    return below + isinstance(node, _BLOCKS)
