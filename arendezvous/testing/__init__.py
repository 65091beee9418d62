"""A test kit for users: virtual time, a proxy with named faults, conformance checks for what fulfils a port.

With ``memory://`` and `run_virtual`, a rendezvous of many nodes, its time-outs and its deaths run in
milliseconds, without a socket and in the same order every time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arendezvous.testing.backend_checks import BACKEND_CHECKS as BACKEND_CHECKS
    from arendezvous.testing.backend_checks import check_backend as check_backend
    from arendezvous.testing.directory_checks import DIRECTORY_CHECKS as DIRECTORY_CHECKS
    from arendezvous.testing.directory_checks import check_directory as check_directory
    from arendezvous.testing.fault_proxy import FaultProxy as FaultProxy
    from arendezvous.testing.fault_proxy import Faults as Faults
    from arendezvous.testing.journal_checks import JOURNAL_CHECKS as JOURNAL_CHECKS
    from arendezvous.testing.journal_checks import MemoryJournal as MemoryJournal
    from arendezvous.testing.journal_checks import check_journal as check_journal
    from arendezvous.testing.store_checks import STORE_CHECKS as STORE_CHECKS
    from arendezvous.testing.store_checks import check_store as check_store
    from arendezvous.testing.virtual_time import VirtualTimeError as VirtualTimeError
    from arendezvous.testing.virtual_time import VirtualTimeLoop as VirtualTimeLoop
    from arendezvous.testing.virtual_time import run_virtual as run_virtual

_HOMES = {
    "BACKEND_CHECKS": "backend_checks",
    "DIRECTORY_CHECKS": "directory_checks",
    "FaultProxy": "fault_proxy",
    "Faults": "fault_proxy",
    "JOURNAL_CHECKS": "journal_checks",
    "MemoryJournal": "journal_checks",
    "STORE_CHECKS": "store_checks",
    "VirtualTimeError": "virtual_time",
    "VirtualTimeLoop": "virtual_time",
    "check_backend": "backend_checks",
    "check_directory": "directory_checks",
    "check_journal": "journal_checks",
    "check_store": "store_checks",
    "run_virtual": "virtual_time",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - sorted() of str keys is a list of str


def __getattr__(name: str) -> Any:
    """Imports a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'arendezvous.testing' has no attribute {name!r}")
    value = getattr(import_module(f"arendezvous.testing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
