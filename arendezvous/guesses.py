"""Answers guesses: attributes that are not there, but that people try, with the name that is meant.

The one place for that, so that no public class grows a second name for what it has. It costs nothing until an
attribute is missing, and type checkers do not see it: to them what is missing stays missing.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])


def meant(name: str, known: Iterable[str], guesses: Mapping[str, str]) -> str:
    """Says, to follow on "there is no NAME", what is meant by it; empty if none of the `known` comes close.

    `guesses` has what is meant, in words that follow on "use", and the names that are tried for it.
    """
    for meaning, names in guesses.items():
        if name in names.split():
            return f": use {meaning}"
    close = difflib.get_close_matches(name, [one for one in known if not one.startswith("_")], n=1)
    return f": did you mean {close[0]}?" if close else ""


class Guessable:
    """Has an object say what is meant when an attribute is tried that it does not have.

    Attributes:
        GUESSES: What is meant, in words that follow on "use", and the names that are tried for it.
    """

    GUESSES: ClassVar[Mapping[str, str]] = {}

    if not TYPE_CHECKING:  # else a type checker would take every attribute to be there

        def __getattr__(self, name: str) -> NoReturn:
            kind = type(self)
            hint = "" if name.startswith("__") else meant(name, dir(kind), kind.GUESSES)
            raise AttributeError(f"{kind.__name__} has no attribute {name!r}{hint}", name=name, obj=self)


def to_be_called(usage: str) -> Callable[[Method], Method]:
    """Has a method that is taken for a value, and looped over, counted or indexed, say how it is called."""

    def decorated(method: Method) -> Method:
        return cast("Method", _ToBeCalled(method, usage))

    return decorated


class _ToBeCalled:
    """Stands for a method in its class; its objects get it bound, and type checkers the method itself."""

    def __init__(self, method: Callable[..., Any], usage: str) -> None:
        self.__doc__ = method.__doc__
        self._method = method

        def told(_: object, *__: object) -> NoReturn:
            raise TypeError(f"it is a method: write {usage}")

        answers = dict.fromkeys(("__iter__", "__aiter__", "__len__", "__getitem__"), told)
        self._bound = type("BoundMethod", (functools.partial,), answers)

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        if instance is None:
            return self._method
        bound: Callable[..., Any] = self._bound(self._method, instance)
        return bound


HANDLER: Final = {
    "next_rendezvous()": "join join_round rendezvous wait meet next",
    "what next_rendezvous() returns": "info",
    "the rank of what next_rendezvous() returns: info.rank": "get_rank rank",
    "the world_size of what next_rendezvous() returns: info.world_size": "get_world_size world_size",
    "the round of what next_rendezvous() returns: info.round": "round",
    "the store of what next_rendezvous() returns: info.store": "store",
    "the role of what next_rendezvous() returns: info.role": "role",
    "the members() of what next_rendezvous() returns: info.members()": "roster members",
    "get_run_id()": "run_id",
    "get_backend()": "backend",
    "node": "name node_name",
    "endpoint": "url",
    "explain()": "status",
    "update() to say what this node's state is, explain() for that of the run": "state",
    "update()": "set_state",
    "update(), or progress() for a step": "report",
    "progress(), or nothing: a node is kept alive by itself": "heartbeat",
    "progress()": "step",
    "the barrier() of what next_rendezvous() returns: info.barrier()": "barrier",
    "rounds()": "loop",
    "leave(), set_closed() to close the run for all, or leave the block": "close aclose stop exit",
    "is_closed()": "closed",
    "changes(), or history for what has happened": "events",
    "changes()": "watch on_change",
    "the handler as a context manager": "start open connect",
}
INFO: Final = {
    "world_size": "size num_nodes",
    "rank0_addresses[0], or bootstrap_store_info() for a store of torch's": "master_addr",
    "bootstrap_store_info(), which tells the address and the port of a store of torch's": "master_port",
    "rank0_addresses[0]": "master",
    "members(), or rank0_addresses": "addresses",
    "local_address": "address",
    "barrier()": "sync wait synchronize",
    "agree()": "all_reduce allreduce reduce consensus",
    "fence": "token",
    "fence, or round": "epoch",
    "members()": "nodes peers participants roster",
    "first_slot: ranks here are of nodes; those of processes begin with first_slot": "local_rank",
    "role_rank": "group_rank",
    "role_size": "group_size",
    "total_slots": "num_slots nproc",
    "the data of each in members()": "data",
    "the label of each in members()": "labels",
    "the role of each in members()": "roles",
    "round": "round_number",
    "run_id": "id",
    "the node of the handler: rdzv.node": "node name",
    "the handler's: rdzv.leave()": "leave",
    "the handler's: rdzv.leave(), or rdzv.set_closed() to close the run for all": "close",
    "the handler's: rdzv.changes()": "changes",
}
STORE: Final = {
    "set()": "put",
    "delete_key()": "delete remove",
    "check()": "exists has",
    "list_keys()": "keys",
    "add()": "incr increment",
    "compare_set()": "cas compare_and_set",
    "queue_push()": "push",
    "queue_pop()": "pop",
    "num_keys()": "size",
}
CONNECTION: Final = {
    "runs()": "list list_runs",
    "status(run_id)": "run explain",
    "observe(run_id)": "watch events",
    "hold(run_id)": "pause",
    "release(run_id)": "resume unhold",
    "resize(run_id, min_nodes, max_nodes)": "scale",
    "quarantine(run_id, node)": "ban",
    "quarantine(run_id, node), or drain(run_id, node)": "evict kick",
    "pardon(run_id, node)": "unban",
    "open_rendezvous(): a connection takes part in no run": "join",
}
OBSERVER: Final = {
    "status.nodes, or members": "nodes",
    "the observer itself: async for event in run": "events changes",
    "open_rendezvous(): an observer has no rank": "rank",
    "open_rendezvous(): an observer takes part in nothing": "next_rendezvous",
    "str(run.status)": "explain",
    "run_id": "id",
}
PACKAGE: Final = {
    "from arendezvous import sync": "sync",
    "from arendezvous import events": "events",
    "from arendezvous import testing": "testing",
    "from arendezvous import torch": "torch",
    "open_rendezvous()": "open join init rendezvous_handler Rendezvous",
    "AsyncRendezvousHandler, or arendezvous.sync.RendezvousHandler, which blocks": "RendezvousHandler",
    "open_rendezvous() in a program, or torchrun --rdzv-backend=arendezvous": "run",
    "serve()": "start_server",
    "Change": "Event",
    "observe()": "watch Observer",
    "connect()": "client Client",
    "Change, or arendezvous.events for torch's events": "RendezvousEvent",
}
