"""Counts how much a coordinator has taken on, over all of its runs, and says when that is too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from arendezvous.coordinator.run import Run
from arendezvous.errors import RendezvousSettingsError, RendezvousStateError
from arendezvous.law.image import DrainRow
from arendezvous.law.operations import Drain, Resume
from arendezvous.law.state import NodeDesc, RunSettings

MIB: Final = 1024 * 1024
NODE: Final = 5 * 1024  # bytes that a node takes, with a few addresses
FEW_ADDRESSES: Final = 4
ADDRESS: Final = 1100  # bytes that each further address takes, at most
BROUGHT: Final = 1000  # bytes that what a node brings takes, but for its data and its facts
FACT: Final = 16  # bytes that facts take at most for each byte of their JSON: one of small numbers in a list
REMEMBERED: Final = 1000  # bytes that an event or a departure takes, with a long name and a long reason
MUCH: Final = 64 * REMEMBERED
MAX_CLAIMS: Final = 64  # nodes that wait for one to give up its name or rank, and are told what becomes of it
RESTORED: Final = 65_536  # places that are kept for the members of rounds that are restored at once
RESTORED_RATE: Final = 4096.0  # how many more each second

_encode: Final = msgspec.json.Encoder().encode


class CoordinatorLimits(msgspec.Struct, frozen=True):
    """How much a coordinator takes on.

    Attributes:
        max_runs: Runs that it keeps at once.
        max_nodes: Nodes in one run, in all lists together. What concerns all of them at once takes some 5
            microseconds for each, during which nobody else gets a turn.
        max_node_bytes: Bytes that the nodes of all runs take.
        max_history_bytes: Bytes that the latest events of all runs take, and the reasons why nodes departed.
        max_seconds: Seconds of any time that the settings of a run, or a drain, may ask for.
        run_retention: Seconds that it remembers a run that nobody is in.
    """

    max_runs: int = 10_000
    max_nodes: int = 16_384
    max_node_bytes: int = 512 * MIB
    max_history_bytes: int = 128 * MIB
    max_seconds: float = 7 * 86_400.0
    run_retention: float = 3600.0


class Budget:
    """Counts what the runs of a coordinator take, and refuses what would be too much.

    Attributes:
        node_bytes: Bytes that all nodes take.
        history_bytes: Bytes that are remembered of all runs.

    Its other fields:
        _restorable: How many places may be kept for members of rounds that are restored.
        _since: When that was so.
    """

    def __init__(self, limits: CoordinatorLimits, clock: Callable[[], float]) -> None:
        self.node_bytes = 0
        self.history_bytes = 0
        self._limits = limits
        self._clock = clock
        self._restorable = float(RESTORED)
        self._since = clock()

    @property
    def is_over(self) -> bool:
        """Whether more is remembered than may be."""
        return self.history_bytes > self._limits.max_history_bytes

    def count(self, run: Run) -> bool:
        """Counts anew how many nodes a run has, and what is remembered of it.

        Returns whether more is remembered of all runs than may be, and of this one more or less than before.
        """
        nodes = len(run.state.nodes)
        if nodes != run.counted:
            self.node_bytes += (nodes - run.counted) * NODE
            run.counted = nodes
        remembered = REMEMBERED * (len(run.history) + len(run.state.departed))
        if remembered == run.remembered:
            return False
        self.history_bytes += remembered - run.remembered
        run.remembered = remembered
        return self.history_bytes > self._limits.max_history_bytes

    def shorten(self, run: Run) -> None:
        """Forgets most of what is remembered of a run, if that is much."""
        if run.remembered > MUCH:
            run.forget()
            self.count(run)

    def remove(self, run: Run) -> None:
        """Takes a run off that is forgotten, which nobody is in."""
        self.history_bytes -= run.remembered
        run.remembered = 0

    def add(self, run: Run, node: str) -> None:
        """Adds what a node that has joined takes beyond what every node is counted for."""
        more = _large(run.state.nodes[node].desc)
        self.node_bytes += more - run.large.get(node, 0)
        run.large[node] = more

    def drop(self, run: Run, node: str) -> None:
        """Takes off what a node that is gone took beyond what every node is counted for."""
        self.node_bytes -= run.large.pop(node, 0)

    def add_claim(self, run: Run, desc: NodeDesc, holder: str) -> None:
        """Adds a join that waits until `holder` gives up a name or a rank.

        Raises `RendezvousStateError` if too many wait already.
        """
        if len(run.claims.get(holder, ())) >= MAX_CLAIMS:
            raise RendezvousStateError(
                f"{MAX_CLAIMS} nodes wait for what {holder!r} has in run {run.run_id!r}, and more may not;"
                " give every node a name and a rank of its own"
            )
        self.check_node(run, desc)
        self.node_bytes += NODE + _large(desc)

    def drop_claim(self, desc: NodeDesc) -> None:
        """Takes off a join that waits no more."""
        self.node_bytes -= NODE + _large(desc)

    def check_node(self, run: Run, desc: NodeDesc) -> None:
        """Raises `RendezvousStateError` if one more node may not be in a run."""
        nodes, limits = len(run.state.nodes), self._limits
        if nodes >= limits.max_nodes:
            raise RendezvousStateError(f"run {run.run_id!r} has {nodes} nodes, which is this server's limit")
        size = NODE + _large(desc) if desc.brings is not None or len(desc.addresses) > FEW_ADDRESSES else NODE
        if self.node_bytes + size > limits.max_node_bytes:
            raise RendezvousStateError(
                f"the nodes of all runs take {self.node_bytes} bytes, and {limits.max_node_bytes} is this"
                " server's limit; use another server, or raise it"
            )

    def check_restoring(self, run: Run | None, resume: Resume) -> None:
        """Raises `RendezvousStateError` if no places may be kept for a round that a member tells of.

        It passes where the law will not restore that round. `run` is None if it is not known here.
        """
        if run is not None and run.state.complete:
            known, told = (run.state.incarnation, run.state.round), (resume.incarnation, resume.round)
            if run.state.recovery is None or told <= known:
                return
        now, size, limits = self._clock(), resume.world_size, self._limits
        self._restorable = min(RESTORED, self._restorable + (now - self._since) * RESTORED_RATE)
        self._since = now
        if size > limits.max_nodes:
            raise RendezvousStateError(
                f"a round of {size} nodes is over this server's limit, {limits.max_nodes}"
            )
        if size > self._restorable or self.node_bytes + size * NODE > limits.max_node_bytes:
            raise RendezvousStateError(
                f"this server has restored so many rounds of late that it keeps no places for {size} more"
                " members; join again"
            )
        self._restorable -= max(0, size)

    def check_settings(self, settings: RunSettings) -> None:
        """Raises `RendezvousSettingsError` if the settings of a run ask for a time that is too long."""
        for name in ("last_call", "expiry", "disconnect_grace"):
            self._check_seconds(name, getattr(settings, name))

    def check_drain(self, drain: Drain | DrainRow) -> None:
        """Checks the time that a drain may take. Raises as `check_settings` does."""
        self._check_seconds("drain deadline", drain.seconds)

    def _check_seconds(self, name: str, seconds: float) -> None:
        if seconds > self._limits.max_seconds:
            most = f"at most {self._limits.max_seconds:g} seconds on this server"
            raise RendezvousSettingsError.of(name, seconds, most)


def _large(desc: NodeDesc) -> int:
    """The bytes that a node takes beyond what every node is counted for."""
    size, brings = ADDRESS * max(0, len(desc.addresses) - FEW_ADDRESSES), desc.brings
    if brings is not None:  # its data are in a page of the roster, too
        size += BROUGHT + 2 * len(brings.data) + len(_encode(brings.facts)) * FACT
    return size


def is_large(desc: NodeDesc) -> bool:
    """Whether a node takes more than every node is counted for."""
    return desc.brings is not None or len(desc.addresses) > FEW_ADDRESSES
