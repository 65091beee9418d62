"""What people try, and is not there, is answered with the name that they mean."""

from __future__ import annotations

import pickle
import pydoc
import subprocess
import sys
from typing import Any

import pytest

import arendezvous as ar
from arendezvous import sync

RDZV: Any = ar.open_rendezvous("memory://guesses", run_id="job", min_nodes=1, node="a")
BLOCKING: Any = sync.open_rendezvous("memory://guesses", run_id="job", min_nodes=1)
STORE: Any = ar.MemoryStore()
PACKAGE: Any = ar


@pytest.mark.parametrize(
    ("thing", "guess", "meant"),
    [
        (RDZV, "join", r"next_rendezvous\(\)"),
        (RDZV, "rendezvous", r"next_rendezvous\(\)"),
        (RDZV, "next_rendezvou", "did you mean next_rendezvous"),
        (RDZV, "rank", "info.rank"),
        (RDZV, "world_size", "info.world_size"),
        (RDZV, "store", "info.store"),
        (RDZV, "members", r"info.members\(\)"),
        (RDZV, "status", r"explain\(\)"),
        (RDZV, "close", r"leave\(\), set_closed\(\)"),
        (RDZV, "closed", r"is_closed\(\)"),
        (RDZV, "url", "endpoint"),
        (RDZV, "name", "node"),
        (RDZV, "run_id", r"get_run_id\(\)"),
        (RDZV, "events", r"changes\(\)"),
        (RDZV, "start", "as a context manager"),
        (BLOCKING, "join", r"next_rendezvous\(\)"),
        (BLOCKING, "status", r"explain\(\)"),
        (STORE, "put", r"set\(\)"),
        (STORE, "delete", r"delete_key\(\)"),
        (STORE, "exists", r"check\(\)"),
        (STORE, "keys", r"list_keys\(\)"),
        (STORE, "pop", r"queue_pop\(\)"),
        (STORE, "multiget", "multi_get"),
        (PACKAGE, "open", r"open_rendezvous\(\)"),
        (PACKAGE, "init", r"open_rendezvous\(\)"),
        (PACKAGE, "RendezvousHandler", "AsyncRendezvousHandler"),
        (PACKAGE, "RendezvousTimeOut", "did you mean RendezvousTimeout"),
    ],
)
def test_a_guess_is_answered_with_the_name_that_is_meant(thing: Any, guess: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{guess}'.*{meant}"):
        getattr(thing, guess)


async def test_guesses_at_a_round_are_answered_too() -> None:
    async with RDZV as rdzv:
        info: Any = await rdzv.next_rendezvous()
        with pytest.raises(AttributeError, match=r"no attribute 'master_addr': use rank0_addresses\[0\]"):
            _ = info.master_addr
        with pytest.raises(AttributeError, match="no attribute 'size': use world_size"):
            _ = info.size
        with pytest.raises(AttributeError, match=r"no attribute 'close': use the handler's: rdzv.leave\(\)"):
            info.close()
        with pytest.raises(TypeError, match=r"it is a method: write await info.members\(\)"):
            list(info.members)
        with pytest.raises(TypeError, match=r"it is a method: write await info.members\(\)"):
            len(info.members)
        assert [member.name for member in await info.members()] == ["a"]
        assert not hasattr(info, "__missing__")


async def test_a_handler_that_is_entered_or_awaited_in_the_wrong_way_says_how_it_is_opened() -> None:
    with pytest.raises(TypeError, match=r"'async with'; arendezvous\.sync has one for 'with'"), RDZV:
        pass
    with pytest.raises(TypeError, match="write 'async with"):
        await RDZV


@pytest.mark.parametrize(("name", "meant"), [("last_call", "last_call_timeout"), ("name", "node")])
def test_an_option_with_another_name_is_refused_with_the_right_one(name: str, meant: str) -> None:
    wrong: dict[str, Any] = {name: 1}
    with pytest.raises(ar.RendezvousTypeError, match=meant):
        ar.open_rendezvous("memory://", run_id="job", min_nodes=1, **wrong)


def test_the_package_shows_its_public_names_and_its_version() -> None:
    assert set(ar.__all__) <= set(dir(ar))
    assert ar.__version__
    assert [name for name in dir(ar) if name.startswith("_") and not name.endswith("__")] == []


def test_the_command_line_is_run_by_the_name_of_the_package() -> None:
    command = [sys.executable, "-m", "arendezvous", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"arendezvous {ar.__version__}\n"


def test_what_is_open_says_what_it_is() -> None:
    assert repr(RDZV) == "<DynamicRendezvousHandler: node 'a' of run 'job' at memory://guesses>"
    assert repr(ar.connect("tcp://a", by="me")) == "<ServerConnection: tcp://a:29400 as 'me'>"
    assert repr(ar.observe("tcp://a", run_id="job")) == "<RunObserver: run 'job'>"
    assert repr(ar.observe("tcp://a")) == "<ServerObserver: all runs, over tcp>"
    assert "next_rendezvous" in pydoc.render_doc(ar.AsyncRendezvousHandler)
    assert "Reads the roster of this round" in pydoc.render_doc(ar.RendezvousInfo.members)
    assert ar.RendezvousTimeout(join=5) == ar.RendezvousTimeout(5.0)
    assert ar.RendezvousTimeout(join=5) != ar.RendezvousTimeout()
    assert len({ar.RendezvousTimeout(), ar.RendezvousTimeout()}) == 1


async def test_what_a_member_knows_of_its_round_pickles_without_the_store() -> None:
    async with ar.open_rendezvous("memory://", run_id="job", min_nodes=1) as rdzv:
        info = await rdzv.next_rendezvous()
        await info.store.set("k", "v")
        other = pickle.loads(pickle.dumps(info))
        assert other == info
        assert (other.rank, other.world_size) == (0, 1)
        with pytest.raises(RuntimeError, match="was pickled"):
            _ = other.store
        with pytest.raises(RuntimeError, match="was pickled"):
            await other.members()


def test_errors_of_time_and_connection_are_those_of_python_too() -> None:
    late: Exception = ar.RendezvousTimeoutError("late", timeout=2.0)
    away: Exception = ar.RendezvousConnectionError("away", endpoint="tcp://a:1", doing="connecting")
    assert (isinstance(late, TimeoutError), isinstance(away, ConnectionError)) == (True, True)
    assert (str(late), str(away)) == ("late", "away")
    kept = pickle.loads(pickle.dumps(away))
    assert (type(kept), kept.endpoint) == (ar.RendezvousConnectionError, "tcp://a:1")
    of_0_2_0 = b"carendezvous.errors\n_rebuild\n(carendezvous.errors\nStoreError\nVold\n(dtR."
    assert str(pickle.loads(of_0_2_0)) == "old"
