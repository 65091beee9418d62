"""The entry points of torchrun's registry: for each backend of ours, how it gets at `torch.create_handler`.

Torch loads them while it is being imported itself; so `handler`, which imports torch, is imported
when a handler is asked for. Torch calls each entry point without arguments, hence one for each name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousParameters

    from arendezvous.torch.handler import RendezvousHandler

Creator: TypeAlias = "Callable[[RendezvousParameters], RendezvousHandler]"


def _creator(scheme: str) -> Creator:
    def create(params: RendezvousParameters) -> RendezvousHandler:
        from arendezvous.torch.handler import create_handler

        return create_handler(params, scheme)

    return create


tcp_creator = partial(_creator, "")  # ``arendezvous``: our server, or wherever the endpoint's URL leads
http_creator = partial(_creator, "http")  # where only HTTP gets through
c10d_creator = partial(_creator, "c10d")  # with stock c10d agents
etcd_creator = partial(_creator, "etcd")
etcd_v2_creator = partial(_creator, "etcd-v2")  # with stock etcd-v2 agents
