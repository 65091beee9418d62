"""Rendezvous handlers by the name of their backend.

A creator is a plain function: it takes `RendezvousParameters` and returns a handler that is not yet open, so
creating one never waits. A registry knows creators from three places, and the first wins:

1. What was registered: a creator, or ``module:attribute``, which is imported when its name is asked for.
2. Plug-ins: entry points of other distributions. As in torch, an entry point names a function without
   arguments that returns the creator, and the name of the entry point is the name of the backend.
3. The schemes that other distributions add, see `arendezvous.schemes`; one creator makes the handlers of all.

One registry holds handlers of one kind: async, sync or torch's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError
from arendezvous.plugins import PlugIns, load
from arendezvous.rendezvous.parameters import RendezvousParameters, suggestion
from arendezvous.schemes import GROUP, OURS

if TYPE_CHECKING:
    from arendezvous.rendezvous.handler import AsyncRendezvousHandler

ENTRY_POINT_GROUP = "arendezvous.handlers"
_CREATOR = "arendezvous.opening:create_handler"

HandlerT = TypeVar("HandlerT")

RendezvousHandlerCreator: TypeAlias = Callable[[RendezvousParameters], HandlerT]


class RendezvousHandlerRegistry(Generic[HandlerT]):
    """Creators of rendezvous handlers, by the name of their backend.

    Args:
        group: The entry point group of plug-ins. It is looked up once, when it is first needed. A plug-in
            is imported when its own name is asked for, so a broken one is in nobody else's way.
        schemes: The creator, as ``module:attribute``, of handlers for the schemes that plug-ins add; None:
            they are not known here.

    Its fields:
        _registered: What was registered, by the name of the backend: creators, and where creators are.
        _plugins: The plug-ins of the group.
        _schemes: The plug-ins that add schemes, and the creator of handlers for them; None: see `schemes`.
    """

    def __init__(self, group: str = ENTRY_POINT_GROUP, *, schemes: str | None = None) -> None:
        self._registered: dict[str, RendezvousHandlerCreator[HandlerT] | str] = {}
        self._plugins = PlugIns(group, "backend")
        self._schemes = None if schemes is None else (PlugIns(GROUP, "scheme"), schemes)

    def register(self, backend: str, creator: RendezvousHandlerCreator[HandlerT]) -> None:
        """Makes `creator` the creator of handlers for `backend`; doing it again with the same one is allowed.

        Raises:
            RendezvousSettingsError: The name is empty, or registered with another creator already.
        """
        if not callable(creator):
            raise RendezvousSettingsError.of(f"creator of backend {backend!r}", creator, "a function")
        self._add(backend, creator)

    def register_lazy(self, backend: str, reference: str) -> None:
        """Registers, as `register` does, a creator that is imported when `backend` is asked for.

        Args:
            backend: The name of the backend.
            reference: Where the creator is, as ``module:attribute``.

        Raises:
            RendezvousSettingsError: The name is empty, or registered with another creator already, or
                `reference` is not of that form.
        """
        module, _, attribute = reference.partition(":")
        if not module or not attribute:
            raise RendezvousSettingsError.of(f"creator of backend {backend!r}", reference, "module:attribute")
        self._add(backend, reference)

    def names(self) -> tuple[str, ...]:
        """Returns the names of all backends, sorted; plug-ins are named without being imported."""
        schemes = () if self._schemes is None else self._schemes[0].names()
        return tuple(sorted({*self._registered, *self._plugins.names(), *schemes}))

    def create_handler(self, params: RendezvousParameters) -> HandlerT:
        """Creates a handler, not yet open, for the backend that `params` names.

        Whatever the creator raises comes out as it is.

        Raises:
            RendezvousSettingsError: The backend is unknown; or its creator cannot be imported, chained to the
                reason; or it has made something that is not a handler of that backend.
        """
        backend = params.backend
        made: Any = self._creator(backend)(params)
        if inspect.iscoroutine(made):
            made.close()
        if not callable(getattr(made, "get_backend", None)):
            what = f"what the creator of backend {backend!r} made"
            expected = "a handler that is not yet open, made by a plain function"
            raise RendezvousSettingsError.of(what, made, expected)
        if (named := made.get_backend()) != backend:
            what = f"the backend of the handler that was created for {backend!r}"
            expected = f"{backend!r}: its creator is registered under the wrong name"
            raise RendezvousSettingsError.of(what, named, expected)
        handler: HandlerT = made
        return handler

    def _add(self, backend: str, creator: RendezvousHandlerCreator[HandlerT] | str) -> None:
        if not backend:
            raise RendezvousSettingsError.of("backend", backend, "the name of a rendezvous backend")
        current = self._registered.setdefault(backend, creator)
        if current != creator:
            raise RendezvousSettingsError(
                f"the backend {backend!r} cannot be registered with {creator!r}: "
                f"it is already registered with {current!r}",
                name="backend",
                value=repr(backend),
                expected="a name that is not taken",
            )

    def _creator(self, backend: str) -> RendezvousHandlerCreator[HandlerT]:
        what = f"backend {backend!r}"
        creator: Any = self._registered.get(backend)
        if creator is None and backend in self._plugins.names():
            what = self._plugins.describe(backend)
            creator = self._plugins.load(backend, lambda point: point.load()())
        elif creator is None:
            creator = self._of_schemes(backend)
        if isinstance(creator, str):
            module, _, attribute = creator.partition(":")
            creator = load(what, lambda: getattr(import_module(module), attribute), "backend")
        if not callable(creator):
            what, expected = f"what the {what} gives", "a function that creates a handler"
            raise RendezvousSettingsError.of(what, creator, expected)
        found: RendezvousHandlerCreator[HandlerT] = creator
        return found

    def _of_schemes(self, backend: str) -> RendezvousHandlerCreator[HandlerT] | str:
        if self._schemes is not None and backend in self._schemes[0].names():
            return self._schemes[1]
        names = self.names()
        known = f"one of {', '.join(names) or '(none is registered)'}{suggestion(backend, names)}"
        others = "others are added with register() or by installing a distribution with entry points in"
        raise RendezvousSettingsError.of("backend", backend, f"{known}; {others} {self._plugins.group!r}")


rendezvous_handler_registry: RendezvousHandlerRegistry[AsyncRendezvousHandler]
rendezvous_handler_registry = RendezvousHandlerRegistry(schemes=_CREATOR)
for _scheme in OURS:
    rendezvous_handler_registry.register_lazy(_scheme.name, _CREATOR)


def get_rendezvous_handler(params: RendezvousParameters) -> AsyncRendezvousHandler:
    """Creates a handler, not yet open, with the registry of this process, `rendezvous_handler_registry`.

    Raises:
        RendezvousSettingsError: See `RendezvousHandlerRegistry.create_handler`.
        RendezvousTypeError: These are no parameters.
    """
    if not isinstance(params, RendezvousParameters):
        raise RendezvousTypeError.of("params", params, "RendezvousParameters")
    return rendezvous_handler_registry.create_handler(params)
