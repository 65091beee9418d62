"""Every scheme is one entry: how its URLs are read, what it takes, and that another package may add one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.endpoint import Endpoint
from arendezvous.schemes import parse_endpoint, scheme_names


@pytest.mark.parametrize(
    ("text", "backend", "expected"),
    [
        ("tcp://h", None, Endpoint("tcp", (("h", 29400),))),
        ("tcp://h:1", None, Endpoint("tcp", (("h", 1),))),
        ("tcp://h:1/", None, Endpoint("tcp", (("h", 1),))),
        ("TCP://h:1".lower(), "tcp", Endpoint("tcp", (("h", 1),))),
        ("h:1", "tcp", Endpoint("tcp", (("h", 1),))),
        ("h", "c10d", Endpoint("c10d", (("h", 29400),))),
        ("https://h", "http", Endpoint("https", (("h", 29401),))),
        ("tcp://10.0.0.1:65535", None, Endpoint("tcp", (("10.0.0.1", 65535),))),
        ("tcp://[::1]:7", None, Endpoint("tcp", (("::1", 7),))),
        ("tcp://[::1]", None, Endpoint("tcp", (("::1", 29400),))),
        ("fe80::1", "tcp", Endpoint("tcp", (("fe80::1", 29400),))),
        ("etcd://a:1,b,[::1]:3", None, Endpoint("etcd", (("a", 1), ("b", 2379), ("::1", 3)))),
        ("memory://", None, Endpoint("memory", (("", 0),))),
        ("memory://space", None, Endpoint("memory", (("space", 0),))),
    ],
)
def test_an_endpoint_is_read(text: str, backend: str | None, expected: Endpoint) -> None:
    endpoint = parse_endpoint(text, backend)
    assert endpoint == expected
    assert (endpoint.host, endpoint.port) == expected.hosts[0]


@pytest.mark.parametrize(
    ("text", "backend", "expected"),
    [
        ("h:1", None, "a URL such as tcp://host:29400"),
        ("", None, "a URL such as tcp://host:29400"),
        ("tpc://h", None, "did you mean tcp://?"),
        ("ftp://h", None, "a URL with one of tcp://, http://, https://, c10d://, etcd://"),
        ("tcp://h", "etcd", "a URL that begins with etcd://"),
        ("tcp://", None, "host[:port], with a host"),
        ("tcp://:1", None, "host[:port], with a host"),
        ("", "tcp", "host[:port], with a host"),
        ("tcp://h:x", None, "with a port from 0 to 65535"),
        ("tcp://h:65536", None, "with a port from 0 to 65535"),
        ("tcp://h:-1", None, "with a port from 0 to 65535"),
        ("tcp://a:1:2", None, "host[:port]"),
        ("tcp://h h:1", None, "with a host"),
        ("tcp://h:1/path", None, "without path, query or user name"),
        ("tcp://h?x=1", None, "without path, query or user name"),
        ("tcp://user@h:1", None, "without path, query or user name"),
        ("tcp://h#part", None, "without path, query or user name"),
        ("tcp://[::1", None, "host[:port]"),
        ("etcd://a,,b", None, "host[:port], with a host"),
        (f"tcp://{'x' * 70}:1", None, "with a host name"),
        ("tcp://a..b:1", None, "with a host name"),
        ("tcp://ho\nst:1", None, "with a host"),
    ],
)
def test_a_wrong_endpoint_is_refused_with_its_value_and_what_is_allowed(
    text: str, backend: str | None, expected: str
) -> None:
    with pytest.raises(RendezvousSettingsError) as caught:
        parse_endpoint(text, backend)
    error = caught.value
    assert error.name == "endpoint"
    assert expected in error.expected
    part = error.value.strip("'\"").removesuffix("...")
    assert part in repr(text)


hosts = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)


@given(st.sampled_from(sorted(set(scheme_names()) - {"memory"})), hosts, st.integers(1, 65535))
def test_an_endpoint_that_is_printed_reads_the_same(scheme: str, host: str, port: int) -> None:
    endpoint = Endpoint(scheme, ((host, port),))
    assert parse_endpoint(str(endpoint)) == endpoint


@given(st.text(max_size=40))
def test_any_text_is_an_endpoint_or_one_clear_error(text: str) -> None:
    for candidate in (text, f"tcp://{text}", f"etcd://{text}"):
        try:
            endpoint = parse_endpoint(candidate)
        except RendezvousSettingsError:
            pass  # one of ours, and nothing else
        else:
            assert all(host for host, _ in endpoint.hosts) or endpoint.scheme == "memory"
