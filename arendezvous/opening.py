"""`open_rendezvous`: from a URL, and options that a user wrote, to a handler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Unpack

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError
from arendezvous.net.endpoint import Endpoint
from arendezvous.rendezvous.handler import AsyncRendezvousHandler
from arendezvous.rendezvous.node import describe_node
from arendezvous.rendezvous.option_groups import READ_TIMEOUT, RendezvousOptions
from arendezvous.rendezvous.options import (
    Option,
    check_options,
    other_names,
    seconds,
    settings_of,
    takes_options,
)
from arendezvous.rendezvous.parameters import RendezvousParameters, nearest, reject_unknown
from arendezvous.rendezvous.settings import RendezvousSettings
from arendezvous.schemes import BackendSettings, Scheme, parse_endpoint, scheme_named, schemes, urls_where

_PARAMETERS: Final = ("nnodes", "min_nodes", "max_nodes", "local_addr")  # torch's have these by themselves


@takes_options(RendezvousOptions)
def open_rendezvous(
    endpoint: str, *, run_id: str, **options: Unpack[RendezvousOptions]
) -> AsyncRendezvousHandler:
    """Opens a rendezvous for one node of a run; to be used in an ``async with`` statement.

    Times are seconds or `timedelta`. None, for every option, is the same as leaving it out.

    Args:
        endpoint: Where the run is kept, as a URL: ``tcp://host:29400``, ``http://host:29401``, ``memory://``.
        run_id: The run; nodes with the same one at the same place meet.
        options: See below. Each scheme takes some and refuses the others, see ``docs/reference/settings.md``.

    Returns:
        The handler. Entering the block connects, and raises `RendezvousConnectionError` if the endpoint could
        not be reached within `read_timeout`. Leaving the block, by any way, leaves the run.

    Raises:
        RendezvousSettingsError: A value is not allowed, or the scheme does not take an option.
        RendezvousTypeError: A value is of another type than the option's, or there is no option of that name.
    """
    where = parse_endpoint(endpoint)
    return _open(scheme_named(where.scheme), where, run_id, options)


def create_handler(params: RendezvousParameters) -> AsyncRendezvousHandler:
    """Makes a handler, not entered yet, from the parameters that torch's registry knows.

    The options are those of `open_rendezvous`, but for passwords; values may be text, and all times are
    seconds. ``timeout``, which torchrun always passes, is taken for the join time-out if there is no
    ``join_timeout``, but never shortens it below `Scheme.least_join`.

    Raises:
        RendezvousSettingsError: A parameter, or the name of an option, is not allowed.
    """
    where = parse_endpoint(params.endpoint, params.backend)
    scheme = scheme_named(where.scheme)
    options = read_options(params, scheme.settings)
    timeout = options.pop("timeout", None)
    if options.get("join_timeout") is None and timeout is not None:
        options["join_timeout"] = max(seconds("timeout", timeout, zero=True), scheme.least_join)
    nodes = {"min_nodes": params.min_nodes, "max_nodes": params.max_nodes, "local_addr": params.local_addr}
    return _open(scheme, where, params.run_id, {**options, **nodes})


def read_options(params: RendezvousParameters, known: Mapping[str, Option]) -> dict[str, Any]:
    """Returns the options among torch's parameters, read from text where they are text, but not checked yet.

    One that is not `known`, but that another scheme has, is read, too, to be refused as such.
    """
    others = {} if params.config.keys() <= known.keys() else _settings_everywhere()
    readable = {name: one for name, one in {**others, **known}.items() if name not in _PARAMETERS}
    if not params.config.keys() <= readable.keys():
        public = [name for name, one in known.items() if name in readable and not one.unfit]
        reject_unknown(params, public, other_names(known))
    return {
        name: params.get_as_float(name) if name == "timeout" else readable[name].read(params)
        for name in params.config
    }


def _open(scheme: Scheme, where: Endpoint, run_id: str, given: Mapping[str, Any]) -> AsyncRendezvousHandler:
    known = scheme.settings
    for name, value in given.items():
        if name not in known:
            _refuse(name, value, scheme, where)
    options = check_options(known, {name: value for name, value in given.items() if name in known})
    filled = scheme.filled(options)
    local_addr, name, label, rank = (filled[option] for option in ("local_addr", "node", "label", "rank"))
    node = describe_node(local_addr, name=name, label=label, rank=rank)
    settings = RendezvousSettings.of(run_id, options)
    if node.rank is not None and "rank_policy" in known and settings.run.rank_policy != "given":
        expected = "left out, or come with rank_policy='given', by which nodes get the ranks they ask for"
        raise RendezvousSettingsError.of("rank", node.rank, expected)
    made_from = BackendSettings(
        endpoint=where,
        run_id=run_id,
        read_timeout=filled.get("read_timeout", READ_TIMEOUT),
        join_timeout=settings.timeout.join,
        credentials=scheme.credentials(options),
        options=filled,
    )
    if scheme.backend is None:
        assert scheme.handler is not None  # noqa: S101 - it has the one or the other
        return scheme.handler(settings, node, made_from)
    from arendezvous.rendezvous.driver import DynamicRendezvousHandler  # commands do without it

    return DynamicRendezvousHandler(settings, scheme.backend(made_from), node)


def _refuse(name: str, value: object, scheme: Scheme, where: Endpoint) -> None:
    """Refuses an option that the scheme does not take, unless it asks for nothing."""
    if name in settings_of(RendezvousOptions) and (value is None or value is False or value == ""):
        return
    if name in _settings_everywhere():
        others = urls_where(lambda other: name in other.settings, "and")
        expected = f"left out for {where.scheme}://: it is an option of {others}"
        raise RendezvousSettingsError(f"{name} must be {expected}", name=name, expected=expected)
    near = nearest(name, ["run_id", *scheme.settings], {**other_names(scheme.settings), "rdzv_id": "run_id"})
    hint = f"; did you mean {near}?" if near else "."
    known = ", ".join(["endpoint", "run_id", *scheme.settings])
    raise RendezvousTypeError(
        f"{name} is no setting of open_rendezvous{hint} Known: {known}", name=name, expected=known
    )


def _settings_everywhere() -> Mapping[str, Option]:
    """Finds the options of all schemes, by name; only needed where something is wrong."""
    return {name: setting for scheme in schemes() for name, setting in scheme.settings.items()}
