"""What a server keeps for its connections, and who goes when it is too much."""

from __future__ import annotations

import asyncio

import pytest

from arendezvous.server.tcp.sharing import Account, FairSemaphore, Quota

pytestmark = pytest.mark.virtual


class Connection:
    """Notes what becomes of it."""

    def __init__(self) -> None:
        self.why = ""
        self.is_in = False

    def drop(self, why: str) -> None:
        self.why = why

    def on_acquired(self) -> None:
        self.is_in = True


async def test_the_one_for_whom_something_was_kept_the_longest_goes_first() -> None:
    account = Account(100, 60.0, "answers unread")
    first, second, third = Connection(), Connection(), Connection()
    account.keep(first, 10)
    account.keep(second, 40)
    account.keep(first, 30)
    assert (account.total, first.why) == (70, "")
    account.keep(third, 50)
    assert first.why == "it has left 30 bytes of answers unread; all connections together may leave 100"
    assert (second.why, third.why, account.total) == ("", "", 90)
    account.close()


async def test_who_is_over_the_limit_alone_goes_too() -> None:
    account = Account(100, 60.0, "answers unread")
    alone = Connection()
    account.keep(alone, 101)
    assert alone.why
    assert account.total == 0
    account.close()


async def test_who_does_what_is_waited_for_is_left_alone_and_has_its_time_again() -> None:
    account = Account(100, 60.0, "answers unread")
    good, bad = Connection(), Connection()
    account.keep(bad, 10)
    for _ in range(10):
        account.keep(good, 20)
        await asyncio.sleep(30)
        account.free(good)
        account.free(good)
    assert bad.why == "it has left 10 bytes of answers unread for 60 s"
    assert (good.why, account.total) == ("", 0)


async def test_the_time_of_each_counts_from_when_it_began() -> None:
    account = Account(100, 60.0, "answers unread")
    first, second = Connection(), Connection()
    account.keep(first, 1)
    await asyncio.sleep(40)
    account.keep(first, 2)
    account.keep(second, 1)
    await asyncio.sleep(21)
    assert (bool(first.why), bool(second.why)) == (True, False)
    await asyncio.sleep(38)
    assert not second.why
    await asyncio.sleep(2)
    assert second.why


async def test_a_fair_semaphore_lets_in_a_few_and_then_the_others_in_order() -> None:
    semaphore = FairSemaphore(2)
    waiters = [Connection() for _ in range(5)]
    assert [semaphore.acquire(waiter) for waiter in waiters] == [True, True, False, False, False]
    semaphore.release(waiters[3])
    semaphore.release(waiters[0])
    assert [waiter.is_in for waiter in waiters] == [False, False, True, False, False]
    semaphore.release(waiters[0])
    semaphore.release(waiters[1])
    assert [waiter.is_in for waiter in waiters] == [False, False, True, False, True]
    semaphore.release(waiters[2])
    semaphore.release(waiters[4])
    assert semaphore.acquire(waiters[3])


def test_a_quota_is_of_each_address_and_a_network_of_ipv6_is_one() -> None:
    quota = Quota(100)
    assert quota.add("10.0.0.1:1", 60)
    assert not quota.add("10.0.0.1:2", 60)
    assert quota.add("10.0.0.2:1", 60)
    assert quota.add("[2001:db8::1]:1", 60)
    assert not quota.add("[2001:db8::2]:1", 60)
    assert quota.add("10.0.0.1:1", -60)
    assert quota.add("10.0.0.1:2", 100)
