"""How an asynchronous object, and each of its methods, becomes a blocking one."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, TypeVarTuple

from arendezvous.guesses import Guessable
from arendezvous.sync.loop_thread import LoopThread, loop_thread

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")
Args = TypeVarTuple("Args")


class Blocking(Guessable, Generic[A]):
    """Stands for an asynchronous object in programs that block.

    Attributes:
        asynchronous: That object, not entered yet if it is to be; its methods are to be awaited in the loop.
        loop: The loop in which it is used.
    """

    def __init__(self, asynchronous: A, loop: LoopThread | None = None) -> None:
        self.asynchronous = asynchronous
        self.loop = loop or loop_thread()

    def __repr__(self) -> str:
        return repr(self.asynchronous)

    def _run(self, function: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        return self.loop.run(self, function, *args)


def blocking(method: Callable[Concatenate[Any, P], Awaitable[T]]) -> Callable[Concatenate[Any, P], T]:
    """Makes a method of a `Blocking` that calls the one of the same name of its asynchronous object."""

    @functools.wraps(method)
    def call(self: Blocking[object], /, *args: P.args, **kwargs: P.kwargs) -> T:
        function: Callable[..., Awaitable[T]] = getattr(self.asynchronous, method.__name__)
        return self._run(functools.partial(function, *args, **kwargs))

    call.__doc__ = (method.__doc__ or "").partition("Cancellation:")[0].rstrip()
    return call
