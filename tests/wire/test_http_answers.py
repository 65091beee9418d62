"""An answer over HTTP says who gave it, what it is, and which error of ours a refusal stands for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from arendezvous.errors import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousPermissionError,
    RendezvousSettingsError,
    RendezvousStateError,
)
from arendezvous.wire.http.answers import HttpAnswer


def refusal(status: int, **members: Any) -> HttpAnswer:
    """An answer with a problem of these members."""
    return HttpAnswer(status, {}, msgspec.json.encode({"detail": "it will not do", **members}))


def test_a_refusal_with_the_name_of_an_error_stands_for_that_with_its_data() -> None:
    error = refusal(409, error="RendezvousClosedError", data={"by": "me", "reason": "done"}).error()
    assert isinstance(error, RendezvousClosedError)
    assert (error.message, error.by, error.reason) == ("it will not do", "me", "done")


@pytest.mark.parametrize(
    "name", [None, "", "RendezvousError", "Sequence", "annotations", "Unheard", 5, ["x"]]
)
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RendezvousSettingsError),
        (401, RendezvousPermissionError),
        (403, RendezvousPermissionError),
        (404, RendezvousStateError),
        (409, RendezvousStateError),
        (410, RendezvousStateError),
        (413, RendezvousSettingsError),
        (418, RendezvousStateError),
        (422, RendezvousSettingsError),
        (501, RendezvousConnectionError),
        (304, RendezvousConnectionError),
        (200, RendezvousConnectionError),
    ],
)
def test_a_refusal_without_a_name_of_ours_stands_for_the_error_that_fits_its_status(
    status: int, kind: type[RendezvousError], name: object
) -> None:
    error = refusal(status, error=name, data={}).error()
    assert type(error) is kind
    assert "it will not do" in error.message


@pytest.mark.parametrize("status", [401, 403])
def test_a_denial_tells_whether_the_server_knows_who_asks(status: int) -> None:
    error = refusal(status).error()
    assert isinstance(error, RendezvousPermissionError)
    assert error.authenticated == (status == 403)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"[" * 100_000, b'{"detail": ""}'])
def test_a_refusal_that_describes_nothing_is_told_by_its_status(body: bytes) -> None:
    answer = HttpAnswer(409, {}, body)
    assert (answer.kind, answer.server) == ("", "")
    assert str(answer.error()) == "the server answered with the status 409"


def test_the_kind_of_a_problem_is_the_end_of_its_type() -> None:
    assert refusal(404, type="urn:arendezvous:problem:no-such-run").kind == "no-such-run"
    assert HttpAnswer(200, {}, b'{"type": "urn:x:NodeJoined"}').kind == ""
