"""Keeps the bearer tokens of a server and their scopes, for all its listeners."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote

import msgspec

from arendezvous.errors import (
    RendezvousError,
    RendezvousPermissionError,
    RendezvousSettingsError,
    RendezvousTypeError,
)
from arendezvous.keyspace.grants import EVERYTHING, Grant, Scope
from arendezvous.law.checks import check_id
from arendezvous.law.words import counted
from arendezvous.net.tls import file_stamp
from arendezvous.net.tokens import MAX_TOKEN, MIN_TOKEN, check_mode, check_token, token_lines, unreadable
from arendezvous.server.access.admission import FailureThrottle

logger = logging.getLogger(__name__)

_KEY: Final = secrets.token_bytes(32)
FRESH_INTERVAL: Final = 2.0  # seconds between two looks when no token is used
LOOK_INTERVAL: Final = 1.0  # seconds between two looks at whether the token file has changed

# What both say is for clients of any kind, a browser's user among them, so each adds how a token is given.
MISSING: Final = "this server asks for a token, and none was given"
WRONG: Final = (
    "this server does not know the token that was given; compare it with the server's token file, it may have"
    " been replaced"
)
MAX_FILE: Final = 16 * 1024 * 1024
MAX_TOKENS: Final = 100_000


class Authority:
    """Knows the tokens that are good here, by their digests.

    Args:
        tokens: Tokens and what they grant. None at all: everybody may do everything.

    Its fields:
        _grants: What each token is good for, by its digest.
        _good: The identities of these grants, each of which is one token's.
        _path: The file that they come from; None: there is none.
        _seen: What tells whether the file is another one by now.
        _looked: When that was looked at last, by the monotonic clock.
        _observers: Who is called once the tokens have been read again.
    """

    def __init__(self, tokens: Iterable[tuple[str, Grant]] = ()) -> None:
        self._grants = {digest(token): grant for token, grant in _checked(tokens)}
        self._good = set(map(id, self._grants.values()))
        self._path: str | None = None
        self._seen: tuple[int, ...] = ()
        self._looked = 0.0
        self._observers: list[Callable[[], object]] = []

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Takes the tokens of a file, one in each line; see `parse_tokens`.

        A file that is changed is read again at the next attempt to use a token, once a second at most; while
        a server runs, within two seconds in any case.

        Raises:
            RendezvousTypeError: This is no path.
            RendezvousSettingsError: The file cannot be read, or has no token, or something else than tokens.
        """
        if not isinstance(path, str | os.PathLike):
            raise RendezvousTypeError.of("path", path, "the path of a file")
        authority = cls(read_token_file(path))
        authority._path = os.fspath(path)
        authority._seen = file_stamp(authority._path)
        return authority

    @classmethod
    def of(cls, token: str) -> Self:
        """Takes one token, which is good for everything.

        Raises:
            RendezvousSettingsError: It is no token.
        """
        check_token(token)
        return cls([(token, EVERYTHING)])

    def __repr__(self) -> str:
        return f"Authority({len(self._grants)} tokens)"

    @property
    def asks(self) -> bool:
        """Whether a token is needed at all."""
        return bool(self._grants)

    def grant(self, token: str | None) -> Grant | None:
        """Tells what `token` is good for; None: nothing.

        How long it takes says nothing about the tokens: they are looked up by a keyed digest.
        """
        if not self._grants:
            return EVERYTHING
        self._look()
        return self._grants.get(digest(token or ""))

    def admit(self, token: str | None) -> Grant:
        """Tells what `token` is good for.

        Raises:
            RendezvousPermissionError: It is good for nothing, as it is missing or wrong.
        """
        grant = self.grant(token)
        if grant is None:
            raise RendezvousPermissionError(WRONG if token else MISSING)
        return grant

    def still_grants(self, grant: Grant) -> bool:
        """Whether a grant that was given out is good any longer; its token may have been withdrawn."""
        return not self._grants or id(grant) in self._good

    @contextmanager
    def kept_fresh(self) -> Iterator[None]:
        """Has the token file looked at while the block runs, whether or not tokens are used; in its loop."""
        if self._path is None:
            yield
            return
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            self._look()
            timer = loop.call_later(FRESH_INTERVAL, look)

        look()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    @contextmanager
    def observed(self, observer: Callable[[], None]) -> Iterator[None]:
        """Has `observer` called, on this loop, when tokens were read again, while the block runs."""
        call = partial(asyncio.get_running_loop().call_soon_threadsafe, observer)
        self._observers.append(call)
        try:
            yield
        finally:
            self._observers.remove(call)

    def reload(self) -> bool:
        """Reads the token file again; returns whether that went well. If not, the tokens stay as they are."""
        if self._path is None:
            return True
        self._seen = file_stamp(self._path)
        try:
            tokens = read_token_file(self._path)
        except RendezvousError as error:
            logger.error("the tokens stay as they are: %s", error)  # noqa: TRY400 - the message says it all
            return False
        before, self._grants = self._grants, {}
        for token, grant in tokens:
            name = digest(token)
            known = before.get(name)
            self._grants[name] = known if known == grant and known is not None else grant
        self._good = set(map(id, self._grants.values()))
        added, removed = len(self._grants.keys() - before), len(before.keys() - self._grants)
        logger.info("%s was read again: %s added, %d removed", self._path, counted(added, "token"), removed)
        for observer in list(self._observers):
            observer()
        return True

    def _look(self) -> None:
        now = time.monotonic()
        if self._path is not None and now >= self._looked + LOOK_INTERVAL:
            self._looked = now
            if file_stamp(self._path) != self._seen:
                self.reload()


