"""Several endpoints of one etcd cluster: who is asked next, and what is raised when none will do."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import anyio

from arendezvous.errors import RendezvousConnectionError
from arendezvous.etcd.http import Endpoint, EndpointTrouble, Links

T = TypeVar("T")

_MOST_REQUESTS: Final = 64  # at the same time
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0
_LEAST_SECONDS: Final = 0.01


class Failover:
    """The endpoints of a cluster, one of which is in use.

    Args:
        urls: The base URLs of the members; one of them is chosen at random, then the next ones as needed.
        links: The connections to them.
        read_timeout: For how many seconds an answer is awaited, from all members together.
    """

    def __init__(self, urls: Sequence[str], links: Links, read_timeout: float) -> None:
        self.read_timeout = read_timeout
        self.endpoints = [Endpoint(url) for url in urls]
        self.current = random.choice(self.endpoints)  # noqa: S311  # spreads clients out, hides nothing
        self._links = links
        self._requests = anyio.Semaphore(_MOST_REQUESTS)

    async def close(self) -> None:
        """Closes all connections; what is sent later raises `StoreError`. May be called several times."""
        await self._links.close()

    @property
    def name(self) -> str:
        """The base URLs of all endpoints, with commas between."""
        return ",".join(endpoint.url for endpoint in self.endpoints)

    def avoid(self, endpoint: Endpoint) -> None:
        """Turns to the next endpoint, if `endpoint` is the one in use."""
        if self.current is endpoint:
            self.current = self.endpoints[(self.endpoints.index(endpoint) + 1) % len(self.endpoints)]

    async def try_endpoints(
        self,
        send: Callable[[Endpoint, float], Awaitable[T]],
        doing: str,
        *,
        repeat: bool,
        seconds: float | None,
    ) -> T:
        """Sends to one endpoint after the other, beginning with the one that answered last.

        Args:
            send: Sends to an endpoint, for so many seconds at most; raises `EndpointTrouble` if that fails.
            doing: What errors say was being done.
            repeat: Whether it does no harm to carry it out twice.
            seconds: For how long to try; None for ever; negative stands for the `read_timeout`.

        Raises:
            RendezvousConnectionError: No endpoint answered in time, or one may have carried it out, without
                saying so, and `repeat` is false.
        """
        seconds = self.read_timeout if seconds is not None and seconds < 0 else seconds
        end = math.inf if seconds is None else anyio.current_time() + seconds
        said: dict[Endpoint, EndpointTrouble] = {}
        pause = _FIRST_PAUSE
        while True:
            order = self._order()
            for number, endpoint in enumerate(order):
                self._links.require_open()
                limit = min(end - anyio.current_time(), self.read_timeout)
                if repeat:
                    limit /= len(order) - number
                try:
                    result = await send(endpoint, max(limit, _LEAST_SECONDS))
                except EndpointTrouble as trouble:
                    said[endpoint] = trouble
                    if trouble.done and not repeat:
                        self.avoid(endpoint)
                        raise self._in_doubt(doing, endpoint, trouble) from trouble
                else:
                    self.current = endpoint
                    return result
                if anyio.current_time() >= end:
                    break
            if anyio.current_time() + pause >= end or all(trouble.final for trouble in said.values()):
                raise self._unreachable(doing, seconds, said)
            await anyio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # as above
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _order(self) -> list[Endpoint]:
        start = self.endpoints.index(self.current)
        return self.endpoints[start:] + self.endpoints[:start]

    def _unreachable(
        self, doing: str, seconds: float | None, said: dict[Endpoint, EndpointTrouble]
    ) -> RendezvousConnectionError:
        each = "; ".join(f"{endpoint.url} {trouble}" for endpoint, trouble in said.items())
        if any("no leader" in str(trouble) or "no quorum" in str(trouble) for trouble in said.values()):
            hint = "the cluster has no quorum: start more of its members"
        elif all(trouble.final for trouble in said.values()):
            hint = "this will not change by waiting"
        else:
            hint = "is etcd running, and are these the addresses for its clients?"
        within = "" if seconds is None else f" after {seconds:g} s"
        return RendezvousConnectionError(
            f"{doing} failed{within}: {each}: {hint}", endpoint=self.name, doing=doing
        )

    def _in_doubt(
        self, doing: str, endpoint: Endpoint, trouble: EndpointTrouble
    ) -> RendezvousConnectionError:
        return RendezvousConnectionError(
            f"{doing}: {endpoint.url} {trouble}; it may have been carried out or not, so it was not sent"
            " again: look at the key, then decide",
            endpoint=self.name,
            doing=doing,
        )
