"""The parameters of a handler mean what they mean in torch, and bad ones are named."""

from __future__ import annotations

import math
from typing import Any

import pytest

from arendezvous.errors import RendezvousSettingsError
from arendezvous.rendezvous.parameters import RendezvousParameters, reject_unknown


def params(
    min_nodes: Any = 1, max_nodes: Any = 2, /, backend: str = "tcp", **config: Any
) -> RendezvousParameters:
    return RendezvousParameters(backend, "localhost:29400", "job", min_nodes, max_nodes, **config)


def test_parameters_keep_what_they_are_given() -> None:
    given = RendezvousParameters("tcp", "host:1", "job", 2, 4, "10.0.0.1", last_call_timeout="3", token=None)

    assert (given.backend, given.endpoint, given.run_id) == ("tcp", "host:1", "job")
    assert (given.min_nodes, given.max_nodes, given.local_addr) == (2, 4, "10.0.0.1")
    assert given.config == {"last_call_timeout": "3", "token": None}
    assert given.get("last_call_timeout") == "3"
    assert given.get("token", "default") is None
    assert given.get("absent") is None
    assert given.get("absent", 7) == 7


def test_the_local_address_is_unknown_unless_given() -> None:
    assert params().local_addr is None


@pytest.mark.parametrize(
    ("min_nodes", "max_nodes", "message"),
    [
        (0, 2, "min_nodes is 0, but must be a positive integer"),
        (-1, 2, "min_nodes is -1, but must be a positive integer"),
        ("2", 2, "min_nodes is '2', but must be a positive integer"),
        (3, 2, "max_nodes is 2, but must be an integer not less than min_nodes, 3"),
        (1, 1.5, "max_nodes is 1.5, but must be an integer not less than min_nodes, 1"),
    ],
)
def test_a_wrong_number_of_nodes_is_refused(min_nodes: Any, max_nodes: Any, message: str) -> None:
    with pytest.raises(RendezvousSettingsError) as caught:
        params(min_nodes, max_nodes)

    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)


def test_a_backend_without_a_name_is_refused() -> None:
    with pytest.raises(RendezvousSettingsError, match="backend is '', but must be the name"):
        params(backend="")


@pytest.mark.parametrize("value", [True, 1, "1", "true", "TRUE", "t", "Yes", "y"])
def test_a_true_value_is_true(value: Any) -> None:
    assert params(flag=value).get_as_bool("flag") is True


@pytest.mark.parametrize("value", [False, 0, "0", "false", "False", "F", "no", "N"])
def test_a_false_value_is_false(value: Any) -> None:
    assert params(flag=value).get_as_bool("flag", True) is False


@pytest.mark.parametrize("value", [2, -1, "", "on", " true", 1.0, [], b"1"])
def test_a_value_that_is_neither_true_nor_false_is_refused(value: Any) -> None:
    with pytest.raises(
        RendezvousSettingsError, match=r"flag is .*, but must be one of 1, true, t, yes, y, 0"
    ) as caught:
        params(flag=value).get_as_bool("flag")

    assert (caught.value.name, caught.value.value) == ("flag", repr(value))


@pytest.mark.parametrize(("value", "expected"), [(5, 5), ("5", 5), (" -5 ", -5), (5.9, 5), (True, 1)])
def test_an_integer_is_what_int_makes_of_it(value: Any, expected: int) -> None:
    assert params(count=value).get_as_int("count") == expected


@pytest.mark.parametrize("value", ["", "five", "5.0", [], math.nan, math.inf])
def test_a_value_that_is_no_integer_is_refused(value: Any) -> None:
    with pytest.raises(RendezvousSettingsError, match=r"count is .*, but must be an integer"):
        params(count=value).get_as_int("count")


@pytest.mark.parametrize(("value", "expected"), [(5, 5.0), ("0.25", 0.25), (1.5, 1.5), ("1e3", 1000.0)])
def test_a_number_is_what_float_makes_of_it(value: Any, expected: float) -> None:
    assert params(seconds=value).get_as_float("seconds") == expected


@pytest.mark.parametrize("value", ["", "soon", [], math.nan, "inf", -math.inf, True, 10**400])
def test_a_value_that_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(RendezvousSettingsError, match=r"seconds is .*, but must be a finite number"):
        params(seconds=value).get_as_float("seconds")


@pytest.mark.parametrize("getter", ["get_as_bool", "get_as_int", "get_as_float"])
def test_an_option_that_is_not_given_is_its_default(getter: str) -> None:
    assert getattr(params(), getter)("absent") is None
    assert getattr(params(given=None), getter)("given", 1) is None
    assert getattr(params(), getter)("absent", 1) == 1


def test_known_options_are_accepted() -> None:
    reject_unknown(params(join_timeout=1), {"join_timeout", "close_timeout"})
    reject_unknown(params(), ())


def test_unknown_options_are_refused_each_with_the_nearest_known_name() -> None:
    given = params(join_timout=1, zzz=2, close_timeout=3)

    with pytest.raises(RendezvousSettingsError) as caught:
        reject_unknown(given, ["join_timeout", "close_timeout"])

    assert str(caught.value) == (
        "the backend 'tcp' has no option 'join_timout' (did you mean 'join_timeout'?); 'zzz'. "
        "Its options: close_timeout, join_timeout"
    )
    assert caught.value.name == "join_timout"


def test_a_backend_without_options_says_so() -> None:
    with pytest.raises(RendezvousSettingsError, match=r"has no option 'x'. Its options: none"):
        reject_unknown(params(x=1), ())
