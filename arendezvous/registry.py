"""Rendezvous handlers by the name of their backend.

A creator is a plain function: it takes `RendezvousParameters` and returns a handler that is not yet open, so
creating one never waits. A registry knows creators from two places, and the first wins:

1. What was registered: a creator, or ``module:attribute``, which is imported when its name is asked for.
2. Plug-ins: entry points of other distributions. As in torch, an entry point names a function without
   arguments that returns the creator, and the name of the entry point is the name of the backend.

One registry holds handlers of one kind: async, sync or torch's.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, distributions
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from arendezvous.errors import RendezvousSettingsError
from arendezvous.rendezvous.parameters import RendezvousParameters, suggestion

if TYPE_CHECKING:
    from arendezvous.rendezvous.handler import AsyncRendezvousHandler

ENTRY_POINT_GROUP = "arendezvous.handlers"

_log = logging.getLogger(__name__)


class NamedHandler(Protocol):
    """What a registry needs of a handler."""

    def get_backend(self) -> str:
        """Returns the name of the handler's backend."""
        ...


HandlerT = TypeVar("HandlerT", bound=NamedHandler)
T = TypeVar("T")

RendezvousHandlerCreator: TypeAlias = Callable[[RendezvousParameters], HandlerT]


class RendezvousHandlerRegistry(Generic[HandlerT]):
    """Creators of rendezvous handlers, by the name of their backend.

    Args:
        group: The entry point group of plug-ins. It is looked up once, when it is first needed. A plug-in
            is imported when its own name is asked for, so a broken one is in nobody else's way.
    """

    def __init__(self, group: str = ENTRY_POINT_GROUP) -> None:
        self._group = group
        self._registered: dict[str, RendezvousHandlerCreator[HandlerT] | str] = {}
        self._found: Mapping[str, list[EntryPoint]] | None = None

    def register(self, backend: str, creator: RendezvousHandlerCreator[HandlerT]) -> None:
        """Makes `creator` the creator of handlers for `backend`; doing it again with the same one is allowed.

        Raises:
            RendezvousSettingsError: The name is empty, or registered with another creator already.
        """
        if not callable(creator):
            raise RendezvousSettingsError.of(f"creator of backend {backend!r}", creator, "a function")
        self._add(backend, creator)

    def register_lazy(self, backend: str, reference: str) -> None:
        """Like `register`, for a creator that is imported when `backend` is asked for.

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
        return tuple(sorted({*self._registered, *self._plugins()}))

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
            raise RendezvousSettingsError.of(
                f"what the creator of backend {backend!r} made",
                made,
                "a handler that is not yet open, made by a plain function",
            )
        handler: HandlerT = made
        if handler.get_backend() != backend:
            raise RendezvousSettingsError.of(
                f"the backend of the handler that was created for {backend!r}",
                handler.get_backend(),
                f"{backend!r}: its creator is registered under the wrong name",
            )
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
        registered = self._registered.get(backend)
        if registered is None:
            return self._from_plugin(backend)
        if isinstance(registered, str):
            creator: RendezvousHandlerCreator[HandlerT] = _load(f"backend {backend!r}", _import, registered)
            return creator
        return registered

    def _from_plugin(self, backend: str) -> RendezvousHandlerCreator[HandlerT]:
        claims = self._plugins().get(backend, [])
        if not claims:
            names = self.names()
            known = ", ".join(names) or "(none is registered)"
            raise RendezvousSettingsError.of(
                "backend",
                backend,
                f"one of {known}{suggestion(backend, names)}; others are added with register() or by "
                f"installing a distribution with entry points in {self._group!r}",
            )
        described = " and ".join(_describe(point) for point in claims)
        if len(claims) > 1:
            raise RendezvousSettingsError.of(
                "backend",
                backend,
                f"claimed by one plug-in, not by {described}: uninstall all but one of them",
            )
        what = f"plug-in {described} for backend {backend!r}"
        creator: RendezvousHandlerCreator[HandlerT] = _load(what, _call, claims[0])
        return creator

    def _plugins(self) -> Mapping[str, list[EntryPoint]]:
        if self._found is None:
            self._found = _discover(self._group)
        return self._found


def _discover(group: str) -> Mapping[str, list[EntryPoint]]:
    """Entry points by name, read one distribution at a time so that broken metadata spoils only its own."""
    found: dict[str, list[EntryPoint]] = {}
    owners: set[str] = set()
    for distribution in distributions():
        try:
            points = tuple(distribution.entry_points.select(group=group))
            owner = distribution.metadata["Name"] if points else ""
        except Exception as error:  # noqa: BLE001 - whatever is wrong there is not ours, and must not stop us
            _log.warning("passing over a distribution whose entry points cannot be read: %r", error)
            continue
        if points and owner not in owners:  # the first on the path is the one that is imported
            owners.add(owner)
            for point in points:
                found.setdefault(point.name, []).append(point)
    return found


def _load(what: str, load: Callable[[T], object], source: T) -> Any:
    try:
        creator = load(source)
    except Exception as error:
        raise RendezvousSettingsError(
            f"the {what} cannot be loaded: {type(error).__name__}: {error}", name="backend"
        ) from error
    if not callable(creator):
        raise RendezvousSettingsError.of(
            f"what the {what} gives", creator, "a function that creates a handler"
        )
    return creator


def _import(reference: str) -> object:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _call(point: EntryPoint) -> object:
    return point.load()()


def _describe(point: EntryPoint) -> str:
    owner = f" of {point.dist.name}" if point.dist is not None else ""
    return f"{point.value!r}{owner}"


# One line for each backend of ours. Nothing here is imported before somebody asks for the name.
_DEFAULT_HANDLERS = {
    "tcp": "arendezvous.opening:create_handler",
    "http": "arendezvous.opening:create_handler",
    "c10d": "arendezvous.opening:create_handler",
    "etcd": "arendezvous.opening:create_handler",
    "etcd-v2": "arendezvous.opening:create_handler",
    "memory": "arendezvous.opening:create_handler",
    "static": "arendezvous.rendezvous.static:create_handler",
}

rendezvous_handler_registry: RendezvousHandlerRegistry[AsyncRendezvousHandler] = RendezvousHandlerRegistry()


def _register_default_handlers() -> None:
    for backend, reference in _DEFAULT_HANDLERS.items():
        rendezvous_handler_registry.register_lazy(backend, reference)


def get_rendezvous_handler(params: RendezvousParameters) -> AsyncRendezvousHandler:
    """Creates a handler, not yet open, with the registry of this process, `rendezvous_handler_registry`.

    Raises:
        RendezvousSettingsError: See `RendezvousHandlerRegistry.create_handler`.
    """
    return rendezvous_handler_registry.create_handler(params)


_register_default_handlers()
