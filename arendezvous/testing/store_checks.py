"""The contract of every `Store`, as checks that anybody can run on theirs.

All of them::

    async def test_my_store():
        await check_store(open_my_store)

or one by one, with the name of each in the report::

    @pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
    async def test_my_store(check):
        async with open_my_store() as store:
            await check(store)

A check uses keys of its own, so the store may hold others, and other clients may use it meanwhile; only the
number of keys has to be left alone. A check that fails raises `AssertionError`.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

import anyio
import anyio.lowlevel

from arendezvous.errors import RendezvousSettingsError, StoreError, StoreQueueEmptyError, StoreTimeoutError
from arendezvous.stores.port import PrefixStore, Store
from arendezvous.testing.check_tools import LONG, SOON, checks_of, meanwhile, named, refused, together

StoreCheck = Callable[[Store], Awaitable[None]]


def fresh() -> str:
    """Makes up a key that nobody has used."""
    return f"check-{secrets.token_hex(6)}"


async def check_set_and_get(store: Store) -> None:
    """A value is read back as it was set, whatever its bytes, and the last one stays."""
    key = fresh()
    for value in (b"one", b"\x00\xff\n", b"", bytes(range(256)) * 1024):
        await store.set(key, value)
        actual = await store.get(key)
        assert actual == value, f"set {value[:20]!r}, got {actual[:20]!r}"
    await store.set(key, "tëxt")
    assert await store.get(key) == "tëxt".encode(), "text is stored as UTF-8"


async def check_odd_keys(store: Store) -> None:
    """Keys may be empty, long, and of any characters; one is not taken for another."""
    start = fresh()
    keys = [start, f"{start}/", f"{start}/a/../b", f"{start} ä\n%2F?#&", f"{start}.", start + "x" * 2000]
    await store.multi_set(keys, [str(number) for number in range(len(keys))])
    values = await store.multi_get(keys)
    assert values == [b"%d" % number for number in range(len(keys))], f"got {values}"
    listed = {key for key in await store.list_keys() if key.startswith(start)}
    assert listed == set(keys), f"listed {listed}"


async def check_compare_set(store: Store) -> None:
    """A compare_set stores on a match only, and tells what is there; an absent key matches an empty value."""
    key = fresh()
    steps = [
        ("old", "new", b"old", None),
        ("", "1", b"1", b"1"),
        ("", "2", b"1", b"1"),
        ("x", "2", b"1", b"1"),
        ("1", "2", b"2", b"2"),
    ]
    for expected, desired, told, held in steps:
        actual = await store.compare_set(key, expected, desired)
        assert actual == told, f"compare_set({expected!r}, {desired!r}) gave {actual!r}, not {told!r}"
        present = await store.check([key])
        assert present == (held is not None), f"after compare_set({expected!r}, {desired!r})"
        if held is not None:
            assert await store.get(key) == held


async def check_compare_set_race(store: Store) -> None:
    """Of those who compare and set at the same time one wins each step, and nobody's step is lost."""
    key = fresh()

    async def count(who: int) -> None:
        current = b""
        for _ in range(5):
            told = desired = b""
            while not told or told != desired:
                current = told or current
                desired = b"%d.%d" % (int(current.partition(b".")[0] or 0) + 1, who)
                told = await store.compare_set(key, current, desired)
            current = desired

    await together(*map(count, range(4)))
    counted = (await store.get(key)).partition(b".")[0]
    assert counted == b"20", f"20 steps were made, but {counted!r} counted"


async def check_add(store: Store) -> None:
    """An add counts from 0, up and down, each once, and keeps decimal text."""
    key = fresh()
    sums = sorted(await together(*(store.add(key, 1) for _ in range(20))))
    assert sums == list(range(1, 21)), f"got {sums}"
    assert await store.add(key, -25) == -5
    assert await store.get(key) == b"-5"


async def check_add_to_text(store: Store) -> None:
    """An add to a value that is no number raises StoreError and leaves it; the store stays usable."""
    key = fresh()
    await store.set(key, "text")
    error = await refused(StoreError, store.add(key, 1))
    assert "text" in str(error), f"the error does not show the value: {error}"
    assert await store.get(key) == b"text"


