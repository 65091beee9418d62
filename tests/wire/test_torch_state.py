"""The codec of stock's rendezvous state: torch reads ours, we read torch's, and nothing else gets in."""

from __future__ import annotations

import base64
import copyreg
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arendezvous.errors import RendezvousStateError
from arendezvous.law.state import Cause, NodeDesc, RunSettings
from arendezvous.wire.torch_state.state import (
    ANNEX,
    MAX_STATE,
    SENTINEL,
    Annex,
    GoneMember,
    NodeEntry,
    StockState,
    World,
    decode_state,
    encode_state,
    write_state,
)
from arendezvous.wire.torch_state.unpickling import StockDesc
from tests.kit.torch_process import run_torch

MODULE = "torch.distributed.elastic.rendezvous.dynamic_rendezvous"
NOON = datetime(2026, 7, 1, 12, 0, 0, 123456, UTC)
A, B, C = StockDesc("node1", 4242, 0), StockDesc("node2.example.org", 7, 3), StockDesc("näh", 2**22, 2**30)


def sample() -> StockState:
    return StockState(
        round=300,
        complete=True,
        deadline=NOON + timedelta(seconds=30),
        participants={A: 0, B: 1},
        wait_list={C},
        last_heartbeats={A: NOON, B: NOON - timedelta(microseconds=1), C: NOON},
        annex=Annex(
            pulse="5",
            settings=RunSettings(2, 4),
            arrivals=3,
            nodes={str(A): NodeEntry(0, NodeDesc("a", addr="node1", label="rack 1"), 0)},
            gone=(GoneMember(1, "x_1_2", "x", Cause.NO_HEARTBEAT, "no heartbeat for 15.0 s", 299),),
            gone_count=1,
            closed=("a", "over"),
            world=World(300, 2, "d16e57", ("node1",)),
            mixed=True,
        ),
    )


def test_a_clock_may_give_dates_of_a_kind_of_its_own() -> None:
    class Moment(datetime):
        pass

    at = Moment(2026, 7, 1, 12, 0, 0, 123456, UTC)
    assert encode_state(StockState(deadline=at)) == encode_state(StockState(deadline=NOON))


TORCH = """
import base64, json, pickle, sys
from datetime import datetime, timedelta, timezone
from torch.distributed.elastic.rendezvous import dynamic_rendezvous as stock

state = pickle.loads(base64.b64decode(sys.argv[1]))
assert type(state) is stock._RendezvousState, type(state)
node1 = stock._NodeDesc("node1", 4242, 0)
assert state.participants[node1] == 0 and type(next(iter(state.participants))) is stock._NodeDesc
assert state.wait_list == {stock._NodeDesc("n\\u00e4h", 2**22, 2**30)}
assert state.deadline - state.last_heartbeats[node1] == timedelta(seconds=30)
assert state.deadline.tzinfo is timezone.utc
assert vars(state).keys() - vars(stock._RendezvousState()).keys() == {"_arendezvous"}

late = stock._NodeDesc("late", 1, 0)
state.redundancy_list.add(late)
state.last_heartbeats[late] = datetime(2026, 7, 1, 12, tzinfo=timezone.utc)
empty = stock._RendezvousState()
states = [pickle.dumps(state), pickle.dumps(state, protocol=5), pickle.dumps(empty)]
print(json.dumps([base64.b64encode(pickled).decode() for pickled in states]))
"""


async def test_torch_reads_what_we_write_and_we_read_what_torch_writes() -> None:
    printed = json.loads(await run_torch(TORCH, encode_state(sample()).decode()))
    late = StockDesc("late", 1, 0)
    expected = sample()
    expected.redundancy_list = {late}
    expected.last_heartbeats[late] = datetime(2026, 7, 1, 12, tzinfo=UTC)
    for text in printed[:2]:
        state = decode_state(text.encode())
        assert state == expected
        assert state.annex == expected.annex  # stock has carried along what it does not know
    assert decode_state(printed[2].encode()) == StockState()


def test_reading_and_writing_import_no_torch() -> None:
    script = (
        "import sys\n"
        "from arendezvous.wire.torch_state.state import StockState, decode_state, encode_state\n"
        "assert decode_state(encode_state(StockState())) == StockState()\n"
        "assert 'torch' not in sys.modules and 'pickle' not in sys.modules, 'it was imported'\n"
    )
    subprocess.run([sys.executable, "-S", "-c", script], check=True, env=_path())


def _path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}


def test_the_sentinel_and_nothing_at_all_mean_that_there_is_no_state() -> None:
    assert decode_state(SENTINEL) is None
    assert decode_state(b"") is None


def test_a_state_without_an_annex_is_written_as_stock_has_it() -> None:
    assert ANNEX.encode() not in base64.b64decode(encode_state(StockState(round=1)))


