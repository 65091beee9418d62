"""TLS between the stores in etcd and the real etcd: by files, which may be replaced while a store lives."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import arendezvous as ar
from arendezvous.etcd.http import EndpointTrouble, EtcdAnswer
from tests.kit.etcd_server import RealEtcd, serve_etcd
from tests.kit.tls_kit import Pki, make_pki
from tests.kit.waiting import until, until_said

LONG = 60.0
Kind = type[ar.EtcdStore] | type[ar.EtcdV2Store]
pytestmark = pytest.mark.parametrize("kind", [ar.EtcdStore, ar.EtcdV2Store])


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


class Files:
    """Files that one end uses, and that a test replaces while it lives."""

    def __init__(self, directory: Path, name: str) -> None:
        self.ca, self.cert, self.key = (str(directory / f"{name}.{each}") for each in ("ca", "cert", "key"))

    def replace(self, *, ca: str = "", cert: str = "", key: str = "") -> None:
        for source, target in ((ca, self.ca), (cert, self.cert), (key, self.key)):
            if source:
                shutil.copy(source, target + ".new")
                Path(target + ".new").rename(target)


@asynccontextmanager
async def etcd_with(files: Files, *, mutual: bool = False) -> AsyncIterator[RealEtcd]:
    """An etcd that shows the certificate of this moment to whoever connects, as etcd does."""
    options = ["--enable-v2", "--cert-file", files.cert, "--key-file", files.key]
    options += ["--client-cert-auth", "--trusted-ca-file", files.ca] if mutual else []
    async with serve_etcd(options=options, scheme="https", wait=False) as etcd:
        yield etcd


def store_at(kind: Kind, etcd: RealEtcd, files: ar.TlsFiles, **options: Any) -> ar.EtcdStore | ar.EtcdV2Store:
    addresses = [url.removeprefix("https://") for url in etcd.urls]
    return kind(ar.EtcdCluster.of(addresses, tls=files), **options)


async def restart(etcd: RealEtcd, store: ar.EtcdStore | ar.EtcdV2Store) -> None:
    """Ends all connections.

    Before 3.5.5 an only member answers a write before its log has it (etcd-io/etcd#14370); a further one is
    taken only after that.
    """
    await store.set("further", "v")
    etcd.members[0].kill()
    etcd.members[0].start()


async def test_tls_and_mutual_tls_by_files(kind: Kind, pki: Pki, tmp_path: Path) -> None:
    theirs = Files(tmp_path, "etcd")
    theirs.replace(ca=pki.ca, cert=pki.cert, key=pki.key)
    async with etcd_with(theirs, mutual=True) as etcd:
        ours = ar.TlsFiles(pki.ca, pki.cert, pki.key)
        async with store_at(kind, etcd, ours, timeout=LONG) as store, anyio.create_task_group() as tasks:
            tasks.start_soon(store.get, "k")
            await store.set("k", "v")
        distrustful = store_at(kind, etcd, ar.TlsFiles(pki.foreign_ca, pki.cert, pki.key))
        said = (
            f"{etcd.urls[0]} cannot be trusted: the certificate there is not trusted .*: tls_ca must be the"
            " file of the authority that signed it: this will not change by waiting"
        )
        with pytest.raises(ar.RendezvousConnectionError, match=said):
            await distrustful.__aenter__()
        await until_said(
            lambda seconds: store_at(
                kind, etcd, ar.TlsFiles(pki.ca), connect_timeout=seconds, read_timeout=seconds
            ).__aenter__(),
            "or misses one: see tls_cert and tls_key",
        )
        plain = etcd.urls[0].replace("https:", "http:")
        await until_said(
            lambda seconds: kind(plain, connect_timeout=seconds).__aenter__(),
            f"{plain} (broke off|is no etcd)",
        )


async def test_an_authority_that_is_replaced_is_trusted_by_new_connections_of_operations_and_waits(
    kind: Kind, pki: Pki, tmp_path: Path
) -> None:
    theirs, ours = Files(tmp_path, "etcd"), Files(tmp_path, "store")
    theirs.replace(cert=pki.cert, key=pki.key)
    ours.replace(ca=pki.ca)
    async with (
        etcd_with(theirs) as etcd,
        store_at(kind, etcd, ar.TlsFiles(ours.ca), timeout=LONG, read_timeout=LONG) as store,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(store.get, "late")
        await store.set("k", "v")
        theirs.replace(cert=pki.foreign_cert, key=pki.foreign_key)
        ours.replace(ca=pki.foreign_ca)
        await restart(etcd, store)
        assert await store.get("k") == b"v"
        await store.set("late", "v")
        with pytest.raises(ar.RendezvousConnectionError, match="not trusted"):
            await store_at(kind, etcd, ar.TlsFiles(pki.ca)).__aenter__()


async def test_a_certificate_that_is_replaced_is_shown_by_new_connections(
    kind: Kind, pki: Pki, tmp_path: Path
) -> None:
    theirs, ours = Files(tmp_path, "etcd"), Files(tmp_path, "store")
    theirs.replace(ca=pki.ca, cert=pki.cert, key=pki.key)
    ours.replace(cert=pki.foreign_cert, key=pki.foreign_key)
    async with etcd_with(theirs, mutual=True) as etcd:
        store = store_at(kind, etcd, ar.TlsFiles(pki.ca, ours.cert, ours.key))

        async def look(seconds: float) -> None:
            store.client.read_timeout = seconds
            await store.num_keys()

        await until_said(
            look, "the other end rejects the certificate of this one|another authority has signed it"
        )
        ours.replace(cert=pki.cert)  # and not yet its key: such a pair is of no use
        with pytest.raises(ar.RendezvousConnectionError):
            await look(0.2)
        ours.replace(key=pki.key)
        await look(LONG)
        await store.close()


async def test_a_request_during_a_rotation_is_tried_until_the_new_authority_is_there(
    kind: Kind, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = Files(tmp_path, "etcd"), Files(tmp_path, "store")
    theirs.replace(cert=pki.cert, key=pki.key)
    ours.replace(ca=pki.ca)
    async with (
        etcd_with(theirs) as etcd,
        store_at(kind, etcd, ar.TlsFiles(ours.ca), read_timeout=LONG) as store,
    ):
        await store.set("k", "v")
        fetch, distrusted = store.client.fetch, []

        async def watched(*args: Any, **options: Any) -> EtcdAnswer:
            try:
                return await fetch(*args, **options)
            except EndpointTrouble as trouble:
                distrusted.extend([trouble] if "not trusted" in str(trouble) else [])
                raise

        monkeypatch.setattr(store.client, "fetch", watched)
        theirs.replace(cert=pki.foreign_cert, key=pki.foreign_key)
        await restart(etcd, store)
        values: list[bytes] = []

        async def read() -> None:
            values.append(await store.get("k"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await until(lambda: distrusted)
            ours.replace(ca=pki.foreign_ca)
        assert values == [b"v"]
