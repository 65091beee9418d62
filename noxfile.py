"""One short command for each thing that is done often: nox -s tests, lint, types, docs, package, bench."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests"]


@nox.session
def tests(session: nox.Session) -> None:
    """Runs the tests, or those that are named: nox -s tests -- tests/law -k drain."""
    session.install("-q", "-e", ".[test]")
    session.run("python", "-m", "pytest", "-q", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Looks at style, and for what is dead."""
    session.install("-q", "-e", ".[dev]")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")
    session.run("vulture")


@nox.session
def types(session: nox.Session) -> None:
    """Checks the types, those that users of the package see included."""
    session.install("-q", "-e", ".[dev]", "basedpyright")
    session.run("mypy")
    session.run("basedpyright", "-p", "tests/data/pyright.json")


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the site into build/site; a broken link fails."""
    session.install("-q", "-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Builds the wheel and the sdist, looks at them, and tells the demo from the wheel."""
    session.install("-q", "build", "check-wheel-contents", "twine")
    session.run("bash", ".ci/package", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Measures, beside the peers: nox -s bench -- --help."""
    session.install("-q", "-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
