"""Targets that need nothing but a function: parsers, and what reads files and options."""

from __future__ import annotations

import json
import tempfile
from base64 import b64decode, b64encode
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from hypothesis import strategies as st

import arendezvous as ar
from arendezvous.backends.shared_state.observer import Observer
from arendezvous.backends.shared_state.translation import advance, from_law, to_law
from arendezvous.errors import RendezvousError, RendezvousStateError
from arendezvous.events import Event, EventSource, NodeState, RdzvEvent
from arendezvous.keyspace import messages as store
from arendezvous.keyspace.grants import EVERYTHING
from arendezvous.law.events import NodeDeparted
from arendezvous.law.image import DepartureRow, DrainRow, ImageMember, RunHead, RunImage
from arendezvous.law.operations import Close, Drain, Join, KeepAlive, Leave, Reopen, Resume
from arendezvous.law.state import Cause, NodeDesc, NodeView, Phase, RunSettings
from arendezvous.law.status import RunStatus, explained
from arendezvous.law.words import event_text
from arendezvous.net.tokens import read_token
from arendezvous.registry import get_rendezvous_handler
from arendezvous.rendezvous.parameters import RendezvousParameters
from arendezvous.server.access.authority import parse_tokens, read_token_file
from arendezvous.wire.c10d.protocol import MAGIC, C10dProtocolError
from arendezvous.wire.c10d.replies import ReplyParser
from arendezvous.wire.c10d.requests import RequestParser, encode_request
from arendezvous.wire.foreign import printable
from arendezvous.wire.http.sse import EventParser
from arendezvous.wire.native import messages as native
from arendezvous.wire.native.login import AnswerParser, LoggedIn, LoginParser, encode_login
from arendezvous.wire.native.messages import FrameError, FrameParser
from arendezvous.wire.torch_state.state import Annex, StockState, decode_state, encode_state, write_state
from arendezvous.wire.torch_state.unpickling import StockDesc
from tests.fuzz.runner import Target, pure
from tests.fuzz.strategies import broken, in_pieces, joined, junk, one_of_these, twisted

DESC: Final = NodeDesc("a", "10.0.0.1", 7, 1, ("10.0.0.1", "::1"), "rack")
SETTINGS: Final = RunSettings(1, 2)
JOIN: Final = Join(DESC, SETTINGS)
OPERATIONS: Final = (
    JOIN, Resume(DESC, SETTINGS, 1, 3, 0, 1, "d"), Leave("a"), Drain("a", 3.0, "x"), KeepAlive("a"),
    Close("me", "done"), Reopen(1, "me"),
)  # fmt: skip
IMAGE: Final = RunImage(
    RunHead(1, SETTINGS, 1, 3, complete=True, world_size=1, digest="d"), (ImageMember(0, DESC, b"p" * 16),),
    {"a": DepartureRow(Cause.FAILED, "x", 3, 1, 1.0)}, {"a": DrainRow(3.0, "x", 2, "boot", 1.0)},
)  # fmt: skip
_MESSAGES: Final[tuple[native.ClientMessage, ...]] = (
    native.Hello(1, "job", b"s" * 16, "t" * 20), native.GetStatus(1), native.GetMembers(2, 1, 0),
    native.GetRuns(3), native.WatchRun(4), native.Recall(6, "a", IMAGE),
    *(native.Propose(5, each) for each in OPERATIONS),
)  # fmt: skip
CLIENT: Final = tuple(map(native.encode, _MESSAGES))
VIEW: Final = NodeView("a", 1, 1, 0, Phase.MEMBER, 0, 1, "d", ("h",))
SERVER: Final = tuple(
    native.encode(message)
    for message in (
        native.Welcome(1, "s"),
        native.Ack(1),
        native.View(0, VIEW),
        native.View(1, VIEW),
        native.Entrusted(1, VIEW, b"image"),
        native.Status(1, RunStatus("job", SETTINGS)),
        native.Members(1, (DESC,)),
        native.Runs(1, (native.RunSummary("job", 1, 0, True, False, 1, 0, 0),)),
        native.Happened(0, 1.0, (NodeDeparted("a", Phase.MEMBER, Cause.FAILED, "x"),)),
        native.Failed(1, "RendezvousClosedError", "closed", {"by": "me", "age": 1.0}),
        native.Failed(0, "StoreTimeoutError", "late", {"keys": ["k"], "timeout": 1}),
    )
)
REQUESTS: Final = (
    store.Set(b"k", b"v"), store.CompareSet(b"k", b"", b"v"), store.Get(b"k"), store.Add(b"n", 1),
    store.Check([b"k", b"l"]), store.Wait([b"k"]), store.NumKeys(), store.DeleteKey(b"k"),
    store.Append(b"k", b"v"), store.MultiGet([b"k"]), store.MultiSet([(b"k", b"v")]),
    store.QueuePush(b"q", b"v"), store.QueuePop(b"q"), store.QueueLen(b"q"), store.ListKeys(),
    store.Ping(3),
)  # fmt: skip
GREETING: Final = encode_request(store.Validate(MAGIC))
C10D: Final = tuple(encode_request(request) for request in REQUESTS)


