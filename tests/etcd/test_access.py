"""Who gets into a rendezvous in etcd, and what those who do not are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

import arendezvous as ar
from arendezvous.backends.tcp.elected import ElectedBackend
from arendezvous.errors import RendezvousConnectionError, RendezvousError
from arendezvous.rendezvous.handler import AsyncRendezvousHandler
from tests.kit.etcd_server import add_users, serve_etcd, serve_http


def node(url: str, **options: Any) -> AsyncRendezvousHandler:
    where = url.replace("https://", "etcd://").replace("http://", "etcd://")
    return ar.open_rendezvous(where, run_id="job", min_nodes=1, read_timeout=60.0, **options)


async def test_a_user_with_the_prefix_takes_part_and_a_login_that_etcd_forgot_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ARENDEZVOUS_ETCD_USER", "ann")
    monkeypatch.setenv("ARENDEZVOUS_ETCD_PASSWORD", "ann's")
    async with serve_etcd() as etcd:
        await add_users(etcd, "/arendezvous/")
        async with node(etcd.urls[0]) as handler:
            info = await handler.next_rendezvous()
            await info.store.set("k", "v")
            assert isinstance(handler, ar.DynamicRendezvousHandler)
            backend = handler._backend
            assert isinstance(backend, ElectedBackend)
            directory = backend._elected._directory
            directory.client._login = "forgotten.1"
            assert await directory.leader() is not None
            await handler.set_closed("done")
            assert await handler.is_closed()
            assert await info.store.get("k") == b"v"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"user": "ann", "password": "bad"}, "does not let user 'ann' in: the name or the password is wrong"),
        ({}, "it wants a user: give user and password"),
        (
            {"user": "ann", "password": "ann's", "etcd_prefix": "/elsewhere"},
            "etcdserver: permission denied': user 'ann' may not; grant a role that may read and write",
        ),
    ],
)
async def test_who_may_not_take_part_is_told_why_at_once(options: dict[str, Any], said: str) -> None:
    async with serve_etcd() as etcd:
        await add_users(etcd, "/arendezvous/")
        with pytest.raises(RendezvousError, match=said) as caught:
            await node(etcd.urls[0], **options).__aenter__()
        assert "ann's" not in str(caught.value)


async def test_tls_is_spoken_by_the_files_and_a_wrong_authority_is_told(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    files = {name: str(tmp_path / name) for name in ("ca", "other", "both")}
    authority.cert_pem.write_to_path(files["ca"])
    stranger.cert_pem.write_to_path(files["other"])
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(files["both"])
    options = ["--cert-file", files["both"], "--key-file", files["both"], "--client-cert-auth",
               "--trusted-ca-file", files["ca"]]  # fmt: skip
    async with serve_etcd(options=options, scheme="https", wait=False) as etcd:
        async with node(etcd.urls[0], cacert=files["ca"], cert=files["both"]) as handler:
            info = await handler.next_rendezvous()
            await info.store.set("k", "v")
        with pytest.raises(RendezvousConnectionError, match=r"is not trusted .*: cacert must .*by waiting"):
            await node(etcd.urls[0], cacert=files["other"], cert=files["both"]).__aenter__()


async def test_a_server_that_speaks_only_v2_is_told_at_once() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/version":
            return web.Response(body=b'{"etcdserver":"2.3.8"}')
        return web.Response(status=404, text="404 page not found")

    async with serve_http(answer) as url:
        with pytest.raises(RendezvousConnectionError, match="speaks only the v2 API: use etcd-v2://"):
            await node(url).__aenter__()
