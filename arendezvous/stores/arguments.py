"""Checks the arguments of stores, and turns keys and values into bytes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from datetime import timedelta

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError, StoreError


def key_to_bytes(key: str) -> bytes:
    """Returns the bytes of a key; lone surrogates stand for bytes that are not UTF-8.

    Raises:
        TypeError: It is no text.
        StoreError: It has a surrogate that stands for no byte.
    """
    try:
        return key.encode("utf-8", "surrogateescape")
    except AttributeError:
        raise TypeError(f"key is {shown(key)}, but must be a str") from None
    except UnicodeEncodeError as error:
        raise StoreError(f"key {key[:80]!r} is no text: {error.reason} at {error.start}") from error


def key_from_bytes(key: bytes) -> str:
    """The key made of these bytes; the inverse of `key_to_bytes`."""
    return key.decode("utf-8", "surrogateescape")


def value_to_bytes(value: bytes | str, name: str = "value") -> bytes:
    """Returns the bytes of a value, which errors call `name`; text becomes UTF-8.

    Raises:
        TypeError: It is neither bytes nor text; a number, say, which nobody could read back as one.
        StoreError: It is text with a surrogate.
    """
    if type(value) is bytes:  # of all kinds the commonest, and the cheapest to tell
        return value
    if isinstance(value, bytes):
        return bytes(value)
    if not isinstance(value, str):
        raise TypeError(
            f"{name} is {shown(value)}, but must be bytes or str; encode it first: str({name}).encode(), say"
        )
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise StoreError(f"{name} {value[:80]!r} is no text: {error.reason} at {error.start}") from error


def checked_keys(keys: Sequence[str]) -> Sequence[str]:
    """Returns `keys`.

    Raises:
        TypeError: It is one key, or anything else that is no sequence.
    """
    if isinstance(keys, (str, bytes)):
        raise TypeError(f"keys is {keys[:80]!r}, but must be a sequence of keys: [{keys[:80]!r}]")
    if not isinstance(keys, Sequence):
        raise TypeError(f"keys is {shown(keys)}, but must be a sequence of keys, such as a list")
    return keys


def checked_items(keys: Sequence[str], values: Sequence[bytes | str]) -> list[tuple[bytes, bytes]]:
    """Pairs keys with values, as bytes.

    Raises:
        TypeError: They are no sequences, or no keys or values.
        StoreError: There are not as many values as keys.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"values is {shown(values)}, but must be a sequence of values, one for each key")
    if len(checked_keys(keys)) != len(values):
        said = f"multi_set has {len(keys)} keys, but {len(values)} values"
        raise StoreError(f"{said}: give one value for each key")
    pairs = zip(keys, values, strict=True)
    return [(key_to_bytes(key), value_to_bytes(value, "a value of multi_set")) for key, value in pairs]


def checked_number(name: str, number: int) -> int:
    """Returns `number`, which errors call `name`, as an int; it may be what stands for one, as with numpy.

    Raises:
        TypeError: It is no whole number, or a bool.
        StoreError: It does not fit into 64 bits.
    """
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"{name} is {shown(number)}, but must be an int")
    exact = operator.index(number)
    if not -(2**63) <= exact < 2**63:
        raise StoreError(f"{name} is {shown(number)}, but must be from {-(2**63)} to {2**63 - 1}")
    return exact


def checked_timeout(timeout: float | timedelta | None) -> float | None:
    """Returns a time-out in seconds; None waits for ever.

    Raises:
        RendezvousTypeError: It is no number, timedelta or None.
        RendezvousSettingsError: It is less than 0, or not a number.
    """
    if timeout is None:
        return None
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    expected = "a number of seconds >= 0, a timedelta, or None to wait for ever"
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise RendezvousTypeError.of("timeout", timeout, expected)
    if not timeout >= 0:
        raise RendezvousSettingsError.of("timeout", timeout, expected)
    return timeout


def shown(value: object) -> str:
    """Returns a value and its type as errors show them."""
    text = repr(value)
    return f"{text[:80]}{'...' if len(text) > 80 else ''} (a {type(value).__name__})"
