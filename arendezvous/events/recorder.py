"""Recording: the functions that the rest of the program, and users, call.

As in torch there is one record for a process. An event is kept in a bounded history and handed to live
streams, as an object; it becomes text only when its destination has a handler that is not null.

A destination ``x`` is the logger ``torchelastic-events-x``, as in torch: its level, its filters and the
handlers that users add to it count. The destination's own handler is kept here and not added to that logger.
Torch may live in the same process and use the same loggers, and then every event would come out twice.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import logging
import os
import socket
import sys
import traceback
import weakref
from collections.abc import Iterator, Mapping

from arendezvous.errors import RendezvousSettingsError
from arendezvous.events.api import AnyEvent, Event, NodeState, RdzvEvent, RecordedEvent
from arendezvous.events.live import BUFFER_SIZE, EventStream, Feed

_RENDEZVOUS = "dynamic_rendezvous"
_file_name = functools.lru_cache(maxsize=64)(os.path.basename)
_hostname = functools.cache(socket.gethostname)
_feed = Feed()
os.register_at_fork(after_in_child=_feed.after_fork)
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
    and truncate. It is made if it does not exist, for its owner alone, but its folder is not. A symbolic link
    is not followed: whoever may write into the folder could have it lead anywhere.
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
            if error.errno != errno.ELOOP:
                raise
            raise OSError(error.errno, "it is a symbolic link, which is not followed", self._path) from error

    def emit(self, record: logging.LogRecord) -> None:
        """Appends one event; opens the file again if the handler was closed, as it is at interpreter exit."""
        line = memoryview(f"{self.format(record)}\n".encode())
        if self._fd < 0:
            self._fd = self._open()
        while line:  # a write is short only if the disk is full, or at a limit, and then the next one says so
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
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        console = ConsoleHandler()
        silent = _from_environment(environ.get(ENVIRONMENT_VARIABLE, ""), console)
        self._handlers: dict[str, logging.Handler] = {"console": console, _RENDEZVOUS: silent, "null": silent}
        # LOGLEVEL belongs to many tools: a value that only another one knows is no reason to fail here.
        level = environ.get("LOGLEVEL", "").upper()
        self._level = logging.getLevelNamesMapping().get(level, logging.INFO)
        self._loggers: dict[str, logging.Logger] = {}
        self._reported: weakref.WeakSet[logging.Handler] = weakref.WeakSet()

    def handler(self, destination: str) -> logging.Handler:
        """Returns the handler registered for `destination`."""
        try:
            return self._handlers[destination]
        except (KeyError, TypeError):
            expected = f"one of {', '.join(sorted(self._handlers))}, or added with register_logging_handler"
            raise RendezvousSettingsError.of("destination of events", destination, expected) from None

    def register(self, name: str, handler: logging.Handler) -> logging.Handler | None:
        """Sends events for `name` to `handler`, and returns the handler it replaces."""
        if not name:
            raise RendezvousSettingsError.of("name of an event destination", name, "a non-empty string")
        what = f"handler of event destination {name!r}"
        if not isinstance(handler, logging.Handler):
            raise RendezvousSettingsError.of(what, handler, "a logging.Handler")
        replaced, self._handlers[name] = self._handlers.get(name), handler
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
        listeners, logger = tuple(self._listeners(destination)), self._logger(destination)
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
        if (logger := self._loggers.get(destination)) is None:
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
    # What torch adds to the console's logger when it has recorded an event in this process.
    is_torchs = type(other) is logging.StreamHandler and other.stream is sys.stderr
    return handler is other or (isinstance(handler, ConsoleHandler) and is_torchs)


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


@functools.cache
def _destinations() -> Destinations:
    """Returns the destinations of this process; a failure is not cached: every call says what is wrong."""
    return Destinations(os.environ)


def get_logging_handler(destination: str = "null") -> logging.Handler:
    """Returns the handler that writes the events sent to `destination`.

    Raises:
        RendezvousSettingsError: There is no such destination, or ``ARENDEZVOUS_EVENTS`` has a bad value.
    """
    return _destinations().handler(destination)


def register_logging_handler(name: str, handler: logging.Handler) -> logging.Handler | None:
    """Makes `handler` write the events sent to destination `name`, which may be new or known.

    Rendezvous events are sent to ``dynamic_rendezvous``. The handler gets records whose message is the JSON
    of an event, at level INFO. Whatever exception it raises is logged once and stops neither the rendezvous
    nor other handlers. It is called where the event is recorded, often on the event loop, so it should not
    block.

    Returns:
        The handler it takes the place of, which is left open; None if the name is new.

    Raises:
        RendezvousSettingsError: The name is empty, or `handler` is not a `logging.Handler`.
    """
    return _destinations().register(name, handler)


def record(event: AnyEvent, destination: str = "null") -> None:
    """Records `event`: a copy is kept in the history and given to streams, and `destination` gets its JSON.

    The destination ``null`` is silent unless ``ARENDEZVOUS_EVENTS`` says otherwise.

    Raises:
        RendezvousSettingsError: There is no such destination, or ``ARENDEZVOUS_EVENTS`` has a bad value.
    """
    destinations = _destinations()
    destinations.handler(destination)  # an unknown destination is refused before anything is kept
    heard, wanted = destinations.heard(destination), _feed.wanted
    kept = _copy(event) if heard or wanted else event
    if wanted:
        _feed.publish(kept)
    if heard:
        destinations.emit(destination, kept)


def record_rdzv_event(event: RdzvEvent) -> None:
    """Records `event` as `record` does, for the destination ``dynamic_rendezvous``."""
    record(event, _RENDEZVOUS)


def construct_and_record_rdzv_event(
    run_id: str,
    message: str,
    node_state: NodeState,
    name: str = "",
    hostname: str = "",
    pid: int | None = None,
    master_endpoint: str = "",
    local_id: int | None = None,
    rank: int | None = None,
) -> None:
    """Makes a rendezvous event and records it; does nothing without a history, a stream or a handler.

    With `node_state` FAILED, the traceback of the exception that is being handled goes with it, or
    ``NoneType: None`` when there is none, as in torch.

    Args:
        run_id: The run.
        message: What happened, in words.
        node_state: Where the node is on its way.
        name: What was going on; the caller's function if empty. The caller's file is put before it.
        hostname: The node's host; this machine's own name if empty. Unlike in torch no name server is
            asked, because that may stop the event loop for seconds.
        pid: The node's process id; this process's if None or 0.
        master_endpoint: The endpoint of the rendezvous store, if known.
        local_id: Tells apart the nodes of one process.
        rank: The node's rank, None if it has none yet.
    """
    destinations = _destinations()
    heard, wanted = destinations.heard(_RENDEZVOUS), _feed.wanted
    if not (heard or wanted):
        return
    code = sys._getframe(1).f_code  # noqa: SLF001 - one frame; the public way reads the whole stack and its sources
    event = RdzvEvent(  # by position: twice as fast
        f"{_file_name(code.co_filename)}:{name or code.co_name}",
        run_id,
        message,
        hostname or _hostname(),
        pid or os.getpid(),
        node_state,
        master_endpoint,
        rank,
        local_id,
        traceback.format_exc() if node_state == NodeState.FAILED else "",
    )
    if wanted:
        _feed.publish(event)
    if heard:
        destinations.emit(_RENDEZVOUS, event)


def history() -> list[RecordedEvent]:
    """Returns the events that this process has recorded last, oldest first; 1000 at most unless resized."""
    return _feed.history()


def set_history_size(size: int) -> None:
    """Keeps the last `size` events in memory from now on; 0 keeps none.

    Raises:
        RendezvousSettingsError: `size` is negative.
    """
    _feed.resize(size)


def stream(*, buffer: int = BUFFER_SIZE, after: int | None = None) -> EventStream:
    """Opens a stream of the events that are recorded from now on, in whatever thread.

    Args:
        buffer: How many events wait for a slow reader; then the oldest are dropped and counted in
            `EventStream.dropped`.
        after: Begin with what the history has after this `RecordedEvent.number`; 0 for all of it,
            None for nothing of it.

    Raises:
        RendezvousSettingsError: `buffer` is not positive, or `after` is negative.
    """
    return _feed.stream(buffer, after)


def _copy(event: AnyEvent) -> AnyEvent:
    """Copies an event: what is kept must not change when the caller uses its event again."""
    kept = copy.copy(event)
    if isinstance(kept, Event):
        kept.metadata = dict(kept.metadata)
    return kept
