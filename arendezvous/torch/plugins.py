"""The entry points of torchrun's registry: for each backend of ours, how it gets at `torch.create_handler`.

Torch loads them while it is being imported itself; so `handler`, which imports torch, is imported
when a handler is asked for. Torch calls each entry point without arguments, hence a function for each name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousParameters

    from arendezvous.torch.handler import RendezvousHandler

Creator: TypeAlias = "Callable[[RendezvousParameters], RendezvousHandler]"


def tcp_creator() -> Creator:
    """``arendezvous``: agents that meet at our server, or wherever a URL given as the endpoint says."""
    return _creator("")


def http_creator() -> Creator:
    """``arendezvous-http``: agents that meet at our server, where only HTTP gets through."""
    return _creator("http")


def c10d_creator() -> Creator:
    """``arendezvous-c10d``: agents that share a rendezvous with stock c10d agents."""
    return _creator("c10d")


def etcd_creator() -> Creator:
    """``arendezvous-etcd``: agents that meet in an etcd cluster."""
    return _creator("etcd")


def etcd_v2_creator() -> Creator:
    """``arendezvous-etcd-v2``: agents that share a rendezvous with stock etcd-v2 agents."""
    return _creator("etcd-v2")


def _creator(scheme: str) -> Creator:
    def create(params: RendezvousParameters) -> RendezvousHandler:
        from arendezvous.torch.handler import create_handler

        return create_handler(params, scheme)

    return create
