"""The types of the law as JSON objects with names: each body of HTTP is derived from what it stands for.

The law's own structs are arrays on the wire of native sessions. Here every one of them has a twin, made from
its fields, that is an object with the same names, types and defaults, all the way down.

Two things differ. JSON that the law carries without looking into it (`rules.Json`) is part of the twin's. And
the law says when something was by the clock of its owner (`at`, beside the `now` of a view), which must not
leave the machine. A twin says how many seconds ago that was (`age`) instead.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Final, Generic, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import structs

from arendezvous.errors import RendezvousSettingsError
from arendezvous.law.rules import Json
from arendezvous.law.state import NodeView

T = TypeVar("T", bound=msgspec.Struct)

Field = tuple[str, Any] | tuple[str, Any, Any]

_AGE: Final = Annotated[float, msgspec.Meta(description="How many seconds ago that was.")]


class JsonText(bytes):
    """JSON in a twin, which is written out as it is; empty: null."""

    __slots__ = ()


_ANY: Final = Annotated[JsonText, msgspec.Meta(extra_json_schema={"description": "Any JSON; null: nothing."})]


def from_hook(kind: type, value: object) -> JsonText:
    """Makes what a twin has that is no type of msgspec's, of what the law has or of what was decoded."""
    if kind is not JsonText:
        raise NotImplementedError(kind)
    if value is None:
        return JsonText()
    return JsonText(value if isinstance(value, bytes) else _encode_plain(value))


def to_hook(value: object) -> msgspec.Raw:
    """Writes that out."""
    if not isinstance(value, JsonText):
        raise NotImplementedError(type(value))
    return msgspec.Raw(value or b"null")


def decoder_of(twin: type[T]) -> Callable[[bytes | str], T]:
    """Makes what decodes a twin from JSON."""
    return msgspec.json.Decoder(twin, dec_hook=from_hook).decode


_encode_plain: Final = msgspec.json.Encoder().encode
encode_twin: Final = msgspec.json.Encoder(enc_hook=to_hook).encode


def to_twin(value: object, twin: type[T]) -> T:
    """Makes a twin of a value, or of an object or a dict with its attributes."""
    return msgspec.convert(value, twin, from_attributes=True, dec_hook=from_hook)


@cache
def twin_of(kind: type[msgspec.Struct], *without: str, request: bool = False) -> type[msgspec.Struct]:
    """Makes the twin of a struct: what its JSON looks like. In a `request` an unknown field is an error."""
    taken = [field for field in structs.fields(kind) if field.name not in ("now", *without)]
    ours = [base for base in kind.__mro__ if issubclass(base, msgspec.Struct) and base is not msgspec.Struct]
    docs = [(base.__doc__ or "").partition("Attributes:") for base in ours]
    doc = f"{docs[0][0]}Attributes:{''.join(attributes for _, _, attributes in docs)}"
    return make_twin(kind.__name__, doc, [twin_field(one, request=request) for one in taken], request=request)


def make_twin(name: str, doc: str | None, fields: list[Field], *, request: bool) -> type[msgspec.Struct]:
    """Makes a struct of these fields, that is an object in JSON; its name ends as those of all bodies do."""
    ending = "Request" if request else "Body"
    timed = any(field[0] == "age" for field in fields)
    return msgspec.defstruct(
        name if name.endswith(ending) else name + ending,
        fields,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=request,
        omit_defaults=request,  # a server of an earlier version refuses what it does not know
        module=__name__,
        namespace={"__doc__": doc, **({"at": property(_at)} if timed else {})},
    )


def twin_field(field: structs.FieldInfo, *, request: bool = False) -> Field:
    """The same field of a twin."""
    if field.name == "at":
        return ("age", _AGE)
    if field.type == Json:
        return (field.name, _ANY, msgspec.field(default_factory=JsonText, name=field.encode_name))
    kind = _twin_type(field.type, request=request)
    if field.required:
        return (field.name, kind)
    if field.default_factory is not msgspec.NODEFAULT:
        return (field.name, kind, msgspec.field(default_factory=field.default_factory))
    return (field.name, kind, field.default)