async def check_check_and_wait(store: Store) -> None:
    """The operations check and wait are about all keys given, and count a queue with a value as there."""
    key, queue, absent = fresh(), fresh(), fresh()
    await store.set(key, b"")
    await store.queue_push(queue, b"")
    assert await store.check([]), "no key is missing in an empty list"
    assert await store.check([key, queue])
    assert not await store.check([key, absent])
    await store.wait([], 0)
    await store.wait([key, queue], 0)
    await refused(TypeError, store.check("text"))


async def check_delete_key(store: Store) -> None:
    """A delete_key removes a key once, and says whether it was there."""
    key = fresh()
    await store.set(key, b"v")
    assert await store.delete_key(key) is True
    assert await store.delete_key(key) is False
    assert not await store.check([key])


async def check_append(store: Store) -> None:
    """An append makes a key, then lengthens it."""
    key = fresh()
    for part in (b"a", "b", b""):
        await store.append(key, part)
    assert await store.get(key) == b"ab"


async def check_multi(store: Store) -> None:
    """A multi_set and a multi_get keep the order of keys, take none, and refuse lists of unequal length."""
    first, second = fresh(), fresh()
    await store.multi_set([], [])
    assert await store.multi_get([]) == []
    await store.multi_set([first, second], [b"1", "2"])
    assert await store.multi_get([second, first, second]) == [b"2", b"1", b"2"]
    third = fresh()
    await refused(StoreError, store.multi_set([third, first], [b"x"]))
    assert not await store.check([third]), "a refused multi_set stored something"


async def check_num_keys(store: Store) -> None:
    """Both num_keys and list_keys show keys, not queues."""
    key, queue = fresh(), fresh()
    before = await store.num_keys()
    await store.set(key, b"")
    await store.queue_push(queue, b"")
    assert await store.num_keys() == before + 1
    listed = await store.list_keys()
    assert key in listed
    assert queue not in listed
    await store.delete_key(key)
    assert await store.num_keys() == before


async def check_queue(store: Store) -> None:
    """A queue gives each value once, in the order of pushing, and stands beside a key of its name."""
    key = fresh()
    await store.set(key, b"value")
    for value in (b"1", "", b"3"):
        await store.queue_push(key, value)
    assert await store.queue_len(key) == 3
    for value, block in ((b"1", True), (b"", True), (b"3", False)):
        assert await store.queue_pop(key, block=block) == value
    assert await store.queue_len(key) == 0
    assert await store.get(key) == b"value"
    error = await refused(StoreQueueEmptyError, store.queue_pop(key, block=False))
    assert error.key.endswith(key), f"the error is about {error.key!r}"


async def check_prefix(store: Store) -> None:
    """A PrefixStore over this store sees its own keys, and the store sees them with the prefix."""
    prefix = fresh()
    inner = PrefixStore("in", PrefixStore(prefix, store))
    await inner.multi_set(["a", "b"], ["1", "2"])
    assert sorted(await inner.list_keys()) == ["a", "b"]
    assert await store.get(f"{prefix}/in/a") == b"1"
    assert await inner.add("n", 2) == 2
    assert await inner.compare_set("a", "1", "3") == b"3"
    await inner.append("a", "4")
    assert await inner.multi_get(["a", "b"]) == [b"34", b"2"]
    assert await inner.delete_key("b")
    assert not await inner.check(["a", "b"])
    await inner.wait(["a"], 0)
    await inner.queue_push("q", "v")
    assert await inner.queue_len("q") == 1
    assert await inner.queue_pop("q") == b"v"
    await inner.barrier("barrier", 1)
    assert await inner.num_keys() >= 3


