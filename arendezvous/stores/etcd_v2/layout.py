"""How a store's keys and values lie in etcd's v2 key space: as torch's ``EtcdStore`` has them.

A key is ``<prefix>/<base64 of the key>``, and a value is in base64 as well. Where the base64 of a key has a
slash, torch makes a directory of it, which it does not find again; here it is a dash, so that a key is always
one name in one directory. Queues, which torch's store does not have, are directories below ``_queues``: etcd
does not list, and does not watch from above, what begins with an underscore.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from typing import Final

from arendezvous.errors import StoreError
from arendezvous.stores.etcd_v2.client import Node
from arendezvous.stores.port import key_from_bytes

DEFAULT_PREFIX: Final = "/torch/elastic/store"
_EMPTY: Final = "-"  # stands for the empty key, which in torch's layout would be the directory itself


class Layout:
    """The keys of one store.

    Args:
        prefix: The directory that they lie in.
    """

    def __init__(self, prefix: str) -> None:
        self.directory = "/" + prefix.strip("/")

    def key(self, key: bytes) -> str:
        """The path of a key."""
        return f"{self.directory}/{_name(key)}"

    def queue(self, queue: bytes) -> str:
        """The path of the directory of a queue."""
        return f"{self.directory}/_queues/{_name(queue)}"

    def key_at(self, path: str) -> str | None:
        """The key at a path; None if nobody who follows this layout has put it there."""
        name = path.rpartition("/")[2]
        if name == _EMPTY:
            return ""
        try:
            return key_from_bytes(b64decode(name.replace("-", "/"), validate=True))
        except (binascii.Error, ValueError):
            return None


def _name(key: bytes) -> str:
    return b64encode(key).decode().replace("/", "-") or _EMPTY


def to_text(value: bytes) -> str:
    """The value as it lies in etcd."""
    return b64encode(value).decode()


def value_of(node: Node) -> bytes:
    """The value that lies in etcd.

    Raises:
        StoreError: It is not base64, or there is a directory.
    """
    if node.dir:
        raise StoreError(f"etcd's key {node.key!r} is a directory; it should hold a value in base64")
    try:
        return b64decode(node.value, validate=True)
    except (binascii.Error, ValueError) as error:
        shown = node.value[:40]
        raise StoreError(f"etcd's key {node.key!r} holds {shown!r}, which is no value in base64") from error
