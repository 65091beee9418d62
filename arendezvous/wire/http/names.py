"""Keys and pairs as text of HTTP: percent-encoded bytes (RFC 3986), and forms (the WHATWG's URL standard)."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

KEYS: Final = "/v1/kv"
QUEUES: Final = "/v1/queues"
MAX_KEY: Final = 8 * 1024  # bytes; of clients of the c10d protocol no longer keys are taken either
SERVER_HEADER: Final = "Arendezvous-Server"
LISTENER_HEADER: Final = "Arendezvous-Listener"  # in an answer of the wrong one: which is the right one
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
HTTP: Final = b"HTTP"  # what every answer begins with
SPEAKS_HTTP: Final = "speaks HTTP: use http:// in the endpoint, or the port of the TCP listener"

_UNSAFE_PATH: Final = re.compile(rb"(?:^|/)\.{0,2}(?:/|$)")
_BROKEN: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def quote_key(key: bytes) -> str:
    """A key as it stands in a URL, after the slash that ends the address of all keys.

    Slashes stay as they are, unless something on the way might take them, or dots between them, for more than
    parts of a name.
    """
    if _UNSAFE_PATH.search(key) is None:
        return quote_from_bytes(key, safe="/")
    return quote_from_bytes(key, safe="").replace(".", "%2E")


def unquote(text: bytes) -> bytes:
    """The bytes that percent-encoded text stands for.

    Raises:
        ValueError: A percent sign is not followed by two hexadecimal digits.
    """
    broken = _BROKEN.search(text)
    if broken is not None:
        at = broken.start()
        raise ValueError(
            f"{text[at : at + 3]!r} is not percent-encoded: a percent sign needs two hexadecimal digits after"
            " it, and is itself written %25"
        )
    return unquote_to_bytes(text)


def parse_form(text: bytes, most: int) -> list[tuple[str, bytes]]:
    """The names and values of a form, or of the query of a URL, in their order.

    Args:
        text: The form.
        most: How many pairs are allowed.

    Raises:
        ValueError: There are more, or one of them is not percent-encoded.
    """
    return [(name.decode("utf-8", "surrogateescape"), value) for name, value in parse_pairs(text, most)]


def parse_pairs(text: bytes, most: int) -> list[tuple[bytes, bytes]]:
    """As `parse_form`, but names are bytes as well."""
    if text.count(b"&") >= most:
        raise ValueError(f"there are {text.count(b'&') + 1} pairs, but at most {most} are allowed")
    pairs = [part.partition(b"=") for part in text.split(b"&") if part]
    return [
        (unquote(name.replace(b"+", b" ")), unquote(value.replace(b"+", b" "))) for name, _, value in pairs
    ]