async def check_types(store: Store) -> None:
    """A value of a wrong type is refused by its name, over a prefix too, and nothing is stored."""
    key = fresh()
    for there in (store, PrefixStore(key, store)):
        wrong: list[tuple[str, Awaitable[object]]] = [
            ("value", there.set(key, 7)),  # type: ignore[arg-type]  # that is the point, here and below
            ("value", there.set(key, [1, 2])),  # type: ignore[arg-type]
            ("value", there.set(key, None)),  # type: ignore[arg-type]
            ("value", there.append(key, 7)),  # type: ignore[arg-type]
            ("value", there.queue_push(key, 10**12)),  # type: ignore[arg-type]
            ("expected", there.compare_set(key, 1, "2")),  # type: ignore[arg-type]
            ("desired", there.compare_set(key, "", 2)),  # type: ignore[arg-type]
            ("delta", there.add(key, "1")),  # type: ignore[arg-type]
            ("delta", there.add(key, 1.5)),  # type: ignore[arg-type]
            ("delta", there.add(key, True)),
            ("key", there.get(7)),  # type: ignore[arg-type]
            ("key", there.set(b"k", "v")),  # type: ignore[arg-type]
            ("key", there.delete_key(None)),  # type: ignore[arg-type]
            ("keys", there.check(key)),
            ("keys", there.wait(7)),  # type: ignore[arg-type]
            ("key", there.multi_get([key, 7])),  # type: ignore[list-item]
            ("values", there.multi_set([key], "v")),
            ("value", there.multi_set([key], [7])),  # type: ignore[list-item]
            ("world_size", there.barrier(key, "2")),  # type: ignore[arg-type]
            ("timeout", there.get(key, timeout="2")),  # type: ignore[arg-type]
            ("timeout", there.queue_pop(key, timeout=True)),
        ]
        for name, operation in wrong:
            error = await refused(TypeError, operation)
            assert name in str(error), f"{name} is not named: {error}"
        await refused(RendezvousSettingsError, there.get(key, timeout=-1))
        await refused(RendezvousSettingsError, there.get(key, timeout=float("nan")))
        await refused(StoreError, there.add(key, 2**63))
        assert not await there.check([key]), "something was stored"


async def check_get_waits(store: Store) -> None:
    """A get, and a multi_get, of an absent key return when the key is set, and not before."""
    first, second = fresh(), fresh()
    both = store.multi_get([second, first], timeout=LONG)
    async with meanwhile(store.get(first, timeout=LONG), both) as seen:
        await anyio.sleep(SOON)
        assert seen == [], f"returned {seen} before the key was set"
        await store.set(second, b"2")
        await store.set(first, b"1")
    assert sorted(seen, key=str) == sorted([b"1", [b"2", b"1"]], key=str), f"got {seen}"


async def check_get_times_out(store: Store) -> None:
    """Waiting for an absent key raises StoreTimeoutError that names it, and the store stays usable."""
    key = fresh()
    for seconds in (0, SOON):
        for wait in (
            store.get(key, timeout=seconds),
            store.wait([key], seconds),
            store.multi_get([key], timeout=seconds),
            store.queue_pop(key, timeout=seconds),
        ):
            error = await refused(StoreTimeoutError, wait)
            assert [key] == [name[-len(key) :] for name in error.keys], f"the error is about {error.keys}"
    await store.set(key, b"v")
    assert await store.get(key, timeout=0) == b"v", "a key that exists is read without waiting"


async def check_timeout_setting(store: Store) -> None:
    """`timeout` bounds the waits that are given no time of their own, and refuses what is no time."""
    before = store.timeout
    store.timeout = SOON
    error = await refused(StoreTimeoutError, store.get(fresh()))
    assert error.timeout == SOON, f"timed out after {error.timeout} s"
    store.timeout = before
    try:
        store.timeout = -1
    except RendezvousSettingsError:
        assert store.timeout == before
    else:
        raise AssertionError("a time-out of -1 s was taken")


async def check_queue_waits(store: Store) -> None:
    """Each of many who wait for a queue gets a value of its own."""
    key = fresh()
    values = [b"%d" % number for number in range(8)]
    async with meanwhile(*(store.queue_pop(key, timeout=LONG) for _ in values)) as taken:
        for value in values:
            await store.queue_push(key, value)
    assert sorted(taken) == values, f"taken: {sorted(taken)}"
    assert await store.queue_len(key) == 0


async def check_queue_beside_key(store: Store) -> None:
    """A queue_pop waits for a value of the queue, although a key of its name exists."""
    key = fresh()
    await store.set(key, b"value")
    await refused(StoreTimeoutError, store.queue_pop(key, timeout=SOON))
    async with meanwhile(store.queue_pop(key, timeout=LONG)) as taken:
        await store.check([key])
        await store.set(key, b"other")
        await store.queue_push(key, b"v")
    assert taken == [b"v"], f"taken: {taken}"


async def check_barrier(store: Store) -> None:
    """A barrier holds everybody until the last has come, and lets later ones pass."""
    key = fresh()
    async with meanwhile(*(store.barrier(key, 3, LONG) for _ in range(2))) as passed:
        await anyio.sleep(SOON)
        assert not passed, f"{len(passed)} passed a barrier that was not full"
        await store.barrier(key, 3, LONG)
    assert len(passed) == 2
    await store.barrier(key, 3, LONG)
    assert await store.get(key) == b"4"


