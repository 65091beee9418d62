"""An extension of griffe: methods that are made by `blocking` have the signature of what they are made of."""

from __future__ import annotations

import re
from typing import Any, Final

import griffe

_MADE: Final = re.compile(r"blocking\(([\w.]+)\)")


class BlockingMethods(griffe.Extension):
    """Describes ``get = blocking(AsyncStore.get)`` as a method."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Looks through the blocking API, once all of the package is known."""
        for module in pkg["sync"].modules.values():
            for kind in module.classes.values():
                for member in list(kind.attributes.values()):
                    made = _MADE.search(str(member.value))
                    if made is not None and not kind.is_alias:
                        kind.set_member(member.name, _method(kind, member, made[1]))


def _method(kind: Any, member: Any, made_of: str) -> griffe.Function:
    owner, _, name = made_of.rpartition(".")
    found = kind.modules_collection[kind.module.resolve(owner)][name]
    method = griffe.Function(
        member.name,
        parameters=found.parameters,
        returns=found.returns,
        lineno=member.lineno,
        endlineno=member.endlineno,
        docstring=member.docstring,
    )
    method.labels -= {"async"}
    return method
