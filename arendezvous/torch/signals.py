"""Leaving the run as soon as a signal tells this process to end, whoever handles the signal.

An agent that gets SIGTERM first stops its workers, which may take half a minute, and exits then. Its peers
should hear of it at once. The interpreter writes the number of every signal that it handles to a descriptor
of our choice, whatever handler is installed later, so nobody's handler is replaced.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Final
from weakref import WeakSet

import anyio

from arendezvous.errors import RendezvousError
from arendezvous.sync.handler import RendezvousHandler
from arendezvous.sync.loop_thread import loop_thread

logger = logging.getLogger(__name__)

FATAL: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
TORCHRUNS: Final = "TORCHELASTIC_SIGNALS_TO_HANDLE"  # where torchrun leaves the names of --signals-to-handle

_handlers: WeakSet[RendezvousHandler] = WeakSet()
_owner = 0


def leave_on_signals(handler: RendezvousHandler) -> None:
    """Makes `handler` leave its run when this process gets a signal that is to end it.

    Only the main thread can arrange that; called from another one, or in a process where somebody else reads
    the signals (an event loop in the main thread), this does nothing but say so in the log.
    """
    global _owner  # noqa: PLW0603 - signals belong to the process, and so does this
    _handlers.add(handler)
    if _owner == os.getpid():
        return
    if threading.current_thread() is not threading.main_thread():
        logger.info("not in the main thread: peers will learn of a signal when this process has ended")
        return
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)
        logger.info("somebody reads the signals of this process: peers will learn of one when it has ended")
        return
    _owner = os.getpid()
    loop_thread().start(_watch, read)


def _leave_the_signals_to_the_parent() -> None:
    """Gives up the pipe in the child of a fork, whose signals would else be written to it."""
    global _owner  # noqa: PLW0603 - see above
    if _owner:
        signal.set_wakeup_fd(-1)
        _owner = 0
        _handlers.clear()


os.register_at_fork(after_in_child=_leave_the_signals_to_the_parent)


async def _watch(read: int) -> None:
    """Has all handlers leave whenever a signal comes that is to end the process."""
    ending = FATAL | {
        getattr(signal, name.strip(), None) for name in os.environ.get(TORCHRUNS, "").split(",")
    }
    while True:
        await anyio.wait_readable(read)
        fatal = [signal.Signals(number).name for number in os.read(read, 256) if number in ending]
        if fatal:
            async with anyio.create_task_group() as tasks:
                for handler in list(_handlers):
                    tasks.start_soon(_leave, handler, f"its process received {fatal[0]}")


async def _leave(handler: RendezvousHandler, reason: str) -> None:
    try:
        await handler.leave_in_loop(reason)
    except RendezvousError as error:
        logger.warning("could not tell the peers of the signal: %s", error)