def _require(holds: bool, error: RendezvousError) -> None:
    assert holds, error


def _native(pieces: list[bytes]) -> None:
    """A stream of frames means the same however it is cut, up to the one that ends it."""
    cut, whole = _frames(pieces), _frames([b"".join(pieces)])
    assert cut[: len(whole)] == whole  # what comes together with a frame that is none is not looked at


def _frames(pieces: list[bytes]) -> list[str]:
    parser, found = FrameParser(native.MAX_REQUEST), []
    try:
        for piece in pieces:
            for frame in parser.feed(piece):
                for decode in (native.decode_client, native.decode_server):
                    found.append(_meaning(decode, frame))
    except FrameError as error:
        found.append(str(error))
    return [each for each in found if not each.startswith("a frame of")]


def _meaning(decode: Any, frame: bytes) -> str:
    try:
        message = decode(frame)
    except FrameError as error:
        return f"refused: {error}"
    if isinstance(message, native.Failed):
        assert isinstance(native.error_of(message), RendezvousError)
        assert printable(str(native.error_of(message))).isprintable()
    if isinstance(message, native.Status):
        assert all(printable(line).isprintable() for line in explained(message.status))
    if isinstance(message, native.Happened):
        assert all(printable(event_text(event)).isprintable() for event in message.events)
    return repr(message)


def _login(pieces: list[bytes]) -> None:
    for parser_of in (LoginParser, AnswerParser):
        cut, whole = (_logged_in(parser_of(), each) for each in (pieces, [b"".join(pieces)]))
        assert cut == whole or parser_of is AnswerParser  # to which nothing may be added in the same piece
        assert "t" * 20 not in cut + whole


def _logged_in(parser: LoginParser | AnswerParser, pieces: list[bytes]) -> str:
    with suppress(FrameError):
        for piece in pieces:
            if (found := parser.feed(piece)) is not None:
                return repr(found[0] if isinstance(found, tuple) else found)
    return ""


def _c10d(pieces: list[bytes]) -> None:
    assert _requests(pieces) == _requests([b"".join(pieces)])


def _requests(pieces: list[bytes]) -> list[str]:
    parser, found = RequestParser(), []
    try:
        for piece in pieces:
            parser.feed(piece)
            for request in parser:
                found.append(repr(request))
    except C10dProtocolError:
        found.append("refused")
    return found


def _replies(value: tuple[list[Any], list[bytes]]) -> None:
    requests, pieces = value
    results = []
    for cut in (pieces, [b"".join(pieces)]):
        parser, found = ReplyParser(), []
        for request in requests:
            parser.expect(request)
        try:
            for piece in cut:
                parser.feed(piece)
                for reply in parser:
                    found.append(repr(reply))
        except C10dProtocolError:
            found.append("refused")
        results.append(found)
    assert results[0] == results[1]


def _events(pieces: list[bytes]) -> None:
    assert _parsed(pieces) == _parsed([b"".join(pieces)])


def _parsed(pieces: list[bytes]) -> list[Any]:
    parser = EventParser(1 << 20)
    found: list[Any] = []
    with suppress(FrameError):
        for piece in pieces:
            found += parser.feed(piece)
    return found


NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
NODE: Final = StockDesc("host", 1, 0)
STATES: Final = tuple(
    encode_state(state)
    for state in (
        StockState(),
        StockState(3, True, None, False, {NODE: 0}, set(), set(), {NODE: NOW}),
        StockState(0, False, NOW, True, {NODE: 0}, {StockDesc("b", 2, 2**30)}, set(), {NODE: NOW},
                   Annex(settings=SETTINGS, closed=("me", "x"))),
    )
)  # fmt: skip
ANNEX: Final = st.just(msgspec.to_builtins(Annex(settings=SETTINGS, closed=("me", "x"), arrivals=3)))


def _state(text: bytes) -> None:
    """A state that is read can be observed, taken for the law's, and written again; or it is refused."""
    try:
        state = decode_state(text)
    except RendezvousStateError as error:
        _require(len(str(error)) < 10_000, error)
        return
    seen = Observer()
    for at in (0.0, 1.0, 100.0):
        seen.observe(state, at, NOW, SETTINGS)
        law = to_law(seen, seen.settings() or SETTINGS)
        advance(law, at)
        seen.skewed(1.0)
    with suppress(RendezvousStateError):
        assert decode_state(encode_state(from_law(law, seen, {}, 100.0, NOW, pulse=True))) is not None


def _annexed(annex: Any) -> None:
    state = StockState(3, True, None, False, {NODE: 0}, set(), set(), {NODE: NOW})
    text = encode_state(state)
    attributes = {name: getattr(state, name) for name in state.__dataclass_fields__ if name != "annex"}
    assert decode_state(text) == state
    _state(b64encode(write_state({**attributes, "_arendezvous": json.dumps(annex)})))


