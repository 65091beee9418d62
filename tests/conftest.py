"""What all tests share: the choice of the event loop's clock, a free port, and patience with examples."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import HealthCheck, settings

from arendezvous.testing.virtual_time import VirtualTimeLoop
from tests.kit.ports import held_ports


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual: runs in virtual time, see benchmarks.simulated")
    patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the rest as it was
    settings.register_profile("patient", patient)
    settings.load_profile("patient")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual"):
        return {"virtual": VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port of 127.0.0.1 and ::1 that nobody listens on, and that nobody else gets while the test runs."""
    with held_ports(1) as (port,):
        yield port
