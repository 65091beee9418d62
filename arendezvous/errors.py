"""The exceptions of arendezvous.

The names and meanings are those of ``torch.distributed.elastic.rendezvous``; ours carry their data as
attributes and a message that says what to do next::

    RendezvousError
    ├── RendezvousClosedError        the run is closed: no more rounds in this incarnation
    ├── RendezvousTimeoutError       not enough nodes came in time (also a TimeoutError)
    ├── RendezvousConnectionError    the backend cannot be reached (also a ConnectionError)
    ├── RendezvousStateError         the shared state is corrupt, or does not allow the operation
    │   ├── FactsDifferError         nodes brought different values of a fact that must be the same
    │   └── RendezvousNotFoundError  an operator asked for a run, or a node, that is not there
    ├── RendezvousGracefulExitError  nothing is wrong, but this node is not needed: exit with status 0
    ├── RendezvousSettingsError      a setting has a value that is not allowed (also a ValueError)
    │   └── RendezvousTypeError      it has another type or name than any that exists (also a TypeError)
    ├── QuarantinedError             this node is kept out of the run by an operator, or by the law
    ├── RendezvousPermissionError    the server asks for a token, or for one that is good for more
    ├── RoundOverError               a wait within a round cannot end well: a member is gone, or the round is
    └── StoreError                   an operation on a key-value store failed
        ├── StoreTimeoutError        a key did not appear in time (also a TimeoutError)
        ├── StoreQueueEmptyError     a queue had nothing to take, and the caller did not want to wait
        └── StoreFullError           the store would take more memory than it may
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

_USER: Final = re.compile(r"(?<=//)\S*@|(?<![^\s/:'\"])[^\s/:'\"]*:(?!//)\S*@")
"""The user and the password of a URL, or of what should be one, in a repr.

