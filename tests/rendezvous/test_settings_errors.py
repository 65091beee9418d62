"""One wrong setting gives one error, at once, that names the value and what is allowed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import arendezvous as ar
from arendezvous.backends.memory import LocalBackend

GOOD: dict[str, Any] = {"endpoint": "memory://", "run_id": "job", "min_nodes": 1, "max_nodes": 2}

WRONG = [
    ({"min_nodes": 3}, "max_nodes", "max_nodes is 2, but must be from min_nodes (3) to 1000000"),
    ({"min_nodes": 0}, "min_nodes", "min_nodes is 0, but must be from 1 to 1000000"),
    ({"min_nodes": -1}, "min_nodes", "min_nodes is -1, but must be from 1 to 1000000"),
    ({"min_nodes": 1.5}, "min_nodes", "min_nodes is 1.5, but must be a whole number"),
    ({"min_nodes": "2"}, "min_nodes", "min_nodes is '2', but must be a whole number"),
    ({"max_nodes": True}, "max_nodes", "max_nodes is True, but must be a whole number"),
    ({"max_nodes": 10**7}, "max_nodes", "max_nodes is 10000000, but must be from min_nodes (1) to 1000000"),
    ({"run_id": ""}, "run_id", "run_id is '', but must be 1 to 256 printable characters"),
    ({"run_id": "a\nb"}, "run_id", "run_id is 'a\\nb', but must be 1 to 256 printable characters"),
    ({"node": "x" * 257}, "node name", "but must be 1 to 256 printable characters"),
    ({"rank": -1}, "rank", "rank is -1, but must be from 0 to 999999, or None"),
    (
        {"keep_alive_interval": 0},
        "keep_alive_interval",
        "keep_alive_interval is 0, but must be more than 0 seconds",
    ),
    ({"keep_alive_interval": -5}, "keep_alive_interval", "is -5, but must be more than 0 seconds"),
    (
        {"keep_alive_interval": "5"},
        "keep_alive_interval",
        "is '5', but must be a number of seconds or a timedelta",
    ),
    ({"keep_alive_max_attempt": 0}, "keep_alive_max_attempt", "is 0, but must be from 1 to 1000"),
    ({"disconnect_grace": timedelta(-1)}, "disconnect_grace", "but must be 0 or more seconds"),
    ({"read_timeout": -1}, "read_timeout", "read_timeout is -1, but must be more than 0 seconds"),
    (
        {"rank_policy": "best"},
        "rank_policy",
        "is 'best', but must be one of sticky, natural, given, topology",
    ),
    ({"endpoint": "tcp://:29400"}, "endpoint", "must be host[:port], with a host"),
    ({"endpoint": "tcpp://h"}, "endpoint", "did you mean tcp://?"),
    ({"endpoint": "10.0.0.1:29400"}, "endpoint", "must be a URL such as tcp://host:29400"),
]


@pytest.mark.parametrize(("wrong", "name", "message"), WRONG, ids=lambda value: str(value)[:40])
async def test_a_wrong_setting_is_refused(wrong: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(ar.RendezvousSettingsError) as caught:
        async with ar.open_rendezvous(**{**GOOD, **wrong}):
            pass
    error = caught.value
    assert message in str(error)
    assert error.name == name
    assert isinstance(error, ValueError)


async def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ar.RendezvousSettingsError) as caught:
        async with ar.open_rendezvous(**{**GOOD, "keep_alive_intervall": 5}):
            pass
    assert "keep_alive_intervall is no setting of open_rendezvous; did you mean keep_alive_interval?" in str(
        caught.value
    )
    with pytest.raises(
        ar.RendezvousSettingsError, match=r"^zzz is no setting of open_rendezvous\. Known: endpoint, "
    ):
        async with ar.open_rendezvous(**{**GOOD, "zzz": 1}):
            pass


@pytest.mark.parametrize("name", ["join", "close", "heartbeat", "last_call"])
def test_a_negative_time_out_is_refused(name: str) -> None:
    with pytest.raises(ar.RendezvousSettingsError, match=f"^{name} is -1, but must be "):
        ar.RendezvousTimeout(**{name: -1})


def test_from_backend_refuses_the_same() -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="max_nodes is 1, but must be from min_nodes"):
        ar.DynamicRendezvousHandler.from_backend("job", LocalBackend("job"), 2, 1)
    with pytest.raises(ar.RendezvousSettingsError, match="run_id is ''"):
        ar.DynamicRendezvousHandler.from_backend("", LocalBackend(""), 1, 1)
    with pytest.raises(KeyError):  # which only the node of a URL has
        ar.DynamicRendezvousHandler.from_backend("job", LocalBackend("job"), 1, 1, label="rack")  # type: ignore[call-arg]


async def test_serving_everybody_must_be_asked_for() -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="a loopback address, or come with tokens"):
        async with ar.serve("0.0.0.0:0"):
            pass
    with pytest.raises(ar.RendezvousSettingsError, match=r"address is '127\.0\.0\.1', but must be host:port"):
        async with ar.serve("127.0.0.1"):
            pass