class Access(msgspec.Struct, frozen=True, eq=False):
    """Decides who may come in at the listeners of one server.

    Attributes:
        authority: Who may do what.
        throttle: Counts those who may not come in, at all listeners.
        plain_stores: Whether clients of a TCPStore that show no token, as those of stock torch cannot, may
            use all of the store.
    """

    authority: Authority = msgspec.field(default_factory=Authority)
    throttle: FailureThrottle = msgspec.field(default_factory=FailureThrottle)
    plain_stores: bool = False


def _checked(tokens: Iterable[tuple[str, Grant]]) -> Iterable[tuple[str, Grant]]:
    """Gives pairs of a token and what it grants; a `RendezvousTypeError` shows neither."""
    for pair in tokens:
        match pair:
            case (str(), Grant()):
                yield pair
            case _:
                raise RendezvousTypeError(
                    f"tokens have a {type(pair).__name__} among them, but must be pairs of text and a Grant;"
                    " Authority.of takes one token that is good for everything",
                    name="tokens",
                )


def digest(token: str) -> bytes:
    """Makes what is kept of a token: nobody outside of this process can tell what comes close to it."""
    return hashlib.blake2b(token.encode("utf-8", "surrogatepass"), key=_KEY, digest_size=32).digest()


def read_token_file(path: str | os.PathLike[str]) -> list[tuple[str, Grant]]:
    """Reads a token file; warns if everybody on this machine may read it.

    Raises:
        RendezvousSettingsError: It cannot be read, others than its owner may write it, it is longer than
            16 MiB, or see `parse_tokens`.
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
    """Takes the tokens from the lines of a token file, which errors call `name`.

    A line is ``TOKEN [run=RUN_ID] [read-only]``: without more, the token is good for everything; with a run,
    whose id may be percent-encoded, for that run and its keys alone; with ``read-only`` for looking. A ``#``
    at the start of a word begins a comment.

    Raises:
        RendezvousSettingsError: There is no token, or a line is wrong: the message names it, and shows none.
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
        expected = f"one in each line, of {MIN_TOKEN} to {MAX_TOKEN} characters"
        raise _wrong(name, f"holds no token; expected {expected}")
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
            expected = "after the token only run=RUN_ID and read-only go"
            raise _wrong(name, f"has a bad word {position} in {where}: {expected}")
    if read_only:
        return Grant(Scope.READ, run_id)
    return Grant(Scope.SERVER if run_id is None else Scope.RUN, run_id)


def _wrong(name: str, what: str) -> RendezvousSettingsError:
    return RendezvousSettingsError(f"the token file {name} {what}", name="token_file", value=name)
