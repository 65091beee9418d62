"""The answers of a server over HTTP, and the errors of ours that refusals stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from arendezvous.errors import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousPermissionError,
    RendezvousSettingsError,
    RendezvousStateError,
)
from arendezvous.wire.foreign import decode_foreign, json_decoder
from arendezvous.wire.http.names import PROTOCOL_HEADER, SERVER_HEADER
from arendezvous.wire.native.messages import Failed, error_class, error_of

T = TypeVar("T")

_DENIED: Final = (401, 403)
_MALFORMED: Final = (400, 413, 414, 415, 422)
_REFUSED: Final = range(400, 500)
MAX_DIGITS: Final = 9  # of a version

_decode_object: Final = json_decoder(dict[str, Any])
_decode_members: Final = json_decoder(dict[str, msgspec.Raw])


class HttpAnswer(msgspec.Struct, frozen=True):
    """An answer, good or bad."""

    status: int
    headers: Mapping[str, str]  # names are found in any case
    body: bytes

    @property
    def server(self) -> str:
        """Tells which start of an arendezvous server gave it; empty: none did."""
        return self.headers.get(SERVER_HEADER, "")

    @property
    def version(self) -> int:
        """Tells which version of the protocol the server speaks."""
        said = self.headers.get(PROTOCOL_HEADER, "")
        return int(said) if said.isascii() and said.isdigit() and len(said) < MAX_DIGITS else 1

    @property
    def is_good(self) -> bool:
        """Whether the request was carried out."""
        return self.status < 300

    @property
    def problem(self) -> dict[str, Any]:
        """The members of the problem that the body describes; none if it describes none."""
        return self._members(_decode_object)

    @property
    def detail(self) -> str:
        """Says what is wrong, in the server's words, or at least the status."""
        return self._text("detail") or f"the server answered with the status {self.status}"

    @property
    def kind(self) -> str:
        """The kind of the problem; empty if there is none."""
        return "" if self.is_good else self._text("type").rpartition(":")[2]

    def member(self, name: str) -> bytes:
        """Returns a member of the problem as JSON, ``null`` if there is none."""
        return bytes(self._members(_decode_members).get(name, b"null"))

    def read(self, decode: Callable[[bytes], T]) -> T:
        """Decodes a good answer. Raises the error of a refusal, or a `RendezvousConnectionError`."""
        if not self.is_good:
            raise self.error()
        return decode_foreign(decode, self.body, self._not_understood)

    def _not_understood(self, why: str) -> RendezvousConnectionError:
        said = f"the server's answer {self.body[:80]!r} is not understood: {why}"
        message = f"{said}; its version may be another one"
        return RendezvousConnectionError(message, doing="reading an answer")

    def _members(self, decode: Callable[[bytes], dict[str, T]]) -> dict[str, T]:
        try:
            return decode_foreign(decode, self.body, ValueError)
        except ValueError:
            return {}

    def _text(self, name: str) -> str:
        text = self.problem.get(name)
        return text if isinstance(text, str) else ""

    def error(self) -> RendezvousError:
        """Builds the error that a refusal stands for.

        Where the server names one it is that, with its data; else the one that means what the status means.
        """
        problem, detail = self.problem, self.detail
        name, data = problem.get("error"), problem.get("data")
        if error_class(name) not in (None, RendezvousError) and isinstance(data, dict):
            return error_of(Failed(0, str(name), detail, data))
        if self.status in _DENIED:
            return RendezvousPermissionError(detail, authenticated=self.status == 403)
        if self.status in _MALFORMED:
            return RendezvousSettingsError(detail)
        if self.status in _REFUSED:
            return RendezvousStateError(detail)
        message = f"an answer that was not asked for: {detail}"
        return RendezvousConnectionError(message, doing="asking a server")
