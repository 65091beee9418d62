"""Settings take numbers and timedeltas, and nothing that cannot be meant."""

from __future__ import annotations

from datetime import timedelta

import pytest

from arendezvous.backends.memory import LocalBackend
from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.state import RunSettings
from arendezvous.rendezvous.driver import DynamicRendezvousHandler
from arendezvous.rendezvous.option_groups import RendezvousTimeout
from arendezvous.rendezvous.options import seconds, whole
from arendezvous.rendezvous.settings import RendezvousSettings


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.25, 0.25), (timedelta(milliseconds=1500), 1.5), (timedelta(days=1), 86_400.0)],
)
def test_seconds_are_a_number_or_a_timedelta(value: float | timedelta, expected: float) -> None:
    assert seconds("x", value) == expected
    assert isinstance(seconds("x", value), float)


@pytest.mark.parametrize(
    "value", [-1, 0, float("inf"), float("nan"), timedelta(0), timedelta(-1), True, "5", None, 1j]
)
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(RendezvousSettingsError, match=r"^x is "):
        seconds("x", value)  # type: ignore[arg-type]


def test_zero_seconds_are_taken_where_they_mean_something() -> None:
    assert seconds("x", 0, zero=True) == 0.0
    with pytest.raises(RendezvousSettingsError, match="must be 0 or more seconds"):
        seconds("x", -0.001, zero=True)


@pytest.mark.parametrize("value", [1.0, "2", True, None])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(RendezvousSettingsError, match="must be a whole number"):
        whole("min_nodes", value)  # type: ignore[arg-type]


def test_time_outs_have_the_defaults_of_torch() -> None:
    timeout = RendezvousTimeout()
    assert (timeout.join, timeout.last_call, timeout.close, timeout.heartbeat) == (600.0, 30.0, 30.0, 5.0)
    assert repr(timeout) == "RendezvousTimeout(join=600, last_call=30, close=30, heartbeat=5)"


def test_a_last_call_of_zero_is_allowed_and_a_join_of_zero_is_not() -> None:
    assert RendezvousTimeout(last_call=0).last_call == 0.0
    with pytest.raises(RendezvousSettingsError, match="join is 0, but must be more than 0 seconds"):
        RendezvousTimeout(join=0)


def test_settings_show_what_the_run_agreed_on() -> None:
    run = RunSettings(2, 4, keep_alive_interval=2.5, keep_alive_max_attempt=4)
    settings = RendezvousSettings("job", RendezvousTimeout(), run)
    assert (settings.min_nodes, settings.max_nodes) == (2, 4)
    assert (settings.keep_alive_interval, settings.keep_alive_max_attempt) == (2.5, 4)


def test_run_settings_are_made_of_what_a_user_wrote() -> None:
    handler = DynamicRendezvousHandler.from_backend(
        "job",
        LocalBackend("job"),
        min_nodes=1,
        max_nodes=2,
        timeout=RendezvousTimeout(last_call=timedelta(seconds=3)),
        keep_alive_interval=timedelta(seconds=2),
        keep_alive_max_attempt=5,
        disconnect_grace=0,
        rank_policy="natural",
    )
    made = handler.settings.run
    assert made == RunSettings(1, 2, 3.0, 2.0, 5, 0.0, "natural")
    assert made.expiry == 10.0
