"""Every scheme is one entry: how its URLs are read, what it takes, and that another package may add one."""

from __future__ import annotations

import asyncio
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import arendezvous as ar
from arendezvous import schemes
from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.addresses import is_unspecified
from arendezvous.net.endpoint import Endpoint
from arendezvous.registry import RendezvousHandlerRegistry
from arendezvous.schemes import GROUP, parse_endpoint, scheme_names
from tests.kit import ROOT, cli_kit
from tests.kit.cli_kit import run_apart
from tests.kit.distributions import write_distribution
from tests.kit.script_kit import script

Install = Callable[[str, str, str], None]

PAGE = (ROOT / "docs" / "guides" / "schemes.md").read_text()
NODES = """
import asyncio, sys
import arendezvous as ar

async def meet(rdzv):
    async with rdzv:
        info = await rdzv.next_rendezvous()
        return rdzv.get_backend(), info.world_size

async def main(directory):
    sys.stdin.readline()
    a = ar.open_rendezvous("lookup://training", run_id="job", min_nodes=2, **{"directory": directory})
    b = ar.get_rendezvous_handler(
        ar.RendezvousParameters("lookup", "training", "job", 2, 2, directory=directory, read_timeout="60")
    )
    print(await asyncio.gather(meet(a), meet(b)))

asyncio.run(main(sys.argv[1]))
"""
AGENT = """
import sys
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

params = RendezvousParameters("arendezvous", "lookup://training", "agents", 1, 1, directory=sys.argv[1])
handler = get_rendezvous_handler(params)
print(handler.next_rendezvous().world_size, handler.shutdown())
"""


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
).filter(lambda host: not is_unspecified(host))


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


# Schemes of other packages


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs distributions that add schemes, in a folder of its own each, for the time of the test."""

    def forget() -> None:
        for cached in (schemes._plugins, schemes._load, parse_endpoint):
            cached.cache_clear()

    def _install(name: str, entry_points: str, module: str) -> None:
        site = tmp_path / name
        write_distribution(site, name, GROUP, entry_points, module)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, name, raising=False)
        forget()

    yield _install
    monkeypatch.undo()
    forget()


def plugin(name: str) -> str:
    """A module that adds a scheme whose runs are in memory, and that has an option of its own."""
    return f"""
        from typing import Annotated, TypedDict
        from arendezvous.backends.memory import LocalBackend
        from arendezvous.rendezvous.options import Option
        from arendezvous.schemes import DYNAMIC, Scheme, hosts

        class Options(TypedDict, total=False):
            {name}_power: Annotated[int | None, Option("How loud.", default=11, also=("loudness",))]

        class Backend(LocalBackend):
            name = "{name}"
            endpoint = property(lambda self: "{name}://power=%s" % self.power)

        def make(where):
            made = Backend(where.run_id, where.endpoint.host)
            made.power = where.options["{name}_power"]
            return made

        SCHEME = Scheme(name="{name}", parse=hosts(7), options=(*DYNAMIC, Options), backend=make)
    """


@pytest.fixture
def lookup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Installs, for processes, the package that the documents make; returns the directory with its files."""
    module, toml = re.findall(r"^```(?:python|toml)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[:2]
    added = tomllib.loads(toml)["project"]["entry-points"][GROUP]
    points = "\n".join(f"{name} = {value}" for name, value in added.items())
    write_distribution(tmp_path / "site", "rendezvous_lookup", GROUP, points, module)
    monkeypatch.setitem(cli_kit.ENV, "PYTHONPATH", f"{ROOT}:{tmp_path / 'site'}")
    monkeypatch.setitem(cli_kit.ENV, "LOOKUP_DIRECTORY", str(tmp_path))
    return str(tmp_path)


async def test_the_scheme_of_the_documents_works_wherever_ours_do(lookup: str) -> None:
    environ = {"PYTHONPATH": cli_kit.ENV["PYTHONPATH"]}
    async with ar.serve("127.0.0.1:0") as server, script("-c", NODES, lookup, **environ) as nodes:
        (Path(lookup) / "training").write_text(server.tcp_url.removeprefix("tcp://"))
        nodes.go_on()
        assert await nodes.end() == 0, nodes.output
        assert nodes.output == "[('lookup', 2), ('lookup', 2)]\n"
        every, one, why, health = await asyncio.gather(
            run_apart("status", "lookup://training"),
            run_apart("status", "lookup://training", "job"),
            run_apart("explain", "lookup://training", "other"),
            run_apart("doctor", "lookup://training", "job"),
        )
    assert every.out.splitlines()[0] == f"{server.tcp_url} keeps 1 run"
    assert one.out.startswith("run 'job': ")
    assert (why.code, "there is no run 'other'" in why.err) == (4, True)
    assert (health.code, health.out.splitlines()[-1]) == (0, "a node here could join"), health.out
    assert health.out.startswith("ok       file       the server is said to be at 127.0.0.1, port ")
    assert "ok       run        run 'job': " in health.out


async def test_the_doctor_of_the_scheme_of_the_documents_says_what_is_missing(lookup: str) -> None:
    health, watch = await asyncio.gather(
        run_apart("doctor", "lookup://training"), run_apart("watch", "lookup://training", "job")
    )
    assert (health.code, health.out.splitlines()[-1]) == (1, "a node here could not join: file")
    assert "(No such file or directory); start a server, and write HOST:PORT into that file" in health.out
    assert (watch.code, "a URL that begins with tcp://, http://, https:// or etcd://" in watch.err) == (
        2,
        True,
    )


async def test_torchrun_reaches_the_scheme_of_the_documents_by_its_url_and_its_options(lookup: str) -> None:
    pytest.importorskip("torch")
    environ = {"PYTHONPATH": cli_kit.ENV["PYTHONPATH"]}
    async with ar.serve("127.0.0.1:0") as server:
        (Path(lookup) / "training").write_text(server.tcp_url.removeprefix("tcp://"))
        async with script("-W", "ignore", "-c", AGENT, lookup, **environ) as agent:
            assert await agent.end() == 0, agent.output
    assert agent.output == "1 True\n"


@pytest.mark.virtual
async def test_a_scheme_s_own_option_is_checked_filled_in_and_read_from_text(install: Install) -> None:
    install("plug_loud", "loud = plug_loud:SCHEME", plugin("loud"))
    given: dict[str, Any] = {"loud_power": 3}
    opened = ar.open_rendezvous("loud://h", run_id="job", min_nodes=1, **given)
    quiet = ar.open_rendezvous("loud://h", run_id="job", min_nodes=1)
    params = ar.RendezvousParameters("loud", "h", "job", 1, 1, loud_power="4")
    read = RendezvousHandlerRegistry[Any](schemes="arendezvous.opening:create_handler").create_handler(params)
    powers = [one.endpoint for one in (opened, quiet, read)]
    assert powers == ["loud://power=3", "loud://power=11", "loud://power=4"]
    async with opened:
        assert (await opened.next_rendezvous()).world_size == 1
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"loud_power": "3"}, "loud_power is '3', but must be a whole number"),
        ({"loudness": 3}, "loudness is no setting of open_rendezvous; did you mean loud_power?"),
        ({"token": "0123456789abcdef"}, "token must be left out for loud://: it is an option of tcp://"),
    ]
    for misused, said in wrong:
        with pytest.raises(RendezvousSettingsError) as caught:
            ar.open_rendezvous("loud://h", run_id="job", min_nodes=1, **misused)
        assert said in str(caught.value)


