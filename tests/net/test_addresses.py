"""Addresses: what nodes may be sent to, and under which they are known, is the same wherever it is told."""

from __future__ import annotations

import pytest

import arendezvous as ar
from arendezvous.doctor.checks import check_own_address
from arendezvous.net import addresses
from arendezvous.net.addresses import shown_address
from tests.kit.etcd_server import serve_etcd


@pytest.mark.parametrize("scheme", ["tcp", "http", "https", "c10d", "etcd", "etcd-v2", "static"])
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_an_endpoint_that_is_no_place_to_go_to_is_refused(scheme: str, host: str) -> None:
    with pytest.raises(ar.RendezvousSettingsError, match="a host that nodes can go to, such as its name"):
        ar.open_rendezvous(f"{scheme}://{host}:29400", run_id="job")


async def test_a_server_at_all_addresses_names_one_that_others_can_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(addresses, "address_towards", lambda address, port: "10.1.2.3")
    async with ar.serve("0.0.0.0:0", http="0.0.0.0:0", insecure=True) as server:
        assert server.host == "0.0.0.0"
        assert server.tcp_url == f"tcp://10.1.2.3:{server.port}"
        assert (server.http_url or "").startswith("http://10.1.2.3:")


def test_without_a_way_out_the_address_is_that_of_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str, port: int) -> str:
        raise OSError("no way")

    monkeypatch.setattr(addresses, "address_towards", refuse)
    assert [shown_address(host) for host in ("0.0.0.0", "::", "10.0.0.1")] == ["127.0.0.1"] * 2 + ["10.0.0.1"]


@pytest.mark.parametrize("way", ["tcp", "http", "etcd", "etcd-v2", "c10d"])
async def test_a_node_is_known_by_the_address_that_doctor_shows(way: str) -> None:
    shown = check_own_address("127.0.0.1", 2379).found
    async with (
        serve_etcd(options=["--enable-v2"]) as etcd,
        ar.serve("127.0.0.1:0", http="127.0.0.1:0") as server,
    ):
        urls = {
            "tcp": server.tcp_url,
            "http": server.http_url or "",
            "c10d": f"c10d://127.0.0.1:{server.port}",
            "etcd": f"etcd://{etcd.urls[0].removeprefix('http://')}",
            "etcd-v2": f"etcd-v2://{etcd.urls[0].removeprefix('http://')}",
        }
        async with ar.open_rendezvous(urls[way], run_id="job", nnodes="1") as node:
            info = await node.next_rendezvous()
            assert f"this node is reached by {info.local_address}, " in shown
