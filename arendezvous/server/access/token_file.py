"""Token files: one bearer token in each line, and what it is good for."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from arendezvous.errors import RendezvousSettingsError
from arendezvous.keyspace.grants import Grant, Scope
from arendezvous.law.checks import check_id
from arendezvous.net.tokens import MAX_TOKEN, MIN_TOKEN, check_mode, check_token, token_lines, unreadable

logger = logging.getLogger(__name__)

MAX_FILE: Final = 16 * 1024 * 1024
MAX_TOKENS: Final = 100_000


def read_token_file(path: str | os.PathLike[str]) -> list[tuple[str, Grant]]:
    """Reads a token file; warns if everybody on this machine may read it.

    Raises:
        RendezvousSettingsError: It cannot be read, others than its owner may write it, it is longer than
            16 MiB, holds no token, or a line of it is wrong: the message names the line, and never shows a
            token.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise unreadable(name, error) from error
    if len(content) > MAX_FILE:
        raise _wrong(name, f"is longer than {MAX_FILE} bytes")
    check_mode(name, mode)
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        logger.warning("%s can be read by everybody on this machine; chmod 600 keeps the tokens secret", name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(name, f"is no text: byte {error.start} is not UTF-8") from None
    return parse_tokens(text, name)


def parse_tokens(text: str, name: str) -> list[tuple[str, Grant]]:
    """Takes the tokens from the lines of a token file.

    A line is ``TOKEN [run=RUN_ID] [read-only]``: without more, the token is good for everything; with a run,
    whose id may be percent-encoded, for that run and its keys alone; with ``read-only`` for looking. A ``#``
    at the start of a word begins a comment.

    Args:
        text: The lines.
        name: What errors call them.

    Raises:
        RendezvousSettingsError: There is no token, or a line is wrong.
    """
    found: dict[str, tuple[int, Grant]] = {}
    for number, (token, *marks) in token_lines(text):
        where = f"line {number}"
        try:
            check_token(token)
        except RendezvousSettingsError as error:
            raise _wrong(name, f"has a bad token in {where}: it must be {error.expected}") from None
        if token in found:
            raise _wrong(name, f"has the token of line {found[token][0]} again in {where}")
        if len(found) == MAX_TOKENS:
            raise _wrong(name, f"holds more than {MAX_TOKENS} tokens")
        found[token] = (number, _grant(name, where, marks))
    if not found:
        raise _wrong(
            name, f"holds no token; expected one in each line, of {MIN_TOKEN} to {MAX_TOKEN} characters"
        )
    return [(token, grant) for token, (_, grant) in found.items()]


def _grant(name: str, where: str, marks: list[str]) -> Grant:
    run_id: str | None = None
    read_only = False
    for position, mark in enumerate(marks, 2):
        key, separator, value = mark.partition("=")
        if mark == "read-only" and not read_only:
            read_only = True
        elif key == "run" and separator and run_id is None:
            run_id = unquote(value)
            try:
                check_id("run", run_id)
            except RendezvousSettingsError as error:
                raise _wrong(name, f"has a bad run in {where}: it must be {error.expected}") from None
        else:  # the word may be a part of a token, so it is not shown
            raise _wrong(
                name,
                f"has a bad word {position} in {where}: after the token only run=RUN_ID and read-only go",
            )
    if read_only:
        return Grant(Scope.READ, run_id)
    return Grant(Scope.SERVER if run_id is None else Scope.RUN, run_id)


def _wrong(name: str, what: str) -> RendezvousSettingsError:
    return RendezvousSettingsError(f"the token file {name} {what}", name="token_file", value=name)
