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
    """Says what somebody means who tries `name`.

    Args:
        name: What was tried.
        known: The public names.
        guesses: What is meant by others, in words that follow on "use".

    Returns:
        A part of a sentence, to follow on "there is no NAME"; empty if nothing comes close.
    """
    if name in guesses:
        return f": use {guesses[name]}"
    close = difflib.get_close_matches(
        name, [one for one in known if not one.startswith("_")], n=1, cutoff=0.6
    )
    return f": did you mean {close[0]}?" if close else ""


class Guessable:
    """Has an object say what is meant when an attribute is tried that it does not have.

    Attributes:
        GUESSES: What is tried, to what is meant, in words that follow on "use"; a class adds to its bases'.
    """

    GUESSES: ClassVar[Mapping[str, str]] = {}

    if not TYPE_CHECKING:  # else a type checker would take every attribute to be there

        def __getattr__(self, name: str) -> NoReturn:
            kind = type(self)
            hint = "" if name.startswith("__") else meant(name, dir(kind), kind.GUESSES)
            raise AttributeError(f"{kind.__name__} has no attribute {name!r}{hint}", name=name, obj=self)


def to_be_called(usage: str) -> Callable[[Method], Method]:
    """Has a method that is taken for a value, and looped over, counted or indexed, say how it is called.

    Args:
        usage: How it is called.
    """

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


_LEAVING: Final = "leave(), set_closed() to close the run for all, or leave the block"
HANDLER: Final[Mapping[str, str]] = {
    "join": "next_rendezvous()",
    "join_round": "next_rendezvous()",
    "rendezvous": "next_rendezvous()",
    "wait": "next_rendezvous()",
    "meet": "next_rendezvous()",
    "info": "what next_rendezvous() returns",
    "get_rank": "the rank of what next_rendezvous() returns: info.rank",
    "get_world_size": "the world_size of what next_rendezvous() returns: info.world_size",
    "next": "next_rendezvous()",
    "rank": "the rank of what next_rendezvous() returns: info.rank",
    "world_size": "the world_size of what next_rendezvous() returns: info.world_size",
    "round": "the round of what next_rendezvous() returns: info.round",
    "store": "the store of what next_rendezvous() returns: info.store",
    "role": "the role of what next_rendezvous() returns: info.role",
    "roster": "the members() of what next_rendezvous() returns: info.members()",
    "members": "the members() of what next_rendezvous() returns: info.members()",
    "run_id": "get_run_id()",
    "backend": "get_backend()",
    "name": "node",
    "node_name": "node",
    "url": "endpoint",
    "status": "explain()",
    "state": "update() to say what this node's state is, explain() for that of the run",
    "set_state": "update()",
    "report": "update(), or progress() for a step",
    "heartbeat": "progress(), or nothing: a node is kept alive by itself",
    "step": "progress()",
    "barrier": "the barrier() of what next_rendezvous() returns: info.barrier()",
    "loop": "rounds()",
    "close": _LEAVING,
    "aclose": _LEAVING,
    "stop": _LEAVING,
    "exit": _LEAVING,
    "closed": "is_closed()",
    "events": "changes(), or history for what has happened",
    "watch": "changes()",
    "on_change": "changes()",
    "start": "the handler as a context manager",
    "open": "the handler as a context manager",
    "connect": "the handler as a context manager",
}
INFO: Final[Mapping[str, str]] = {
    "size": "world_size",
    "num_nodes": "world_size",
    "master_addr": "rank0_addresses[0], or bootstrap_store_info() for a store of torch's",
    "master_port": "bootstrap_store_info(), which tells the address and the port of a store of torch's",
    "master": "rank0_addresses[0]",
    "addresses": "members(), or rank0_addresses",
    "address": "local_address",
    "sync": "barrier()",
    "wait": "barrier()",
    "synchronize": "barrier()",
    "all_reduce": "agree()",
    "allreduce": "agree()",
    "reduce": "agree()",
    "consensus": "agree()",
    "token": "fence",
    "epoch": "fence, or round",
    "nodes": "members()",
    "peers": "members()",
    "participants": "members()",
    "local_rank": "first_slot: ranks here are of nodes; those of processes begin with first_slot",
    "group_rank": "role_rank",
    "group_size": "role_size",
    "num_slots": "total_slots",
    "nproc": "total_slots",
    "data": "the data of each in members()",
    "roster": "members()",
    "labels": "the label of each in members()",
    "roles": "the role of each in members()",
    "round_number": "round",
    "id": "run_id",
    "node": "the node of the handler: rdzv.node",
    "name": "the node of the handler: rdzv.node",
    "leave": "the handler's: rdzv.leave()",
    "close": "the handler's: rdzv.leave(), or rdzv.set_closed() to close the run for all",
    "changes": "the handler's: rdzv.changes()",
}
STORE: Final[Mapping[str, str]] = {
    "put": "set()",
    "delete": "delete_key()",
    "remove": "delete_key()",
    "exists": "check()",
    "has": "check()",
    "keys": "list_keys()",
    "incr": "add()",
    "increment": "add()",
    "cas": "compare_set()",
    "compare_and_set": "compare_set()",
    "push": "queue_push()",
    "pop": "queue_pop()",
    "size": "num_keys()",
}
CONNECTION: Final[Mapping[str, str]] = {
    "list": "runs()",
    "list_runs": "runs()",
    "run": "status(run_id)",
    "explain": "status(run_id)",
    "watch": "observe(run_id)",
    "events": "observe(run_id)",
    "pause": "hold(run_id)",
    "resume": "release(run_id)",
    "unhold": "release(run_id)",
    "scale": "resize(run_id, min_nodes, max_nodes)",
    "ban": "quarantine(run_id, node)",
    "evict": "quarantine(run_id, node), or drain(run_id, node)",
    "kick": "quarantine(run_id, node), or drain(run_id, node)",
    "unban": "pardon(run_id, node)",
    "join": "open_rendezvous(): a connection takes part in no run",
}
OBSERVER: Final[Mapping[str, str]] = {
    "nodes": "status.nodes, or members",
    "events": "the observer itself: async for event in run",
    "changes": "the observer itself: async for event in run",
    "rank": "open_rendezvous(): an observer has no rank",
    "next_rendezvous": "open_rendezvous(): an observer takes part in nothing",
    "explain": "str(run.status)",
    "id": "run_id",
}
PACKAGE: Final[Mapping[str, str]] = {
    "sync": "from arendezvous import sync",
    "events": "from arendezvous import events",
    "testing": "from arendezvous import testing",
    "torch": "from arendezvous import torch",
    "open": "open_rendezvous()",
    "join": "open_rendezvous()",
    "init": "open_rendezvous()",
    "rendezvous_handler": "open_rendezvous()",
    "Rendezvous": "open_rendezvous()",
    "RendezvousHandler": "AsyncRendezvousHandler, or arendezvous.sync.RendezvousHandler, which blocks",
    "run": "open_rendezvous() in a program, or torchrun --rdzv-backend=arendezvous",
    "start_server": "serve()",
    "Event": "Change",
    "watch": "observe()",
    "Observer": "observe()",
    "client": "connect()",
    "Client": "connect()",
    "RendezvousEvent": "Change, or arendezvous.events for torch's events",
}
