"""What the stores of both of etcd's APIs have in common."""

from __future__ import annotations

import pytest

from arendezvous.errors import RendezvousConnectionError
from arendezvous.stores.etcd.v2 import EtcdV2Store
from arendezvous.stores.etcd.v3 import EtcdStore
from tests.kit.ports import held_ports
from tests.kit.waiting import until_said


@pytest.mark.parametrize("kind", [EtcdStore, EtcdV2Store])
async def test_nobody_listening_raises_with_what_each_endpoint_said(
    kind: type[EtcdStore] | type[EtcdV2Store],
) -> None:
    with held_ports(2) as ports:
        urls, endpoints = [f"http://127.0.0.1:{port}" for port in ports], set()

        async def get(seconds: float) -> None:
            store = kind(urls, read_timeout=seconds)
            try:
                await store.get("k")
            except RendezvousConnectionError as error:
                endpoints.add(error.endpoint)
                raise
            finally:
                await store.close()

        said = await until_said(get, "cannot be connected to .*cannot be connected to")  # in any order
        assert endpoints == {",".join(urls)}
        for url in urls:
            assert f"{url} cannot be connected to (Connect call failed" in said
        assert "is etcd running, and are these the addresses for its clients?" in said
        with pytest.raises(RendezvousConnectionError, match=r"connect failed after 0\.1 s"):
            await kind(urls, connect_timeout=0.1).__aenter__()