def _twin_type(kind: Any, *, request: bool) -> Any:
    """A type with all structs in it replaced by their twins."""
    arguments = get_args(kind)
    if not arguments:
        is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        return twin_of(kind, request=request) if is_struct else kind
    twins = tuple(_twin_type(argument, request=request) for argument in arguments)
    if twins == arguments:
        return kind
    origin = get_origin(kind)
    return Union[twins] if origin in (Union, types.UnionType) else origin[twins]  # noqa: UP007 - known when it runs


def _at(twin: Any) -> float:
    """When that was, on a clock that shows 0 now."""
    return -float(twin.age)


def _dated(value: msgspec.Struct, now: float) -> dict[str, Any]:
    """The fields of a value, with `age` in place of `at` in it and in what it holds."""
    fields = structs.asdict(value)
    if "at" in fields:
        fields["age"] = now - fields.pop("at")
    for name, held in fields.items():
        if isinstance(held, msgspec.Struct):
            fields[name] = _dated(held, now)
    return fields


class Codec(Generic[T]):
    """Turns values of one type into JSON and back.

    In a `request` an unknown field is an error. `view` finds the view by whose clock what is in a value is
    dated; None: there are no times in it.
    """

    def __init__(
        self,
        kind: type[T],
        *without: str,
        request: bool = False,
        view: Callable[[T], NodeView] | None = None,
    ) -> None:
        self.twin = twin_of(kind, *without, request=request)  # what the JSON looks like, for a schema
        self.kind = kind
        self._view = view
        self._decode = decoder_of(self.twin)

    def encode(self, value: T) -> bytes:
        """Encodes a value."""
        source: T | dict[str, Any] = value
        if self._view is not None:
            view = self._view(value)
            if view.closed is not None or view.gone is not None:  # else there is nothing to be dated
                source = _dated(value, view.now)
        return encode_twin(to_twin(source, self.twin))

    def decode(self, data: bytes) -> T:
        """Decodes a value; a view was taken at 0 on its clock.

        Raises `msgspec.MsgspecError` if it is none, `RendezvousSettingsError` if the law forbids a value.
        """
        return to_law(self._decode(data), self.kind)


class OperationCodec(Codec[T]):
    """Turns one kind of operation into JSON and back; of which node it is stands beside it, in the path.

    `beside` its node further fields may stand there.
    """

    def __init__(self, kind: type[T], *beside: str) -> None:
        super().__init__(kind, "node", *beside, request=True)
        self.names = self.twin.__struct_fields__  # the names of its fields

    def decode(self, data: bytes, node: str = "", **beside: str) -> T:
        """Decodes an operation of `node`; for none a body may be empty. Raises as `Codec.decode` does."""
        return self._with(self._decode(data or b"{}"), node, **beside)

    def texts(self, operation: T) -> dict[str, str]:
        """The operation as the query of a URL has it; what is None is left out."""
        named = msgspec.to_builtins(to_twin(operation, self.twin))
        return {name: str(value) for name, value in named.items() if value is not None}

    def of_texts(self, texts: Mapping[str, str], node: str, **beside: str) -> T:
        """Takes an operation of `node` from what is in a query. Raises as `decode` does."""
        return self._with(msgspec.convert(texts, self.twin, strict=False), node, **beside)

    def _with(self, body: msgspec.Struct, node: str, **beside: str) -> T:
        return to_law(types.SimpleNamespace(node=node, **beside, **structs.asdict(body)), self.kind)


def to_law(twin: object, kind: type[T]) -> T:
    """Takes a value of the law back out of an object with its attributes. Raises as `Codec.decode` does."""
    try:
        return to_twin(twin, kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, RendezvousSettingsError):
            raise error.__cause__ from None  # what msgspec wraps it in says less
        raise
