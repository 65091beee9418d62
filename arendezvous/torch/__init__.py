"""The plug-in for torchrun: ``torchrun --rdzv-backend=arendezvous --rdzv-endpoint=host:29400``.

This is the only part that imports torch, once something of it is asked for. Its handler is a subclass of
torch's ``RendezvousHandler`` over `arendezvous.sync`; it returns torch's own ``RendezvousInfo`` with a
``torch.distributed.Store`` over our own client, and raises torch's own errors with our messages.

Every round gets a store server of its own for the workers, hosted by rank 0's agent, and its address is
published afresh in every round: torch 2.13 caches the first round's, so that with it a late joiner, a
replacement or a promoted spare waits for an address that nobody writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arendezvous.torch.handler import RendezvousHandler as RendezvousHandler
    from arendezvous.torch.handler import TorchStore as TorchStore
    from arendezvous.torch.handler import create_handler as create_handler

__all__ = ["RendezvousHandler", "TorchStore", "create_handler"]


def __getattr__(name: str) -> Any:
    """Imports torch when a public name is first used, as torch itself imports this package."""
    if name not in __all__:
        raise AttributeError(f"module 'arendezvous.torch' has no attribute {name!r}")
    from arendezvous.torch import handler

    return getattr(handler, name)
