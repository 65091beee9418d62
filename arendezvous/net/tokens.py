"""Bearer tokens: what one looks like, and how tokens lie in a file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError

MIN_TOKEN: Final = 16  # characters: fewer could be guessed
MAX_TOKEN: Final = 1024
_MAX_READ: Final = 64 * 1024  # bytes of a client's file, whose first word is all that it needs
_COMMENT: Final = re.compile(r"(^|\s)#.*$")


def check_token(token: str) -> None:
    """Checks that `token` can be one; it is not in the error.

    Raises `RendezvousTypeError` if it is no text, `RendezvousSettingsError` if it is none for its characters.
    """
    if not isinstance(token, str):
        raise RendezvousTypeError(f"token is a {type(token).__name__}, but must be text", name="token")
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN or not all("!" <= character <= "~" for character in token):
        expected = (
            f"{MIN_TOKEN} to {MAX_TOKEN} visible ASCII characters, hard to guess, such as"
            " 'openssl rand -hex 32' makes"
        )
        raise RendezvousSettingsError(
            f"the token has {len(token)} characters, but must be {expected}", name="token", expected=expected
        )


def token_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Takes a token file apart: lines are ``TOKEN [word ...]``, a ``#`` at the start of a word is a comment.

    Yields the number, from 1, and the words of each line that is not empty.
    """
    for number, line in enumerate(text.splitlines(), 1):
        words = _COMMENT.sub("", line).split()
        if words:
            yield number, words


def read_token(path: str) -> str:
    """Reads the token of a client: the first in a file, whose lines may be those of a server's file.

    Raises `RendezvousSettingsError` if it cannot be read, others than its owner may write it, or it has none.
    """
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_READ)
    except OSError as error:
        raise unreadable(path, error) from error
    check_mode(path, mode)
    for _, (token, *_) in token_lines(content.decode("utf-8-sig", "replace")):
        check_token(token)
        return token
    raise RendezvousSettingsError(
        f"the token file {path} holds no token; its first word must be one", name="token_file", value=path
    )


def check_mode(path: str, mode: int) -> None:
    """Checks that a token file, which has this mode, is its owner's alone to write.

    If not, a token says nothing of who shows it, and `RendezvousSettingsError` is raised.
    """
    if stat.S_ISREG(mode) and mode & (stat.S_IWOTH | stat.S_IWGRP):
        who = "everybody on this machine" if mode & stat.S_IWOTH else "its group"
        raise RendezvousSettingsError(
            f"the token file {path} can be written by {who}, so nobody can trust what is in it: look at it,"
            " then make it yours with 'chmod 600'",
            name="token_file",
            value=path,
        )


def unreadable(path: str, error: OSError) -> RendezvousSettingsError:
    """Builds the error for a token file that cannot be read."""
    return RendezvousSettingsError(
        f"the token file {path} cannot be read: {error.strerror or error}", name="token_file", value=path
    )
