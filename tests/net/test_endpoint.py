"""Hosts and ports are read as they are written; wrong ones are refused with what is allowed."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.endpoint import join_host_port, parse_host_port


def test_a_host_with_a_port_may_have_port_0_to_listen_on() -> None:
    assert parse_host_port("127.0.0.1:0", name="address") == ("127.0.0.1", 0)


def test_a_port_is_needed_where_there_is_no_default() -> None:
    with pytest.raises(RendezvousSettingsError, match="address is 'h', but must be host:port"):
        parse_host_port("h", name="address")


hosts = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)


@given(hosts, st.integers(1, 65535))
def test_a_host_and_a_port_that_are_joined_read_the_same(host: str, port: int) -> None:
    assert parse_host_port(join_host_port(host, port), name="x") == (host, port)


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_may_stand_alone(address: ipaddress.IPv6Address) -> None:
    assert parse_host_port(str(address), name="x", default_port=5) == (str(address), 5)