moments = st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC))
descs = st.builds(
    StockDesc,
    st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=200),
    st.integers(0, 2**63),
    st.integers(0, 2**63),
)
states = st.builds(
    StockState,
    st.integers(0, 2**53 - 1),
    st.just(False),
    st.none() | moments,
    st.booleans(),
    st.dictionaries(descs, st.integers(0, 10**6), max_size=5),
    st.sets(descs, max_size=5),
    st.sets(descs, max_size=300),
    st.dictionaries(descs, moments, max_size=5),
)


@given(states)
def test_what_is_written_is_read_as_it_was(state: StockState) -> None:
    assert decode_state(encode_state(state)) == state


def test_a_stamp_of_another_time_zone_is_the_same_moment() -> None:
    two_hours = b"cdatetime\ntimezone\ncdatetime\ntimedelta\nK\x00M\x20\x1cK\x00\x87R\x85R"
    stamp = b"h\x02C\x0a\x07\xea\x07\x01\x0e\x00\x00\x00\x00\x00" + two_hours + b"\x86R"
    plain = write_state(_attributes(StockState(deadline=NOON)))
    start = plain.index(b"h\x02C\x0a")
    state = decode_state(base64.b64encode(plain[:start] + stamp + plain[start + 18 :]))
    assert state is not None
    assert state.deadline == datetime(2026, 7, 1, 12, tzinfo=UTC)


# Hostile input


def _attributes(state: StockState) -> dict[str, Any]:
    names = ("round", "complete", "deadline", "closed", "participants", "wait_list", "redundancy_list")
    return {name: getattr(state, name) for name in (*names, "last_heartbeats")}


def refused(pickled: bytes) -> RendezvousStateError:
    with pytest.raises(RendezvousStateError) as caught:
        decode_state(base64.b64encode(pickled))
    return caught.value


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_that_runs_a_command_runs_nothing(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "touched"
    evil = pickle.dumps(Touch(path), protocol=protocol)
    error = refused(evil)
    if protocol >= 4:
        assert error.data == {"module": os.system.__module__, "name": "system"}
        assert f"{os.system.__module__}.system" in error.message
    assert not path.exists()
    pickle.loads(evil)
    assert path.exists(), "the pickle was harmless, so this test shows nothing"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("builtins", "set"),
        ("builtins", "bytearray"),
        ("copyreg", "_reconstructor"),
        ("copyreg", "__newobj__"),
        ("datetime", "sys.modules"),
        ("datetime", "datetime.fromtimestamp"),
        ("datetime", "date"),
        (MODULE, "os.system"),
        (MODULE, "pickle.loads"),
        (MODULE, "DynamicRendezvousHandler"),
        (MODULE, "_RendezvousState.__init__"),
        ("arendezvous.wire.torch_state.unpickling", "StockDesc"),
        ("", ""),
    ],
)
def test_every_other_global_is_named_and_refused(module: str, name: str) -> None:
    by_stack = b"\x80\x04" + _short(module) + _short(name) + b"\x93."
    by_line = b"\x80\x04c" + f"{module}\n{name}\n".encode() + b"."
    for pickled in (by_stack, by_line):
        error = refused(pickled)
        assert (error.data["module"], error.data["name"]) == (module, name)


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def test_the_extension_registry_is_not_asked() -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        refused(b"\x80\x04\x82\xf0.")
    finally:
        copyreg.remove_extension("os", "system", 240)


ALLOWED = set("\x80\x95(0N\x88\x89KMJ\x8a\x8cXC)\x85\x86\x87}\x8fsu\x90c\x93\x81Rb\x94qrhj.")


@pytest.mark.parametrize(
    "opcode", [op for op in pickletools.opcodes if op.code not in ALLOWED], ids=lambda op: op.name
)
def test_every_opcode_that_no_state_needs_is_refused(opcode: pickletools.OpcodeInfo) -> None:
    code = opcode.code.encode("latin-1")
    error = refused(b"\x80\x04N" + code + b"\x00" * 8 + b".")
    assert repr(code) in error.message


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x04Nr\xff\xff\xff\xff.",
        b"\x80\x04X\xff\xff\xff\xffa.",
        b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
        b"\x80\x04\x8a\xff" + b"\xff" * 255 + b".",
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"\x80\x04" + b"}" * 100_000 + b".",
        b"\x80\x04j\xff\xff\xff\xff.",
    ],
)
def test_a_pickle_that_asks_for_much_memory_gets_none(pickled: bytes) -> None:
    refused(pickled)


