"""The settings of one node's rendezvous: what the run must agree on, and its own time-outs."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

import msgspec

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.state import RunSettings, check_seconds, check_text

Seconds: TypeAlias = float | timedelta


def seconds(name: str, value: Seconds, *, zero: bool = False) -> float:
    """Turns a number or a `timedelta` into seconds.

    Raises:
        RendezvousSettingsError: It is no number, negative, or infinite; or zero where that is not allowed.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RendezvousSettingsError.of(name, value, "a number of seconds or a timedelta")
    check_seconds(name, value, zero=zero)
    return float(value)


def whole(name: str, value: int) -> int:
    """Returns `value`, which must be a whole number.

    Raises:
        RendezvousSettingsError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise RendezvousSettingsError.of(name, value, "a whole number")
    return value


class RendezvousTimeout:
    """The time-outs of a rendezvous, in seconds or as `timedelta`.

    Args:
        join: How long `next_rendezvous` waits for a complete round; default 600.
        last_call: How long a round with enough nodes waits for more; default 30.
        close: How long leaving the rendezvous may take; default 30.
        heartbeat: How long one heartbeat may take; default 5.

    Raises:
        RendezvousSettingsError: One of them is no positive number of seconds.
    """

    def __init__(
        self,
        join: Seconds | None = None,
        last_call: Seconds | None = None,
        close: Seconds | None = None,
        heartbeat: Seconds | None = None,
    ) -> None:
        self.join = seconds("join", 600.0 if join is None else join)
        self.last_call = seconds("last_call", 30.0 if last_call is None else last_call, zero=True)
        self.close = seconds("close", 30.0 if close is None else close)
        self.heartbeat = seconds("heartbeat", 5.0 if heartbeat is None else heartbeat)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value:g}" for name, value in vars(self).items())
        return f"RendezvousTimeout({fields})"


def run_settings(
    timeout: RendezvousTimeout,
    *,
    min_nodes: int,
    max_nodes: int,
    keep_alive_interval: Seconds,
    keep_alive_max_attempt: int,
    disconnect_grace: Seconds,
    rank_policy: str,
) -> RunSettings:
    """Makes the settings that all nodes of a run agree on from what a user wrote; see `RunSettings`.

    Raises:
        RendezvousSettingsError: A value is not allowed.
    """
    return RunSettings(
        min_nodes=whole("min_nodes", min_nodes),
        max_nodes=whole("max_nodes", max_nodes),
        last_call=timeout.last_call,
        keep_alive_interval=seconds("keep_alive_interval", keep_alive_interval),
        keep_alive_max_attempt=whole("keep_alive_max_attempt", keep_alive_max_attempt),
        disconnect_grace=seconds("disconnect_grace", disconnect_grace, zero=True),
        rank_policy=rank_policy,
    )


class RendezvousSettings(msgspec.Struct, frozen=True):
    """The settings of a rendezvous handler.

    Attributes:
        run_id: The run.
        timeout: The time-outs.
        run: What all nodes of the run agree on.
    """

    run_id: str
    timeout: RendezvousTimeout
    run: RunSettings

    def __post_init__(self) -> None:
        check_text("run_id", self.run_id, empty=False)

    @property
    def min_nodes(self) -> int:
        """A round never completes with fewer."""
        return self.run.min_nodes

    @property
    def max_nodes(self) -> int:
        """A round never has more."""
        return self.run.max_nodes

    @property
    def keep_alive_interval(self) -> float:
        """Seconds between two heartbeats."""
        return self.run.keep_alive_interval

    @property
    def keep_alive_max_attempt(self) -> int:
        """A node that misses so many heartbeats is dead."""
        return self.run.keep_alive_max_attempt
