"""Back-off: how long to pause between attempts, and when the pauses are short again."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Final

import anyio
import msgspec


class Backoff(msgspec.Struct, frozen=True):
    """Says how long to pause between attempts; it is passed to whatever tries again.

    Attributes:
        first: The first pause of a series, in seconds; above 0.
        last: The longest pause, in seconds; also for how long a success has to hold to count: see `Pauses`.
        factor: By how much each pause is longer than the one before; at least 1.
        jitter: The part of a pause, from 0 to 1, that may be taken off at random, so that those who failed at
            the same moment do not try again at the same moment. With 1, a pause may be anything from nothing
            to its full length.
    """

    first: float = 0.02
    last: float = 1.0
    factor: float = 2.0
    jitter: float = 0.5

    def start(self) -> Pauses:
        """Begins a series: for one operation, or for one thing that is to be kept, such as a connection."""
        return Pauses(self)


DEFAULT_BACKOFF: Final = Backoff()


class Pauses:
    """The pauses of one series of attempts, in one event loop.

    Whoever keeps a connection notes when it has one (`succeeded`), and pauses when that is lost as after a
    failure. So a server that welcomes and closes at once is tried less and less often, just like one that
    cannot be reached, while a connection that held for `Backoff.last` seconds is made again without a pause.

    Tasks may share a series. Those that fail while another pauses wait for the end of the same pause: what is
    out of reach of a hundred tasks has failed once, not a hundred times.

    Its fields:
        _length: Seconds of the next pause, before jitter.
        _over: When the latest pause is over, on the loop's clock.
        _since: When the success began that has not been lost yet, on the loop's clock; None if there is none.
    """

    def __init__(self, policy: Backoff) -> None:
        self._policy = policy
        self._length = policy.first
        self._over = -math.inf
        self._since: float | None = None

    def succeeded(self) -> None:
        """Notes that an attempt succeeded; may be called again while that lasts."""
        if self._since is None:
            self._since = asyncio.get_running_loop().time()

    def reset(self) -> None:
        """Begins anew, with the first pause."""
        self._length = self._policy.first
        self._over = -math.inf
        self._since = None

    def next(self) -> float:
        """Returns for how many seconds to pause, after a failure or a loss; 0 if what was lost had lasted."""
        now = asyncio.get_running_loop().time()
        if self._since is not None:
            lasted = now - self._since >= self._policy.last
            self._since = None
            if lasted:
                self.reset()
                return 0.0
        if now < self._over:
            return self._over - now
        pause = self._length * (1 - self._policy.jitter * random.random())  # noqa: S311 - spreads, hides nothing
        self._length = min(self._policy.last, self._length * self._policy.factor)
        self._over = now + pause
        return pause

    async def sleep(self, until: float = math.inf) -> bool:
        """Pauses for as long as `next` says. Cancellation: safe.

        Returns whether it did: False, at once, if that would not be over before `until`, on the loop's clock.
        """
        pause = self.next()
        if asyncio.get_running_loop().time() + pause >= until:
            return False
        await anyio.sleep(pause)
        return True
