"""Says which keys of a store are a run's, and what the bearer of a token may do: to runs, and to keys."""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import msgspec

from arendezvous.errors import RendezvousTypeError
from arendezvous.keyspace import messages as msg

_LOOKS: Final = (
    msg.Get, msg.MultiGet, msg.Check, msg.Wait, msg.WaitQueue, msg.Watch, msg.QueueLen, msg.NumKeys,
    msg.ListKeys,
)  # fmt: skip
_HARMLESS: Final = (msg.CancelWait, msg.Ping, msg.Validate)  # they concern the asker's own connection


def run_prefix(run_id: str) -> str:
    """Returns the prefix, without the slash at its end, under which the rounds of a run keep their stores."""
    return f"arendezvous/{quote(run_id, safe='')}"


class Scope(enum.Enum):
    """Names what a token is good for."""

    SERVER = "server"  # everything
    RUN = "run"  # one run and its keys
    READ = "read"  # looking, and changing nothing


class Grant(msgspec.Struct, frozen=True):
    """Says what the bearer of a token may do.

    Attributes:
        scope: What kind of token it is.
        run_id: The one run that it is good for; None: all of them. Never None with `Scope.RUN`.
    """

    scope: Scope
    run_id: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.scope, Scope):
            raise RendezvousTypeError.of("scope", self.scope, "a Scope, such as Scope.READ")
        if not isinstance(self.run_id, str | None):
            raise RendezvousTypeError.of("run_id", self.run_id, "text or None")
        if self.scope is Scope.RUN and not self.run_id:
            raise ValueError("a grant for one run needs its run_id")

    @property
    def is_everything(self) -> bool:
        """Whether there is nothing that the bearer may not do."""
        return self.scope is Scope.SERVER and self.run_id is None

    @property
    def key_prefix(self) -> bytes:
        """Returns what all keys begin with that the bearer may see, as the server stores keys; empty: any."""
        return b"" if self.run_id is None else _key_prefix(self.run_id)

    def may_read(self, run_id: str | None) -> bool:
        """Whether the bearer may look at a run; None: at what is no run's."""
        return self.run_id is None or self.run_id == run_id

    def may_write(self, run_id: str | None) -> bool:
        """Whether the bearer may change a run; None: what is no run's."""
        return self.scope is not Scope.READ and self.may_read(run_id)

    def may_read_key(self, key: bytes) -> bool:
        """Whether the bearer may look at a key or queue, named as the server stores it: ``/`` and the key."""
        return self.run_id is None or key.startswith(self.key_prefix)

    def why_not(self, request: msg.StoreRequest) -> str:
        """Says why the bearer may not ask this of a store; empty if they may.

        `NumKeys` and `ListKeys` name no key: for a token of one run the listener asks for that run's alone.
        """
        if isinstance(request, _HARMLESS):
            return ""
        if self.scope is Scope.READ and not isinstance(request, _LOOKS):
            return f"{type(request).__name__} changes the store, and the token is only good for looking"
        if self.run_id is not None:
            prefix = self.key_prefix
            for key in keys_of(request):
                if not key.startswith(prefix):
                    return f"the key {key[:200]!r} is not of run {self.run_id!r}, the only one of the token"
        return ""

    def __str__(self) -> str:
        what = "may look at" if self.scope is Scope.READ else "is good for"
        return f"{what} " + ("everything" if self.run_id is None else f"run {self.run_id!r}")


EVERYTHING: Final = Grant(Scope.SERVER)


@lru_cache(maxsize=1024)  # it is asked for with each request of a client with a token
def _key_prefix(run_id: str) -> bytes:
    return f"/{run_prefix(run_id)}/".encode()


def keys_of(request: object) -> list[bytes]:
    """All keys and queues that a request to a store names."""
    if (key := getattr(request, "key", None)) is not None:
        return [key]
    items = getattr(request, "items", None)
    return list(getattr(request, "keys", ())) if items is None else [name for name, _ in items]
