"""Whatever others send is understood, or refused in words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from arendezvous import errors
from arendezvous.errors import RendezvousConnectionError, RendezvousError, RendezvousSettingsError
from arendezvous.law.state import RunSettings
from arendezvous.wire.foreign import decode_foreign, json_decoder, printable
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.bodies import VIEW
from arendezvous.wire.native.login import Login
from arendezvous.wire.native.messages import (
    HEADER,
    Failed,
    FrameError,
    Hello,
    decode_client,
    decode_server,
    encode,
    error_of,
    failure,
)

BROKEN = {
    "another encoding": b'"\xff"',
    "nested too deep": b"[" * 100_000,
    "half of a pair of surrogates": b'"\\ud800"',
    "cut off": b'{"a":',
    "no JSON": b"NaN",
    "a number that is too large": b"1e999",
    "nothing": b"",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_json_is_refused_by_the_error_that_the_caller_chooses(data: bytes) -> None:
    with pytest.raises(LookupError) as caught:
        decode_foreign(json_decoder(object), data, LookupError)

    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is not None


def test_a_value_that_the_law_does_not_allow_is_refused_as_well() -> None:
    with pytest.raises(LookupError, match="max_nodes"):
        decode_foreign(json_decoder(RunSettings), b"[3, 2]", LookupError)


def test_the_reason_is_short_and_can_be_printed_whatever_it_quotes() -> None:
    def decode(data: bytes) -> None:
        raise ValueError(data.decode())

    with pytest.raises(LookupError) as caught:
        decode_foreign(decode, b"\x1b]0;" + b"x" * 100_000, LookupError)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("data", [*BROKEN.values(), b"\x91" * 100_000, b"\xa1\xff", b"\xc1", b"\xd6\xff\xff"])
def test_a_frame_that_is_no_message_is_an_error_of_the_protocol_at_both_ends(data: bytes) -> None:
    for decode in (decode_client, decode_server):
        with pytest.raises(FrameError):
            decode(data)


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("status", [200, 400, 403, 404, 410, 500])
def test_an_answer_that_is_not_understood_is_still_an_answer(body: bytes, status: int) -> None:
    answer = HttpAnswer(status, {}, body)

    with pytest.raises(RendezvousError):
        answer.read(VIEW.decode)

    assert isinstance(answer.error(), RendezvousError)
    assert answer.kind == ""
    assert answer.member("view") == b"null"
    assert str(status) in answer.detail


def test_members_of_a_problem_that_have_another_type_count_as_none() -> None:
    answer = HttpAnswer(410, {}, b'{"detail": [1], "type": {"a": 1}, "error": 7, "data": 3, "view": [[[1]]]}')

    assert answer.detail == "the server answered with the status 410"
    assert answer.kind == ""
    assert answer.member("view") == b"[[[1]]]"


def test_the_data_of_an_error_has_the_types_that_its_class_says_or_is_left_out() -> None:
    good = error_of(Failed(1, "RendezvousClosedError", "closed", {"by": "me", "age": 2, "more": 1}))
    assert good.data == {"by": "me", "reason": "", "age": 2.0}
    bad: list[dict[str, Any]] = [
        {"by": "me", "age": "long"},
        {"by": ["me"]},
        {"message": "x"},
        {"self": 1},
        {"age": {}},
    ]
    for data in bad:
        error = error_of(Failed(1, "RendezvousClosedError", "closed", data))
        assert error.data == {"by": "", "reason": "", "age": None}, data


def test_every_error_of_ours_comes_through_with_its_data() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, RendezvousError):
            sent = kind("what is wrong")
            got = error_of(msgspec.convert(decode_server(encode(failure(1, sent))[HEADER:]), Failed))
            assert (type(got), got.message, got.data) == (kind, sent.message, sent.data)


def test_tokens_and_secrets_are_in_no_repr() -> None:
    for message in (Hello(1, "job", b"a secret", "the-token-of-job"), Login(1, "the-token-of-job")):
        assert "the-token-of-job" not in repr(message) + repr([*message.__rich_repr__()])
        assert "a secret" not in repr(message) + repr([*message.__rich_repr__()])


def test_a_password_in_a_url_is_in_no_error() -> None:
    for given in ("http://u:pass@h:1/x", "u:pass@h", "tcp://:pass@h", "http://u:p/pass@b@h", ["u:pass@h"]):
        error = RendezvousSettingsError.of("url", given, "another")
        assert "pass" not in str(error)
        assert "pass" not in repr(error.data)
    assert "node@host" in str(RendezvousSettingsError.of("node", "node@host", "another"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ä and 漢字", "plain, ä and 漢字"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\nc\td", r"a\rb\nc\td"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_connection_that_speaks_something_else_is_a_connection_error() -> None:
    assert issubclass(FrameError, RendezvousConnectionError)
