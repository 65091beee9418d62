"""A rendezvous by compare-and-set in a store that the backend opens and closes itself."""

from __future__ import annotations

import abc
from contextlib import AsyncExitStack
from typing import Self

from arendezvous.backends.shared_state.compare_and_set import CompareAndSetBackend
from arendezvous.backends.shared_state.fenced_value import FencedValue
from arendezvous.net.addresses import own_address
from arendezvous.stores.port import Store


class OwnStoreBackend(CompareAndSetBackend):
    """A run in a store of its own.

    Args:
        fenced: Where the state is.
        run_id: The run.
        store: The store, which is not open yet.
    """

    def __init__(self, fenced: FencedValue, run_id: str, store: Store) -> None:
        super().__init__(fenced, run_id, store=store)
        self._resources = AsyncExitStack()
        self._address = ""

    @abc.abstractmethod
    async def _open(self) -> tuple[str, int]:
        """Opens the store, and whatever else has to be closed, in `_resources`; returns its host and port."""

    def addresses(self) -> tuple[str, ...]:
        """The address from which this machine reaches the store."""
        return (self._address,) if self._address else ()

    async def __aenter__(self) -> Self:
        """Opens the store, and reads the state."""
        try:
            self._address = await own_address(*await self._open())
            return await super().__aenter__()
        except BaseException:
            await self._resources.aclose()
            raise

    async def __aexit__(self, *raised: object) -> None:
        """Stops looking, and closes what was opened."""
        try:
            await super().__aexit__(*raised)
        finally:
            await self._resources.aclose()
