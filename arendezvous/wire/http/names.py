"""Keys and pairs as text of HTTP: percent-encoded bytes (RFC 3986), and forms (the WHATWG's URL standard)."""

from __future__ import annotations

import re
from binascii import a2b_qp
from typing import Final
from urllib.parse import quote_from_bytes

KEYS: Final = "/v1/kv"
QUEUES: Final = "/v1/queues"
MAX_KEY: Final = 8 * 1024  # bytes; of clients of the c10d protocol no longer keys are taken either
SERVER_HEADER: Final = "Arendezvous-Server"
PROTOCOL_HEADER: Final = "Arendezvous-Protocol"  # of our servers and clients: the version that it speaks
CLIENT: Final = "arendezvous"  # in the header ``User-Agent`` of our client
LISTENER_HEADER: Final = "Arendezvous-Listener"  # in an answer of the wrong one: which is the right one
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
HTTP: Final = b"HTTP"  # what every answer begins with
SPEAKS_HTTP: Final = "speaks HTTP: use http:// in the endpoint, or the port of the TCP listener"

_UNSAFE_PATH: Final = re.compile(rb"(?:^|/)\.{0,2}(?:/|$)")
LOOKED_AT: Final = 64 * 1024  # bytes of a text in which the place is looked for that is wrong
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

    The codec of quoted-printable text, which is the same with another sign, decodes 30 MB of escapes in
    0.1 s; `urllib.parse.unquote_to_bytes` takes 3 s, as it makes an object of each. Raises `ValueError` if a
    percent sign is not followed by two hexadecimal digits.
    """
    escapes = text.count(b"%")
    if not escapes:
        return text
    plain = a2b_qp(text.replace(b"=", b"=3D").replace(b"%", b"="))
    breaks = b"%\n" in text or b"%\r" in text  # an end of line that does not count, in quoted-printable text
    if breaks or len(plain) != len(text) - 2 * escapes:
        broken = _BROKEN.search(text, 0, LOOKED_AT)
        where = "it" if broken is None else repr(text[broken.start() : broken.start() + 3])
        raise ValueError(
            f"{where} is not percent-encoded: a percent sign needs two hexadecimal digits after it, and is"
            " itself written %25"
        )
    return plain


def parse_form(text: bytes, most: int) -> list[tuple[str, bytes]]:
    """The names and values of a form, in order. Raises `ValueError` if they are malformed, or too many."""
    return [(name.decode("utf-8", "surrogateescape"), value) for name, value in parse_pairs(text, most)]


def parse_pairs(text: bytes, most: int) -> list[tuple[bytes, bytes]]:
    """As `parse_form`, but names are bytes as well."""
    if text.count(b"&") >= most:
        raise ValueError(f"there are {text.count(b'&') + 1} pairs, but at most {most} are allowed")
    pairs = [part.partition(b"=") for part in text.split(b"&") if part]
    return [
        (unquote(name.replace(b"+", b" ")), unquote(value.replace(b"+", b" "))) for name, _, value in pairs
    ]
