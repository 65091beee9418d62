"""Destinations of events as text: each has a name, each a logger and a handler.

A destination ``x`` is the logger ``torchelastic-events-x``, as in torch: its level, its filters and the
handlers that users add to it count. The destination's own handler is kept here and not added to that logger.
Torch may live in the same process and use the same loggers, and then every event would come out twice.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import weakref
from collections.abc import Iterator, Mapping

from arendezvous.errors import RendezvousSettingsError
from arendezvous.events.api import AnyEvent

ENVIRONMENT_VARIABLE = "ARENDEZVOUS_EVENTS"

_EXPECTED = "console, null or jsonl:PATH"
_log = logging.getLogger("arendezvous.events")


class ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]  # not subscriptable at run time in 3.11
    """Writes to what `sys.stderr` is at that moment, which progress displays and tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one event."""
        self.stream = sys.stderr
        super().emit(record)


class JsonLinesHandler(logging.Handler):
    """Appends events to a file, one line of JSON each.

    A line is one write to a file opened for appending, so on a local file system several processes may share
    the file and no line is lost or torn. The file is not opened again when it is renamed: rotate it by copy
    and truncate.

    Args:
        path: The file; it is made if it does not exist, for its owner alone, but its folder is not. A
            symbolic link is not followed: whoever may write into the folder could have it lead anywhere.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = os.path.abspath(os.path.expanduser(path))
        self._fd = self._open()

    def _open(self) -> int:
        # Regular files ignore O_NONBLOCK. A pipe that nobody reads would stop the event loop without it.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o600)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(
                    errno.ELOOP, "it is a symbolic link, which is not followed", self._path
                ) from error
            raise

    def emit(self, record: logging.LogRecord) -> None:
        """Appends one event; opens the file again if the handler was closed, as it is at interpreter exit."""
        line = memoryview(f"{self.format(record)}\n".encode())
        if self._fd < 0:
            self._fd = self._open()
        while (
            line
        ):  # a write is short only when the disk is full or a limit is hit, and then the next one says so
            line = line[os.write(self._fd, line) :]

    def close(self) -> None:
        """Closes the file."""
        self.acquire()
        try:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
        finally:
            self.release()
        super().close()


class Destinations:
    """The named destinations of one process.

    `console` writes to standard error. `dynamic_rendezvous`, where rendezvous events go, and `null`, where
    `record` sends what names no destination, are silent as in torch, unless ``ARENDEZVOUS_EVENTS`` says
    otherwise.

    Args:
        environ: Where ``ARENDEZVOUS_EVENTS`` and ``LOGLEVEL`` are looked up.

    Raises:
        RendezvousSettingsError: ``ARENDEZVOUS_EVENTS`` has a value that is not allowed, or names a file that
            cannot be opened.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        console = ConsoleHandler()
        silent = _from_environment(environ.get(ENVIRONMENT_VARIABLE, ""), console)
        self._handlers: dict[str, logging.Handler] = {
            "console": console,
            "dynamic_rendezvous": silent,
            "null": silent,
        }
        # LOGLEVEL belongs to many tools: a value that only another one knows is no reason to fail here.
        level = environ.get("LOGLEVEL", "").upper()
        self._level = logging.getLevelNamesMapping().get(level, logging.INFO)
        self._loggers: dict[str, logging.Logger] = {}
        self._reported: weakref.WeakSet[logging.Handler] = weakref.WeakSet()

    def handler(self, destination: str) -> logging.Handler:
        """The handler registered for `destination`."""
        try:
            return self._handlers[destination]
        except (KeyError, TypeError):
            known = ", ".join(sorted(self._handlers))
            raise RendezvousSettingsError.of(
                "destination of events",
                destination,
                f"one of {known}, or added with register_logging_handler",
            ) from None

    def register(self, name: str, handler: logging.Handler) -> logging.Handler | None:
        """Sends events for `name` to `handler`, and returns the handler it replaces."""
        if not name:
            raise RendezvousSettingsError.of("name of an event destination", name, "a non-empty string")
        if not isinstance(handler, logging.Handler):
            raise RendezvousSettingsError.of(
                f"handler of event destination {name!r}", handler, "a logging.Handler"
            )
        replaced = self._handlers.get(name)
        self._handlers[name] = handler
        return replaced

    def heard(self, destination: str) -> bool:
        """Says whether anybody would see an event sent to `destination`."""
        own, logger = self._handlers.get(destination), self._loggers.get(destination)
        bare = logger is not None and not logger.handlers and not logger.propagate
        if bare and isinstance(own, logging.NullHandler):
            return False  # told in short, as this is asked twice in every join
        return next(self._listeners(destination), None) is not None

    def emit(self, destination: str, event: AnyEvent) -> None:
        """Sends `event`; a handler that raises is reported once, and the others are served all the same."""
        listeners = tuple(self._listeners(destination))
        if not listeners:
            return
        logger = self._logger(destination)
        try:
            record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, event.serialize(), (), None)
            if not logger.filter(record):
                return
        except Exception as error:  # noqa: BLE001 - a filter is a user's code too, and so is what is in metadata
            self._report(f"an event for {destination!r} could not be prepared", error)
            return
        for listener in listeners:
            try:
                listener.handle(record)
            except Exception as error:  # noqa: BLE001 - whatever a user's handler raises must not stop a rendezvous
                if listener not in self._reported:
                    self._reported.add(listener)
                    self._report(f"the handler {listener!r} lost an event for {destination!r}", error)

    def _listeners(self, destination: str) -> Iterator[logging.Handler]:
        own = self.handler(destination)
        logger = self._logger(destination)
        if logger.disabled or not logger.isEnabledFor(logging.INFO):
            return
        if _hears(own) and not any(_same(own, other) for other in logger.handlers):
            yield own
        yield from filter(_hears, logger.handlers)
        # Logging makes this walk too, but there a handler that raises keeps the event from those after it.
        while logger.propagate and logger.parent is not None:
            logger = logger.parent
            yield from filter(_hears, logger.handlers)

    def _logger(self, destination: str) -> logging.Logger:
        logger = self._loggers.get(destination)
        if logger is None:
            logger = self._loggers[destination] = logging.getLogger(f"torchelastic-events-{destination}")
            logger.setLevel(self._level)
            logger.propagate = False
        return logger

    @staticmethod
    def _report(what: str, error: Exception) -> None:
        with contextlib.suppress(Exception):  # the handlers of this logger are users' too
            _log.warning("%s: %s: %s", what, type(error).__name__, error, exc_info=error)


def _hears(handler: logging.Handler) -> bool:
    return handler.level <= logging.INFO and not isinstance(handler, logging.NullHandler)


def _same(handler: logging.Handler, other: logging.Handler) -> bool:
    if handler is other:
        return True
    # What torch adds to the console's logger when it has recorded an event in this process.
    return isinstance(handler, ConsoleHandler) and (
        type(other) is logging.StreamHandler and other.stream is sys.stderr
    )


def _from_environment(value: str, console: logging.Handler) -> logging.Handler:
    kind, _, path = value.partition(":")
    if value in ("", "null"):
        return logging.NullHandler()
    if value == "console":
        return console
    if kind != "jsonl" or not path:
        raise RendezvousSettingsError.of(ENVIRONMENT_VARIABLE, value, _EXPECTED)
    try:
        return JsonLinesHandler(path)
    except (OSError, ValueError) as error:
        expected = f"{_EXPECTED}, where PATH is a file that can be appended to ({error})"
        raise RendezvousSettingsError.of(ENVIRONMENT_VARIABLE, value, expected) from error
