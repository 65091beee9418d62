"""Checks of how every `Store` has to wait."""

from __future__ import annotations

from datetime import timedelta

import anyio
import anyio.lowlevel

from arendezvous.errors import RendezvousSettingsError, StoreError, StoreTimeoutError
from arendezvous.stores.port import Store
from arendezvous.testing.check_tools import LONG, SOON, fresh, refused


async def check_get_waits(store: Store) -> None:
    """A get, and a multi_get, of an absent key return when the key is set, and not before."""
    first, second = fresh(), fresh()
    seen: list[object] = []

    async def read() -> None:
        seen.append(await store.get(first, timeout=LONG))

    async def read_both() -> None:
        seen.append(await store.multi_get([second, first], timeout=LONG))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(read_both)
        with anyio.move_on_after(SOON):
            await anyio.sleep_forever()
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
    taken: list[bytes] = []

    async def take() -> None:
        taken.append(await store.queue_pop(key, timeout=LONG))

    values = [b"%d" % number for number in range(8)]
    async with anyio.create_task_group() as tasks:
        for _ in values:
            tasks.start_soon(take)
        for value in values:
            await store.queue_push(key, value)
    assert sorted(taken) == values, f"taken: {sorted(taken)}"
    assert await store.queue_len(key) == 0


async def check_queue_beside_key(store: Store) -> None:
    """A queue_pop waits for a value of the queue, although a key of its name exists."""
    key = fresh()
    await store.set(key, b"value")
    await refused(StoreTimeoutError, store.queue_pop(key, timeout=SOON))
    taken: list[bytes] = []

    async def take() -> None:
        taken.append(await store.queue_pop(key, timeout=LONG))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await store.check([key])
        await store.set(key, b"other")
        await store.queue_push(key, b"v")
    assert taken == [b"v"], f"taken: {taken}"


async def check_barrier(store: Store) -> None:
    """A barrier holds everybody until the last has come, and lets later ones pass."""
    key = fresh()
    passed: list[int] = []

    async def arrive(number: int) -> None:
        await store.barrier(key, 3, LONG)
        passed.append(number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arrive, 0)
        tasks.start_soon(arrive, 1)
        with anyio.move_on_after(SOON):
            await anyio.sleep_forever()
        assert passed == [], f"{passed} passed a barrier that was not full"
        await arrive(2)
    assert sorted(passed) == [0, 1, 2]
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

    async with anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(read, number)
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
            with anyio.move_on_after(SOON / 5):
                await anyio.sleep_forever()
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

    async def read() -> None:
        await refused(StoreError, store.get(fresh(), timeout=LONG))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        with anyio.move_on_after(SOON):
            await anyio.sleep_forever()
        await store.close()
    await store.close()
    await refused(StoreError, store.set(fresh(), b""))
