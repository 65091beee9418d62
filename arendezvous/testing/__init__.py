"""A test kit for users: virtual time, a proxy with named faults, conformance checks for what fulfils a port.

With ``memory://`` and `run_virtual`, a rendezvous of many nodes, its time-outs and its deaths run in
milliseconds, without a socket and in the same order every time.
"""

from arendezvous.testing.backend_checks import BACKEND_CHECKS, check_backend
from arendezvous.testing.directory_checks import DIRECTORY_CHECKS, check_directory
from arendezvous.testing.fault_proxy import FaultProxy, Faults
from arendezvous.testing.journal_checks import JOURNAL_CHECKS, MemoryJournal, check_journal
from arendezvous.testing.store_checks import STORE_CHECKS, check_store
from arendezvous.testing.virtual_time import VirtualTimeError, VirtualTimeLoop, run_virtual

__all__ = [
    "BACKEND_CHECKS",
    "DIRECTORY_CHECKS",
    "JOURNAL_CHECKS",
    "STORE_CHECKS",
    "FaultProxy",
    "Faults",
    "MemoryJournal",
    "VirtualTimeError",
    "VirtualTimeLoop",
    "check_backend",
    "check_directory",
    "check_journal",
    "check_store",
    "run_virtual",
]
