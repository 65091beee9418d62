"""Every directory keeps the contract of the port, and that of etcd does so whatever fails."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import anyio
import pytest
import pytest_asyncio

from arendezvous.directory.address import AddressDirectory
from arendezvous.directory.etcd import LEASE, EtcdDirectory
from arendezvous.directory.port import Leader
from arendezvous.errors import RendezvousStateError
from arendezvous.testing import DIRECTORY_CHECKS, check_directory
from arendezvous.testing.directory_checks import DirectoryCheck, candidate, leading
from tests.kit.etcd_server import RealEtcd, serve_etcd, text64
from tests.kit.script_kit import script
from tests.kit.waiting import until


@pytest_asyncio.fixture(params=[1, 3], ids=["one member", "three members"])
async def etcd(request: pytest.FixtureRequest) -> AsyncIterator[RealEtcd]:
    async with serve_etcd(request.param) as cluster:
        yield cluster


@pytest_asyncio.fixture
async def three() -> AsyncIterator[RealEtcd]:
    async with serve_etcd(3) as cluster:
        yield cluster


@pytest.mark.parametrize("check", DIRECTORY_CHECKS, ids=lambda check: check.__name__)
async def test_an_address_is_a_directory(check: DirectoryCheck, free_port: int) -> None:
    await check(lambda: AddressDirectory("127.0.0.1", free_port))


async def test_etcd_is_a_directory(etcd: RealEtcd) -> None:
    await check_directory(lambda: EtcdDirectory(etcd.urls))


LEADER = """
import asyncio, sys
from arendezvous.directory.etcd import EtcdDirectory
from arendezvous.directory.port import Leader

async def listen(host, port):
    return Leader("tcp://the-other:1")

async def main():
    async with EtcdDirectory(sys.argv[1]) as directory:
        office = await directory.campaign(listen)
        print("leads", flush=True)
        await office.lost()
        print("lost", office.is_held, flush=True)

asyncio.run(main())
"""


async def test_when_the_leader_is_killed_another_leads(etcd: RealEtcd) -> None:
    async with script("-c", LEADER, ",".join(etcd.urls)) as process, EtcdDirectory(etcd.urls) as directory:
        assert await process.line() == "leads"
        there = await directory.leader()
        assert there is not None
        assert there.tcp == "tcp://the-other:1"
        process.send_signal(signal.SIGKILL)
        assert await directory.changed(there) is None
        async with leading(directory) as office:
            assert office.leader.term > there.term


async def test_a_leader_that_was_stopped_knows_that_it_leads_no_more_when_it_goes_on(etcd: RealEtcd) -> None:
    async with script("-c", LEADER, ",".join(etcd.urls)) as process, EtcdDirectory(etcd.urls) as directory:
        assert await process.line() == "leads"
        there = await directory.leader()
        process.send_signal(signal.SIGSTOP)
        assert await directory.changed(there) is None
        async with leading(directory) as office:
            process.send_signal(signal.SIGCONT)
            assert await process.line_with("lost") == "lost False"
            assert office.is_held
            assert await directory.leader() == office.leader


async def test_a_leader_whose_key_somebody_removes_leads_no_more(etcd: RealEtcd) -> None:
    async with EtcdDirectory(etcd.urls) as directory, leading(directory) as office:
        assert office.fence is not None
        await etcd.post("kv/deleterange", {"key": text64(office.fence.key.decode())})
        await office.lost()
        assert not office.is_held


async def test_when_the_leader_of_etcd_is_killed_ours_goes_on(three: RealEtcd) -> None:
    async with EtcdDirectory(three.urls) as directory, leading(directory) as office:
        (await three.leader()).kill()
        renewed = office._lease.renewed  # type: ignore[attr-defined]  # nothing else tells of a keep-alive
        await until(lambda: office._lease.renewed > renewed + LEASE)  # type: ignore[attr-defined]
        assert office.is_held
        assert await directory.leader() == office.leader


async def test_without_a_quorum_nobody_leads_and_with_one_again_somebody_does(three: RealEtcd) -> None:
    async with EtcdDirectory(three.urls) as directory, EtcdDirectory(three.urls) as other:
        async with leading(directory) as office:
            for member in three.members[1:]:
                member.kill()
            await office.lost()
            assert not office.is_held
        for member in three.members[1:]:
            member.start()
        with anyio.fail_after(120):
            assert await other.changed(office.leader) is None
            async with leading(other) as next_office:
                assert next_office.leader.term > office.leader.term


async def test_what_is_no_leader_is_an_error_that_says_what_to_do(three: RealEtcd) -> None:
    await three.post("kv/put", {"key": text64("/arendezvous/leader"), "value": text64("me")})
    async with EtcdDirectory(three.urls) as directory:
        with pytest.raises(RendezvousStateError, match="remove the key, or choose another prefix"):
            await directory.leader()
        with pytest.raises(RendezvousStateError, match="names no leader"):
            async with candidate() as listen:
                await directory.campaign(listen)


async def test_what_is_no_token_is_an_error_that_does_not_show_it(three: RealEtcd) -> None:
    for value in ("/////w==", text64("short"), text64("two words of some length"), text64("é" * 20)):
        await three.post("kv/put", {"key": text64("/arendezvous/token"), "value": value})
        async with EtcdDirectory(three.urls) as directory:
            with pytest.raises(RendezvousStateError, match=r"holds no token .* remove the key") as caught:
                await directory.secret()
        assert not {"short", "words"} & set(str(caught.value).split())


async def test_prefixes_have_leaders_of_their_own(etcd: RealEtcd) -> None:
    async with EtcdDirectory(etcd.urls, prefix="/a/") as a, EtcdDirectory(etcd.urls, prefix="/b") as b:
        async with leading(a) as one, leading(b) as other:
            assert (await a.leader(), await b.leader()) == (one.leader, other.leader)
            assert one.leader != other.leader
        assert await a.leader() is None


async def test_an_address_of_another_machine_is_not_campaigned_for() -> None:
    async with AddressDirectory("192.0.2.1", 1) as directory, candidate() as listen:
        assert await directory.campaign(listen) is None
        assert await directory.leader() == Leader("tcp://192.0.2.1:1")