def _token_file(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        for read in (read_token, read_token_file):
            try:
                read(file.name)
            except RendezvousError as error:
                _require("a-token-that-is-secret" not in str(error), error)
    with suppress(RendezvousError):
        parse_tokens(content.decode("utf-8", "replace"), "tokens")


OPTIONS: Final = (
    "min_nodes", "max_nodes", "nnodes", "last_call_timeout", "join_timeout", "rank_policy", "rank", "node",
    "local_addr", "token", "token_file", "tls", "is_host", "keep_alive_interval", "timeout", "protocol",
    "etcd_prefix", "user", "password", "cacert", "read_timeout", "run_id", "nothing_of_ours",
)  # fmt: skip
URLS: Final = (
    "tcp://host:29400", "http://host/path", "https://[::1]:443", "etcd://a:2379,b,c", "etcd-v2://h",
    "c10d://host:1", "memory://", "memory://name", "static://h:1", "tcp://u:hidden-word@h:1", "tcp://[::1",
)  # fmt: skip
ARGUMENTS: Final = ("min_nodes", "max_nodes", "run_id", "local_addr")
BACKENDS: Final = ("tcp", "http", "etcd", "c10d", "static", "x")
texts: Final = broken(one_of_these(*(url.encode() for url in URLS))).map(
    lambda data: data.decode("utf-8", "surrogateescape")
)
options: Final = st.dictionaries(st.sampled_from(OPTIONS), junk | st.just("1:4") | st.just(2), max_size=4)


def _url(value: tuple[str, str, dict[str, Any]]) -> None:
    url, run_id, given = value
    try:
        ar.open_rendezvous(url, **{"run_id": run_id, "min_nodes": 1, "max_nodes": 2, **given})
    except RendezvousError as error:
        _require("hidden-word" not in str(error) or ":hidden-word@" not in url, error)


def _conf(value: tuple[str, str, dict[str, Any]]) -> None:
    """What torchrun hands on, whose options are text."""
    url, backend, given = value
    named = {name: held for name, held in given.items() if name not in ARGUMENTS}
    with suppress(RendezvousError):
        get_rendezvous_handler(RendezvousParameters(backend, url, "job", 1, 2, **named))


EVENTS: Final = (
    Event("name", EventSource.AGENT, 1, {"a": 1}).serialize(),
    RdzvEvent("name", "job", "message", "host", 1, NodeState.INIT).serialize(),
)


def _jsonl(line: bytes) -> None:
    text = line.decode("utf-8", "surrogateescape")
    for kind in (Event, RdzvEvent):
        try:
            event = kind.deserialize(text)
        except RendezvousError:
            continue
        assert "\n" not in event.serialize()
        assert (
            json.loads(event.serialize()).keys()
            == json.loads(text).keys() | json.loads(event.serialize()).keys()
        )


requests: Final = joined(C10D).map(lambda data: GREETING + data)
stream: Final = joined((b"data: x\n", b"\n", b"id: 1\n", b"event: view\r\n", b": hello\n", b"data:\n\n"))
TOKENS: Final = (
    b"a-token-that-is-secret-1 run=job\na-token-that-is-secret-2 read-only # x\n\xef\xbb\xbf",
    b"\xef\xbb\xbfa-token-that-is-secret-1\n",
)
TARGETS: Final[tuple[Target, ...]] = (
    pure("native-client", in_pieces(broken(joined(CLIENT))), _native),
    pure("native-server", in_pieces(broken(joined(SERVER))), _native),
    pure("login", in_pieces(broken(one_of_these(encode_login("t" * 20),
         native.encode(LoggedIn(1, EVERYTHING))))), _login),
    pure("c10d-requests", in_pieces(broken(requests)), _c10d),
    pure("c10d-replies", st.tuples(st.lists(st.sampled_from(REQUESTS), max_size=4), in_pieces(
         broken(joined((b"\0" * 8, b"\x01", b"\0", b"\x01" + b"\0" * 7 + b"x", b"\0\0\0\3"))))), _replies),
    pure("sse", in_pieces(broken(stream)), _events),
    pure("torch-state", broken(one_of_these(*STATES)), _state),
    pure("torch-state-pickle", broken(st.sampled_from(STATES).map(b64decode))
         .map(b64encode), _state),
    pure("torch-state-annex", twisted(ANNEX), _annexed),
    pure("token-file", broken(one_of_these(*TOKENS)), _token_file),
    pure("urls", st.tuples(texts, st.text(max_size=6) | st.just("job"), options), _url),
    pure("rdzv-conf", st.tuples(texts, st.sampled_from(BACKENDS), options), _conf),
    pure("jsonl", broken(one_of_these(*(event.encode() for event in EVENTS))), _jsonl),
)  # fmt: skip