async def check_barrier_times_out(store: Store) -> None:
    """A barrier that does not fill raises StoreTimeoutError; who gave up stays counted."""
    key = fresh()
    error = await refused(StoreTimeoutError, store.barrier(key, 3, SOON))
    assert error.keys[0].endswith(key), f"the error is about {error.keys}"
    await refused(StoreTimeoutError, store.barrier(key, 3, 0))
    await store.barrier(key, 3, LONG)


async def check_missing_keys(store: Store) -> None:
    """A time-out names the keys that are missing, and no other; a barrier's says how many have come."""
    start = fresh()
    keys = [f"{start}/{number}" for number in range(9)]
    missing = [keys[3], keys[8]]
    for key in keys:
        if key not in missing:
            await store.set(key, "there")
    for operation in (store.wait, store.multi_get):
        error = await refused(StoreTimeoutError, operation(keys, timeout=SOON))
        named = [key[key.index(start) :] for key in error.keys]  # errors show keys with their prefix
        assert named == missing, f"named {error.keys}, missing are {missing}"
        assert keys[0] not in str(error), f"a key that is there is named: {error}"
    barrier = f"{start}/barrier"
    await refused(StoreTimeoutError, store.barrier(barrier, 3, 0))
    error = await refused(StoreTimeoutError, store.barrier(barrier, 3, timedelta(seconds=SOON)))
    assert "2 of 3" in str(error), f"how many have come is not said: {error}"


async def check_many_waits(store: Store) -> None:
    """Any number of waits may be pending; they hold up nothing, and each is ended by its own key."""
    start = fresh()
    got: dict[int, bytes] = {}

    async def read(number: int) -> None:
        got[number] = await store.get(f"{start}/{number // 2}", timeout=LONG)

    async with meanwhile(*map(read, range(60))):
        with anyio.fail_after(LONG):
            for key in reversed(range(30)):
                await store.set(f"{start}/{key}", str(key))
                assert await store.get(f"{start}/{key}") == b"%d" % key
    assert got == {number: b"%d" % (number // 2) for number in range(60)}


async def check_cancelled_waits(store: Store) -> None:
    """A wait of any kind may be cancelled; the store stays usable, and nothing is lost from a queue."""
    for _ in range(5):
        key, queue = fresh(), fresh()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.get, key)
            tasks.start_soon(store.wait, [key, queue])
            tasks.start_soon(store.multi_get, [key, queue])
            tasks.start_soon(store.queue_pop, queue)
            tasks.start_soon(store.barrier, key + "b", 2)
            await anyio.sleep(SOON / 5)
            tasks.cancel_scope.cancel()
        await store.queue_push(queue, b"kept")
        await store.set(key, b"v")
        assert await store.get(key) == b"v"
        assert await store.queue_pop(queue, timeout=LONG) == b"kept"


async def check_cancel_races_push(store: Store) -> None:
    """A queue_pop that is cancelled while its value comes either takes it or leaves it: it is never lost."""
    for turns in range(30):
        queue = fresh()
        taken: list[bytes] = []
        scope = anyio.CancelScope()

        async def take(
            queue: str = queue, taken: list[bytes] = taken, scope: anyio.CancelScope = scope
        ) -> None:
            with scope:
                taken.append(await store.queue_pop(queue, timeout=LONG))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            if turns % 3:
                await store.check([])
            tasks.start_soon(store.queue_push, queue, b"v")
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
        if not taken:
            taken.append(await store.queue_pop(queue, timeout=LONG))
        assert taken == [b"v"], f"taken: {taken}"
        assert await store.queue_len(queue) == 0, "the value was taken and is there"


async def check_close(store: Store) -> None:
    """A closed store raises StoreError, in waits that are pending too, and may be closed again.

    It has to be the last check of a store.
    """
    async with meanwhile(refused(StoreError, store.get(fresh(), timeout=LONG))):
        await anyio.sleep(SOON)
        await store.close()
    await store.close()
    await refused(StoreError, store.set(fresh(), b""))


STORE_CHECKS: tuple[StoreCheck, ...] = checks_of(globals())
"""The checks, in the order of `check_store`; `check_close` is the last."""


async def check_store(make_store: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
    """Runs all of `STORE_CHECKS`, each on a store of its own.

    Args:
        make_store: Returns an asynchronous context manager that opens a store.

    Raises:
        AssertionError: A check failed; the message begins with its name.
    """
    for check in STORE_CHECKS:
        async with make_store() as store:
            with named(check):
                await check(store)
