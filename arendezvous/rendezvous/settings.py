"""Makes the settings of a rendezvous of its options, see `option_groups`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from arendezvous.errors import RendezvousSettingsError, RendezvousTypeError
from arendezvous.law.checks import check_id
from arendezvous.law.rules import NO_RULES, REDUCERS, Role, RoundRules
from arendezvous.law.state import Reopening, RunSettings
from arendezvous.rendezvous.option_groups import TIMES, RendezvousTimeout, RuleOptions, RunOptions
from arendezvous.rendezvous.options import choice, picked, text, whole


class RendezvousSettings(msgspec.Struct, frozen=True):
    """The settings of a rendezvous handler.

    Attributes:
        run_id: The run.
        timeout: The time-outs.
        run: What all nodes of the run agree on.
        reopen: Which kind of a run that is over this node begins anew; see `Join.reopen`.
    """

    run_id: str
    timeout: RendezvousTimeout
    run: RunSettings
    reopen: Reopening = ""

    def __post_init__(self) -> None:
        check_id("run_id", text("run_id", self.run_id))

    @classmethod
    def of(cls, run_id: str, options: Mapping[str, Any]) -> RendezvousSettings:
        """Makes the settings from options that were checked one by one.

        Raises:
            RendezvousSettingsError: Two options contradict each other, or there is no number of nodes.
        """
        rules = _rules(options)
        least, most = _nodes(options, rules)
        timeout = _timeout(options)
        run: Any = picked(options, RunOptions)
        settings = RunSettings(least, most, last_call=timeout.last_call, rules=rules, **run)
        return cls(run_id, timeout, settings, options.get("reopen", ""))

    @property
    def min_nodes(self) -> int:
        """A round never completes with fewer."""
        return self.run.min_nodes

    @property
    def max_nodes(self) -> int:
        """A round never has more."""
        return self.run.max_nodes

    @property
    def keep_alive_interval(self) -> float:
        """Seconds between two heartbeats."""
        return self.run.keep_alive_interval

    @property
    def keep_alive_max_attempt(self) -> int:
        """A node that misses so many heartbeats is dead."""
        return self.run.keep_alive_max_attempt


def _timeout(options: Mapping[str, Any]) -> RendezvousTimeout:
    """Makes the time-outs, from all in one or one by one."""
    each = {name: options[f"{name}_timeout"] for name in vars(TIMES) if f"{name}_timeout" in options}
    whole_: RendezvousTimeout | None = options.get("timeout")
    if whole_ is None:
        return RendezvousTimeout(**each)
    for name, value in each.items():
        expected = f"left out beside timeout, or given as RendezvousTimeout({name}={value:g})"
        raise RendezvousSettingsError.of(f"{name}_timeout", value, expected)
    return whole_


def _rules(options: Mapping[str, Any]) -> RoundRules | None:
    """Makes what else the nodes agree on; None: nothing."""
    given: Any = picked(options, RuleOptions)
    for name, role in given.get("roles", {}).items():
        if not isinstance(name, str) or not isinstance(role, Role):
            expected = "a Role, of how many nodes at least and at most: Role(2, 64)"
            raise RendezvousTypeError.of(f"role {name!r}", role, expected)
        whole(f"the least of role {name!r}", role.min_nodes)
        whole(f"the most of role {name!r}", role.max_nodes)
    for name, reducer in given.get("facts", {}).items():
        choice(f"the reducer of fact {name!r}", reducer, REDUCERS)
        text("the name of a fact", name)
    given |= {name: dict(given[name]) for name in ("roles", "facts") if name in given}
    rules = RoundRules(**given)
    return None if rules == NO_RULES else rules


def _nodes(options: Mapping[str, Any], rules: RoundRules | None) -> tuple[int, int]:
    """Finds out how few nodes and how many a round may have."""
    nnodes, least, most = (options.get(name) for name in ("nnodes", "min_nodes", "max_nodes"))
    if rules is not None and rules.roles and nnodes is None:
        needed, taken = rules.sums
        return needed if least is None else least, taken if most is None else most
    if nnodes is None:
        if least is None:
            expected = "a whole number, or nnodes such as '1:4' in its place"
            raise RendezvousTypeError.of("min_nodes", least, expected)
        return least, least if most is None else most
    if least is not None or most is not None:
        raise RendezvousSettingsError.of("nnodes", nnodes, "left out beside min_nodes and max_nodes")
    fewest, separator, more = str(nnodes).partition(":")
    try:
        return int(fewest), int(more if separator else fewest)
    except ValueError as error:
        raise RendezvousSettingsError.of("nnodes", nnodes, "a number of nodes, or MIN:MAX") from error
