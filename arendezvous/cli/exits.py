"""How a command ends: the exit codes, errors as one line on stderr, and SIGINT and SIGTERM in good order."""

from __future__ import annotations

import enum
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import typer

from arendezvous import errors
from arendezvous.cli.output import say

ENDING: Final = (signal.SIGINT, signal.SIGTERM)


class ExitCode(enum.IntEnum):
    """Tells the shell how a command ended; one that a signal ended exits with 128 + the signal's number."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    INTERRUPTED = 128 + signal.SIGINT


def run_async(main: Callable[..., Awaitable[int | None]], *args: Any, use_uvloop: bool = False) -> NoReturn:
    """Runs `main(*args)`, on uvloop if that is wanted and there, and ends the command with what it returns.

    None is 0; an error of ours is a line on stderr.
    """
    from importlib.util import find_spec

    import anyio

    fast = use_uvloop and find_spec("uvloop") is not None
    try:
        code = anyio.run(main, *args, backend_options={"use_uvloop": fast})
    except errors.RendezvousError as error:
        is_token = isinstance(error, errors.RendezvousPermissionError) and not error.authenticated
        advice = f"; {errors.token_advice('--token-file')}" if is_token else ""
        fail(f"{error.message}{advice}", code_of(error))
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    raise typer.Exit(ExitCode.OK if code is None else code)


def fail(message: str, code: ExitCode = ExitCode.FAILED) -> NoReturn:
    """Says on stderr what is wrong, and ends the command with `code`."""
    say(f"error: {message}", err=True)
    raise typer.Exit(code)


def code_of(error: errors.RendezvousError) -> ExitCode:
    """The exit code that stands for `error`."""
    if isinstance(error, errors.RendezvousNotFoundError):
        return ExitCode.NOT_FOUND
    if isinstance(error, errors.RendezvousSettingsError):
        return ExitCode.USAGE
    if isinstance(error, errors.RendezvousConnectionError) and error.doing != "listening":
        return ExitCode.UNREACHABLE
    return ExitCode.FAILED


@contextmanager
def cancelled_by_signals() -> Iterator[list[signal.Signals]]:
    """Cancels the block on SIGINT and SIGTERM, and swallows that; yields which came. For the main thread."""
    import asyncio

    import anyio

    loop, came = asyncio.get_running_loop(), list[signal.Signals]()
    with anyio.CancelScope() as scope:

        def end(number: signal.Signals) -> None:
            came.append(number)
            scope.cancel()

        for number in ENDING:
            loop.add_signal_handler(number, end, number)
        try:
            yield came
        finally:
            for number in ENDING:
                loop.remove_signal_handler(number)
