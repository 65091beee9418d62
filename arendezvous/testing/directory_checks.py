"""The conformance suite of `Directory`: what every directory must do, checked through the port alone.

    async def test_my_directory() -> None:
        await check_directory(lambda: MyDirectory("host", 1234))

`make` returns a new directory, not entered yet; every call stands for another process, and all of them are
about the same servers. Nobody else may lead there meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import anyio

from arendezvous.directory.port import Directory, Leader, Listen, Office
from arendezvous.errors import RendezvousConnectionError
from arendezvous.net.endpoint import join_host_port
from arendezvous.testing.check_tools import LONG, checks_of, meanwhile

MakeDirectory: TypeAlias = Callable[[], Directory]
DirectoryCheck: TypeAlias = Callable[[MakeDirectory], Awaitable[None]]


@asynccontextmanager
async def candidate() -> AsyncIterator[Listen]:
    """Listens, while the block runs, as `Directory.campaign` wants it, once it is asked to."""
    servers: list[asyncio.Server] = []

    async def listen(host: str, port: int) -> Leader:
        assert not servers, "asked to listen again, though it does"
        try:
            servers.append(await asyncio.start_server(lambda *_: None, host, port))
        except OSError as error:
            raise RendezvousConnectionError(f"cannot listen: {error}") from error
        where = servers[0].sockets[0].getsockname()
        return Leader(f"tcp://{join_host_port(where[0], where[1])}")

    try:
        yield listen
    finally:
        for server in servers:
            server.close()


@asynccontextmanager
async def leading(directory: Directory) -> AsyncIterator[Office]:
    """Leads while the block runs."""
    async with candidate() as listen:
        office = await directory.campaign(listen)
        assert office is not None, "nobody leads, and yet the campaign was lost"
        try:
            yield office
        finally:
            await office.resign()


async def check_who_leads_is_known_to_all(make: MakeDirectory) -> None:
    """The leader learns that it leads, and so does everybody who looks, or waits for a change."""
    async with make() as one, make() as two, leading(one) as office:
        assert office.is_held
        for directory in (one, two):
            assert await directory.leader() == office.leader
            assert await directory.changed(Leader("tcp://nobody:1")) == office.leader


async def check_there_is_one_leader(make: MakeDirectory) -> None:
    """A candidate that campaigns while another leads learns at once that it does not."""
    async with make() as one, make() as two, leading(one) as office:
        async with candidate() as listen:
            assert await two.campaign(listen) is None
        assert await two.leader() == office.leader
        assert office.is_held


async def check_of_many_candidates_one_leads(make: MakeDirectory) -> None:
    """Of candidates that campaign at the same time exactly one becomes the leader."""
    offices: list[Office | None] = []
    all_have, over = anyio.Event(), anyio.Event()

    async def run() -> None:
        async with make() as directory, candidate() as listen:
            offices.append(await directory.campaign(listen))
            if len(offices) == 8:
                all_have.set()
            await over.wait()

    async with meanwhile(*(run() for _ in range(8))):
        with anyio.fail_after(LONG):
            await all_have.wait()
        leading_now = [office for office in offices if office]
        assert len(leading_now) == 1
        async with make() as other:
            assert await other.leader() == leading_now[0].leader
        over.set()


async def check_another_leads_once_the_leader_has_resigned(make: MakeDirectory) -> None:
    """After a leader has resigned, or has left its block, another one leads, at a later term."""
    terms: list[int] = []
    for _ in range(2):
        async with make() as one:
            for _ in range(2):
                async with leading(one) as office:
                    terms.append(office.leader.term)
            async with candidate() as listen:
                assert await one.campaign(listen) is not None  # and leaves without resigning
    assert terms == sorted(terms)
    assert len(set(terms)) == len(terms) or not any(terms), "terms rise, or are not counted"


async def check_a_campaign_that_is_cancelled_leaves_no_leader(make: MakeDirectory) -> None:
    """A campaign that is cancelled while it listens does not lead, then or later."""

    async def listen(host: str, port: int) -> Leader:
        await anyio.sleep_forever()
        raise AssertionError("not reached")

    async with make() as one, make() as two:
        with anyio.move_on_after(0.2):
            await one.campaign(listen)
        async with leading(two) as office:
            assert office.is_held


DIRECTORY_CHECKS: Final[tuple[DirectoryCheck, ...]] = checks_of(globals())


async def check_directory(make: MakeDirectory) -> None:
    """Runs every check of `DIRECTORY_CHECKS`, one after the other.

    Args:
        make: Returns a new directory, not entered yet.

    Raises:
        AssertionError: The directory breaks the contract; the check's name and docstring say which part.
    """
    for check in DIRECTORY_CHECKS:
        with anyio.fail_after(4 * LONG):
            await check(make)