def test_a_pickle_of_nested_tuples_takes_no_exponential_time() -> None:
    doubled = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(200))
    refused(b"\x80\x04" + doubled + b".")
    refused(b"\x80\x04}" + doubled + b"Ns.")
    refused(b"\x80\x04\x8f(" + doubled + b"\x90.")
    state = write_state(_attributes(StockState()))
    refused(state.replace(_short("round") + b"K\x00", _short("round") + doubled))


def test_a_text_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(RendezvousStateError, match="at most"):
        decode_state(b"!" * (MAX_STATE + 1))


def test_a_state_that_is_too_long_for_a_store_is_not_written() -> None:
    crowd = {StockDesc("n" * 200, number, 0) for number in range(30_000)}
    with pytest.raises(RendezvousStateError, match="30000 nodes"):
        encode_state(StockState(wait_list=crowd))


# Corruption


@pytest.mark.parametrize("text", [b"*not base64*", b"abc", b"Y2Fua\n", b"\xff\xfe"])
def test_text_that_is_not_base64_is_shown(text: bytes) -> None:
    with pytest.raises(RendezvousStateError, match="not base64"):
        decode_state(text)


def test_a_pickle_cut_off_anywhere_is_corrupt() -> None:
    pickled = base64.b64decode(encode_state(sample()))
    for end in range(1, len(pickled)):
        refused(pickled[:end])


@given(st.data())
def test_a_pickle_with_any_bytes_changed_is_a_state_or_an_error_of_ours(data: st.DataObject) -> None:
    pickled = bytearray(base64.b64decode(encode_state(sample())))
    for _ in range(data.draw(st.integers(1, 4))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    try:
        state = decode_state(base64.b64encode(pickled))
    except RendezvousStateError:
        return
    assert state is not None
    assert decode_state(encode_state(state)) == state


@given(st.binary(max_size=60))
def test_noise_is_an_error_of_ours(noise: bytes) -> None:
    refused(b"\x80\x04" + noise)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"round": -1}, "round is -1"),
        ({"round": 2**60}, "round is"),
        ({"round": True}, "round is True"),
        ({"complete": 1}, "complete is 1"),
        ({"closed": None}, "closed is a NoneType"),
        ({"deadline": 3}, "deadline is 3"),
        ({"participants": {A: None}}, "participants is a dict"),
        ({"participants": {A: -1}}, "participants is a dict"),
        ({"participants": {StockDesc("", 1, 1): 0}}, "participants is a dict"),
        ({"participants": {StockDesc("a\nb", 1, 1): 0}}, "participants is a dict"),
        ({"participants": {StockDesc("a", -1, 1): 0}}, "participants is a dict"),
        ({"wait_list": {A: 1}}, "wait_list is a dict"),
        ({"redundancy_list": None}, "redundancy_list is a NoneType"),
        ({"last_heartbeats": {A: 1}}, "last_heartbeats is a dict"),
        ({"complete": True, "participants": {A: 1, B: 1}}, "members share a rank"),
        ({ANNEX: 5}, f"{ANNEX} is 5"),
        ({ANNEX: "{"}, ANNEX),
        ({ANNEX: '{"nodes":[]}'}, ANNEX),
        ({ANNEX: '{"version":2}'}, "version 2"),
    ],
)
def test_an_attribute_of_another_kind_is_named(changes: dict[str, Any], found: str) -> None:
    error = refused(write_state(_attributes(StockState()) | changes))
    assert found in error.message


def test_a_state_of_another_version_is_left_alone() -> None:
    attributes = _attributes(StockState())
    del attributes["redundancy_list"]
    error = refused(write_state(attributes | {"epoch": 3}))
    assert error.data == {"missing": ["redundancy_list"], "unknown": ["epoch"]}
    assert "redundancy_list" in error.message
    assert "epoch" in error.message


def test_a_node_of_another_version_is_described() -> None:
    plain = write_state(_attributes(StockState(wait_list={A})))
    error = refused(plain.replace(b"h\x05K\x00ub", b"u" + b"b"))
    assert "local_id: int" in error.message
    swapped = plain.replace(b"h\x04M" + struct.pack("<H", 4242), b"h\x04N")
    assert "pid: NoneType" in refused(swapped).message


def test_something_else_than_a_state_is_named() -> None:
    assert (
        "holds a _NodeDesc"
        in refused(
            b"\x80\x04c"
            + f"{MODULE}\n_NodeDesc\n".encode()
            + b")\x81}(X\x04\x00\x00\x00addrX\x01\x00\x00\x00a"
            b"X\x03\x00\x00\x00pidK\x01X\x08\x00\x00\x00local_idK\x00ub."
        ).message
    )
    assert "holds int" in refused(b"\x80\x04K\x01.").message
    assert "goes on" in refused(b"\x80\x04NN.").message
    assert "protocol 2" in refused(b"\x80\x02N.").message