A name is looked for from its beginning alone: from each of its letters, a long text would take its square.
"""


class RendezvousError(Exception):
    """The base of all errors that arendezvous raises on purpose.

    Attributes:
        message: The sentence shown to people.
        data: What the error is about, by name; every value can be sent over a wire.
    """

    def __init__(self, message: str = "", **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = data

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.data))


def _rebuild(kind: type[RendezvousError], message: str, data: dict[str, Any]) -> RendezvousError:
    return kind(message, **data)  # pickles name it


class RendezvousClosedError(RendezvousError):
    """The run is closed, and closed is final for this incarnation.

    Attributes:
        by: The node or person who closed it; empty if unknown.
        reason: Why, in the closer's words; may be empty.
        age: Seconds since it was closed, by the backend's clock; None if unknown.
    """

    def __init__(
        self, message: str = "", *, by: str = "", reason: str = "", age: float | None = None
    ) -> None:
        super().__init__(message, by=by, reason=reason, age=age)
        self.by = by
        self.reason = reason
        self.age = age


class RendezvousTimeoutError(RendezvousError, TimeoutError):
    """Not enough nodes came within the join time-out; this node has been withdrawn.

    At a barrier: not all members came in time; this node has gone away from it again, and stays a member.

    Attributes:
        timeout: The time-out that passed, in seconds; None if unknown.
        explanation: What `explain()` said at that moment, as text; empty if the backend could not be asked.
        missing: Of a barrier, the members that did not come: the first of them, by rank.
    """

    def __init__(
        self,
        message: str = "",
        *,
        timeout: float | None = None,
        explanation: str = "",
        missing: Sequence[str] = (),
    ) -> None:
        super().__init__(message, timeout=timeout, explanation=explanation, missing=list(missing))
        self.timeout = timeout
        self.explanation = explanation
        self.missing = tuple(missing)


class RendezvousConnectionError(RendezvousError, ConnectionError):
    """The backend could not be reached, or stopped answering.

    Attributes:
        endpoint: Whom we tried to reach, as a URL or ``host:port``.
        doing: What was being done.
    """

    def __init__(self, message: str = "", *, endpoint: str = "", doing: str = "") -> None:
        super().__init__(message, endpoint=endpoint, doing=doing)
        self.endpoint = endpoint
        self.doing = doing


class RendezvousStateError(RendezvousError):
    """The state of the rendezvous is corrupt, or does not allow the operation; nothing was changed."""


class FactsDifferError(RendezvousStateError):
    """Nodes brought different values of a fact that must be the same; none of them got a rank."""


class RendezvousNotFoundError(RendezvousStateError):
    """There is no such run, or no such node in it."""


class RendezvousGracefulExitError(RendezvousError):
    """This node is not needed any more, and nothing is wrong: a spare of a closed run, or a drained node."""


class RendezvousSettingsError(RendezvousError, ValueError):
    """A setting has a value that is not allowed.

    Attributes:
        name: The setting.
        value: What was given, as text.
        expected: What is allowed.
    """

    def __init__(self, message: str = "", *, name: str = "", value: str = "", expected: str = "") -> None:
        super().__init__(message, name=name, value=value, expected=expected)
        self.name = name
        self.value = value
        self.expected = expected

    @classmethod
    def of(cls, name: str, value: object, expected: str) -> Self:
        """Builds the error for setting `name`, which has `value` but must be `expected`.

        Of a URL the user's name and password are not shown.
        """
        shown = without_password(repr(value))
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return cls(f"{name} is {shown}, but must be {expected}", name=name, value=shown, expected=expected)


class RendezvousTypeError(RendezvousSettingsError, TypeError):
    """A setting has a value of another type than it takes, or there is no setting of that name."""


class QuarantinedError(RendezvousError):
    """The node may not come into the run: an operator, or the law after so many failures, keeps it out.

    Attributes:
        by: Who decided so; empty if unknown.
        reason: Why; may be empty.
        seconds: For how much longer; None: until it is pardoned.
    """

    def __init__(
        self, message: str = "", *, by: str = "", reason: str = "", seconds: float | None = None
    ) -> None:
        super().__init__(message, by=by, reason=reason, seconds=seconds)
        self.by = by
        self.reason = reason
        self.seconds = seconds


class RendezvousPermissionError(RendezvousError):
    """The server does not let the bearer of this token, or of none, do that; nothing was changed.

    Its text says how a program gives a token, unless that is not what is wrong; `message` does not.

    Attributes:
        authenticated: Whether the server knows who asks, but what was asked is not for them; if not, the
            token is missing or wrong.
    """

    def __init__(self, message: str = "", *, authenticated: bool = False) -> None:
        super().__init__(message, authenticated=authenticated)
        self.authenticated = authenticated

    def __str__(self) -> str:
        advice = "" if self.authenticated else f"; {token_advice('token= or token_file=')}"
        return f"{self.message}{advice}"


def without_password(text: str) -> str:
    """Returns a text with ``...`` in place of a user and password in front of a host, if there are any."""
    return _USER.sub("...@", text) if "@" in text else text


def token_advice(options: str) -> str:
    """Says how a client gives its token, by `options` as its user calls them."""
    return f"give one by {options}, or by ARENDEZVOUS_TOKEN or ARENDEZVOUS_TOKEN_FILE in the environment"


class RoundOverError(RendezvousError):
    """A wait within a round cannot end well any more: a member is gone, or the round is over.

    Join the next round, by `next_rendezvous`, unless the run is closed.

    Attributes:
        round: The round that was waited in; -1 if unknown.
        departures: The members that are gone, or have gone on to the next round, each with the reason; empty
            if the round is over for another reason, or was over long ago.
        closed: Whether the run is closed: then there is no next round.
    """

    def __init__(
        self,
        message: str = "",
        *,
        round: int = -1,  # noqa: A002 - as everywhere
        departures: Mapping[str, str] = {},
        closed: bool = False,
    ) -> None:
        super().__init__(message, round=round, departures=dict(departures), closed=closed)
        self.round = round
        self.departures = dict(departures)
        self.closed = closed


class StoreError(RendezvousError):
    """An operation on a key-value store failed."""


class StoreTimeoutError(StoreError, TimeoutError):
    """A store operation did not finish in time.

    Attributes:
        keys: The keys that were waited for.
        timeout: The time-out that passed, in seconds; None if unknown.
    """

    def __init__(self, message: str = "", *, keys: Sequence[str] = (), timeout: float | None = None) -> None:
        super().__init__(message, keys=list(keys), timeout=timeout)
        self.keys = tuple(keys)
        self.timeout = timeout


class StoreQueueEmptyError(StoreError):
    """A queue had nothing to take, and the caller did not want to wait.

    Attributes:
        key: The queue.
    """

    def __init__(self, message: str = "", *, key: str = "") -> None:
        super().__init__(message, key=key)
        self.key = key


class StoreFullError(StoreError):
    """The store would take more memory than it may; nothing was changed.

    Attributes:
        limit: The limit that would be passed, in bytes.
    """

    def __init__(self, message: str = "", *, limit: int = 0) -> None:
        super().__init__(message, limit=limit)
        self.limit = limit
