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

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from arendezvous.stores.port import Store
from arendezvous.testing import store_value_checks as values
from arendezvous.testing import store_wait_checks as waits

StoreCheck = Callable[[Store], Awaitable[None]]

STORE_CHECKS: tuple[StoreCheck, ...] = (
    values.check_set_and_get,
    values.check_odd_keys,
    waits.check_get_waits,
    waits.check_get_times_out,
    waits.check_timeout_setting,
    waits.check_missing_keys,
    values.check_compare_set,
    values.check_compare_set_race,
    values.check_add,
    values.check_add_to_text,
    values.check_check_and_wait,
    values.check_delete_key,
    values.check_append,
    values.check_multi,
    values.check_num_keys,
    values.check_queue,
    waits.check_queue_waits,
    waits.check_queue_beside_key,
    waits.check_barrier,
    waits.check_barrier_times_out,
    waits.check_many_waits,
    waits.check_cancelled_waits,
    waits.check_cancel_races_push,
    values.check_prefix,
    values.check_types,
    waits.check_close,
)
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
            try:
                await check(store)
            except AssertionError as error:
                name = getattr(check, "__name__", repr(check))
                raise AssertionError(f"{name}: {error}") from error