def test_an_option_of_another_package_s_scheme_is_refused_elsewhere_with_its_scheme(install: Install) -> None:
    install("plug_loud", "loud = plug_loud:SCHEME", plugin("loud"))
    misplaced: dict[str, Any] = {"loud_power": 3}
    said = r"^loud_power must be left out for memory://: it is an option of loud://$"
    with pytest.raises(RendezvousSettingsError, match=said):
        ar.open_rendezvous("memory://", run_id="job", min_nodes=1, **misplaced)
    params = ar.RendezvousParameters("memory", "", "job", 1, 1, loud_power="3")
    with pytest.raises(RendezvousSettingsError, match=said):
        ar.get_rendezvous_handler(params)


def test_a_broken_plug_in_is_named_when_its_scheme_is_asked_for_and_disturbs_nobody_else(
    install: Install,
) -> None:
    install("plug_bad", "bad = plug_bad:SCHEME", "raise RuntimeError('needs a newer driver')")
    install("plug_good", "good = plug_good:SCHEME", plugin("good"))
    assert scheme_names()[-2:] == ("bad", "good")
    assert ar.open_rendezvous("good://h", run_id="job", min_nodes=1).get_backend() == "good"
    assert ar.open_rendezvous("memory://", run_id="job", min_nodes=1).get_backend() == "memory"
    with pytest.raises(
        RendezvousSettingsError, match=r"a URL with one of tcp://.*, bad:// or good://;.*mean bad"
    ):
        ar.open_rendezvous("bat://h", run_id="job", min_nodes=1)
    with pytest.raises(RendezvousSettingsError, match="is_host must be left out for good://"):
        ar.open_rendezvous("good://h", run_id="job", min_nodes=1, is_host=True)
    with pytest.raises(RendezvousSettingsError) as caught:
        ar.open_rendezvous("bad://h", run_id="job", min_nodes=1)
    assert str(caught.value) == (
        "the plug-in 'plug_bad:SCHEME' of plug_bad for scheme 'bad' cannot be loaded: "
        "RuntimeError: needs a newer driver"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("entry_points", "module", "said"),
    [
        ("odd = plug_odd:SCHEME", "SCHEME = 'odd'",
         "what the plug-in 'plug_odd:SCHEME' of plug_odd for scheme 'odd' gives is 'odd', but must be an"),
        ("odd = plug_odd:SCHEME", plugin("even"), "gives is 'even', but must be the scheme 'odd'"),
        ("odd = plug_odd:SCHEM", plugin("odd"), "cannot be loaded: AttributeError"),
        ("odd = plug_odd:SCHEME",
         "from arendezvous.schemes import Scheme; SCHEME = Scheme(name='odd', parse=str, options=())",
         "the scheme 'odd' needs a backend or a handler, and not both"),
    ],
)  # fmt: skip
def test_a_plug_in_that_is_not_what_it_has_to_be_is_refused(
    install: Install, entry_points: str, module: str, said: str
) -> None:
    install("plug_odd", entry_points, module)
    with pytest.raises(RendezvousSettingsError) as caught:
        ar.open_rendezvous("odd://h", run_id="job", min_nodes=1)
    assert said in str(caught.value)


def test_two_packages_that_add_one_scheme_are_both_named_and_ours_cannot_be_replaced(
    install: Install,
) -> None:
    install("plug_a", "same = plug_a:SCHEME", plugin("same"))
    install("plug_b", "same = plug_b:SCHEME\nmemory = plug_b:SCHEME", plugin("same"))
    with pytest.raises(RendezvousSettingsError, match="claimed by one plug-in, not by 'plug_") as caught:
        ar.open_rendezvous("same://h", run_id="job", min_nodes=1)
    assert ("of plug_a" in str(caught.value), "of plug_b" in str(caught.value)) == (True, True)
    assert type(ar.open_rendezvous("memory://", run_id="job", min_nodes=1)) is ar.DynamicRendezvousHandler
    assert scheme_names().count("memory") == 1
