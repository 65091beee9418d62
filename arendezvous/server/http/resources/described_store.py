"""The operations on the store, as ``/openapi.json`` tells of them; the handlers are in `kv` and its like."""

from __future__ import annotations

from typing import Final

from arendezvous.server.http.resources.describing import (
    FORM,
    IDEMPOTENCY,
    OCTETS,
    SAME_SERVER,
    WAIT,
    Answer,
    Content,
    Operation,
    Parameter,
    header,
    json,
    query,
)
from arendezvous.server.http.resources.kv_many import ItemList, KeyList, Listing, Readiness, ValueList
from arendezvous.server.http.resources.kv_operations import Arrived, Comparison
from arendezvous.server.http.resources.queues import Length

_KEY: Final = Parameter("key", "path", "The key, percent-encoded; it may hold any bytes.", required=True)
_QUEUE: Final = Parameter("key", "path", "The queue, percent-encoded.", required=True)
_IF_MATCH: Final = header("If-Match", "Only if the key has one of these tags; *: only if it is there.")
_IF_NONE_MATCH: Final = header("If-None-Match", "Only if it has none of these; *: only if it is not there.")
_TAG: Final = {"ETag": "Names the value: another one has another tag."}
_NO_KEY: Final = {404: "The key is not there."}
_LOST: Final = {412: "A condition does not hold; nothing was changed. The answer has the present ETag."}
_REPEATED: Final = {
    409: "The request was made before, to a server that has ended since; or the value is no number.",
    422: "The Idempotency-Key was used for another request.",
}
_CHANGING: Final = (IDEMPOTENCY, SAME_SERVER)
_VALUE: Final = Content(OCTETS)


def _op(*names: str) -> Parameter:
    return Parameter("op", "query", "What to do.", {"type": "string", "enum": names}, required=True)


_OF_KEYS: Final = (
    Operation(
        "GET", "/v1/kv/{key}", "getKey", "Gets a value; waits until it is there, or is another one.", "store",
        {
            200: Answer("The value.", (_VALUE,), _TAG),
            304: Answer("It is still the value of If-None-Match.", headers=_TAG),
        },
        _NO_KEY | _LOST, (_KEY, WAIT, _IF_MATCH, _IF_NONE_MATCH), head=True,
    ),
    Operation(
        "PUT", "/v1/kv/{key}", "putKey", "Sets a value.", "store",
        {201: Answer("The key is new.", headers=_TAG), 204: Answer("The key was there.", headers=_TAG)},
        _LOST | _REPEATED, (_KEY, _IF_MATCH, _IF_NONE_MATCH, *_CHANGING), (_VALUE,),
    ),
    Operation(
        "DELETE", "/v1/kv/{key}", "deleteKey", "Deletes a key.", "store", {204: Answer("It is deleted.")},
        _NO_KEY | _LOST | _REPEATED, (_KEY, _IF_MATCH, _IF_NONE_MATCH, *_CHANGING),
    ),
    Operation(
        "POST", "/v1/kv/{key}", "changeKey", "Appends, adds, compares and sets, or waits at a barrier.",
        "store",
        {
            200: Answer("add: the sum.", (json(int),), _TAG),
            202: Answer("barrier: not everybody is here yet.", (json(Arrived),)),
            204: Answer("It is done; barrier: everybody is here.", headers=_TAG),
        },
        _LOST | _REPEATED,
        (
            _KEY,
            _op("append", "add", "compare-set", "barrier"),
            query("world_size", "barrier: how many must come.", type="integer"),
            WAIT, _IF_MATCH, _IF_NONE_MATCH, *_CHANGING,
        ),
        (_VALUE, json(Comparison), Content(FORM)),
    ),
    Operation(
        "GET", "/v1/kv", "listKeys", "Lists keys in the order of their bytes.", "store",
        {200: Answer("Some keys.", (json(Listing),))},
        parameters=(
            query("prefix", "Only keys that begin with it."), query("after", "Only keys that come after it."),
            query("limit", "At most so many.", type="integer", minimum=0, maximum=10_000, default=1000),
        ),
        head=True,
    ),
    Operation(
        "POST", "/v1/kv", "manyKeys", "Gets, sets or waits for many keys at once.", "store",
        {
            200: Answer("multi-get: the values; check: whether all are there.",
                        (json(ValueList, Readiness),)),
            204: Answer("multi-set: it is done."),
        },
        _REPEATED,
        (_op("multi-get", "multi-set", "check"), WAIT, *_CHANGING),
        (json(KeyList, ItemList), Content(FORM)),
    ),
)  # fmt: skip

_OF_QUEUES: Final = (
    Operation(
        "GET", "/v1/queues/{key}", "queueLength", "Tells how many values are in a queue.", "store",
        {200: Answer("The length; 0 if nobody has pushed to it.", (json(Length),))},
        parameters=(_QUEUE,), head=True,
    ),
    Operation(
        "POST", "/v1/queues/{key}", "changeQueue", "Pushes, pops, or gives back what was popped.", "store",
        {200: Answer("pop: the value.", (_VALUE,)), 204: Answer("push, give-back: it is done.")},
        {404: "pop: the queue is empty."} | _REPEATED,
        (_QUEUE, _op("push", "pop", "give-back"), WAIT, *_CHANGING),
        (_VALUE,),
    ),
)  # fmt: skip

STORE: Final = _OF_KEYS + _OF_QUEUES
