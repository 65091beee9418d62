"""Lists every option of a rendezvous, each in one line; and the time-outs.

The lines are in groups; an entry of `arendezvous.schemes` says which of them its scheme takes. An option in
`RunOptions` is one that all nodes of a run must agree on: it becomes the field of the same name of the law's
`RunSettings`, which says what it means, checks it and has its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypedDict

from arendezvous.law.rules import NO_RULES, Reducer, Role
from arendezvous.law.state import RankPolicyName, RunSettings
from arendezvous.rendezvous.options import Option, Seconds, seconds


class RendezvousTimeout:
    """The time-outs of a rendezvous, in seconds or as `timedelta`.

    Args:
        join: How long `next_rendezvous` waits for a complete round; default 600.
        last_call: How long a round with enough nodes waits for more; default 30.
        close: How long leaving the rendezvous may take; default 30.
        heartbeat: How long one heartbeat may take; default 5.

    Raises:
        RendezvousSettingsError: One of them is no positive number of seconds.
    """

    def __init__(
        self,
        join: Seconds | None = None,
        last_call: Seconds | None = None,
        close: Seconds | None = None,
        heartbeat: Seconds | None = None,
    ) -> None:
        self.join = seconds("join", 600.0 if join is None else join)
        self.last_call = seconds("last_call", 30.0 if last_call is None else last_call, zero=True)
        self.close = seconds("close", 30.0 if close is None else close)
        self.heartbeat = seconds("heartbeat", 5.0 if heartbeat is None else heartbeat)

    def __repr__(self) -> str:
        return f"RendezvousTimeout({', '.join(f'{name}={value:g}' for name, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, RendezvousTimeout) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))


READ_TIMEOUT: Final = 60.0  # seconds
RUN: Final = RunSettings(1, 1)  # both have the defaults of all that they are not given
TIMES: Final = RendezvousTimeout()


class CommonOptions(TypedDict, total=False):
    """The options that every scheme takes: how many nodes, who this node is, and how long it waits."""

    nnodes: Annotated[
        str | int | None,
        Option(
            "How many nodes, as torchrun has it: '4', or '1:4' for 1 to 4.",
            otherwise="min_nodes and max_nodes",
            also=("nodes", "num_nodes", "world_size"),
        ),
    ]
    min_nodes: Annotated[
        int | None, Option("A round never completes with fewer nodes.", otherwise="nnodes", also=("min",))
    ]
    max_nodes: Annotated[
        int | None,
        Option(
            "A round completes at once with as many nodes, and never has more.",
            otherwise="min_nodes",
            also=("max",),
        ),
    ]
    node: Annotated[
        str | None,
        Option(
            "This node's name, unique in the run.",
            otherwise="one is made up",
            also=("name", "node_name", "node_id"),
        ),
    ]
    local_addr: Annotated[
        str | None,
        Option(
            "The address by which other nodes reach this one.",
            otherwise="found out from the connection",
            also=("addr", "address", "local_address"),
        ),
    ]
    label: Annotated[
        str | None, Option("Where the node stands in the topology, for the rank policy topology.", default="")
    ]
    rank: Annotated[
        int | None,
        Option(
            "The rank that it asks for, with the rank policy given; with static:// the one that it has.",
            otherwise="the run's to choose",
            also=("node_rank",),
        ),
    ]
    join_timeout: Annotated[
        Seconds | None,
        Option("How long a node waits for a complete round.", default=TIMES.join, also=("join",)),
    ]
    timeout: Annotated[
        RendezvousTimeout | None,
        Option(
            "All four time-outs in one, in place of join_timeout, last_call_timeout and so on.",
            otherwise="each by itself",
            instead="; for the time to wait for a round write join_timeout={value}",
        ),
    ]


class RunOptions(TypedDict, total=False):
    """The options that all nodes of a run must agree on, by the names of their fields in `RunSettings`."""

    keep_alive_interval: Annotated[
        Seconds | None,
        Option("Time between two heartbeats.", default=RUN.keep_alive_interval, also=("heartbeat_interval",)),
    ]
    keep_alive_max_attempt: Annotated[
        int | None,
        Option(
            "A node that misses so many heartbeats is dead.",
            default=RUN.keep_alive_max_attempt,
            also=("keep_alive_max_attempts",),
        ),
    ]
    disconnect_grace: Annotated[
        Seconds | None,
        Option(
            "How long a node whose connection broke has to come back.",
            default=RUN.disconnect_grace,
            zero=True,
            also=("grace",),
        ),
    ]
    rank_policy: Annotated[
        RankPolicyName | None,
        Option(
            "Who gets which rank: sticky, natural, given (with rank) or topology (with label).",
            default=RUN.rank_policy,
            also=("policy", "ranks"),
        ),
    ]


class RuleOptions(TypedDict, total=False):
    """Lists what else all nodes agree on, as the fields of `RoundRules` have it; not with stock nodes."""

    roles: Annotated[
        Mapping[str, Role] | None,
        Option(
            "How many nodes of each role a round has, by name, in the order of their ranks: "
            "{'trainer': Role(1), 'generator': Role(2, 64)}. They say how many nodes a round has.",
            otherwise="no roles",
            unfit="left out: it is an argument of open_rendezvous alone",
        ),
    ]
    facts: Annotated[
        Mapping[str, Reducer] | None,
        Option(
            "What each node brings a value of, by name, and how these are reduced to one: min, max, sum, "
            "all, any or same.",
            otherwise="no facts",
            unfit="left out: it is an argument of open_rendezvous alone",
        ),
    ]
    node_unit: Annotated[
        int | None,
        Option(
            "A round has a multiple of so many nodes, of each role.",
            default=NO_RULES.node_unit,
            also=("unit", "nodes_per_unit"),
        ),
    ]
    unit_label: Annotated[
        bool | None, Option("Whether the nodes of a unit have one label, each.", default=NO_RULES.unit_label)
    ]
    stall_timeout: Annotated[
        Seconds | None,
        Option(
            "A member whose reported progress stands still for so long is told of.",
            otherwise="none is",
            zero=True,
            also=("stall", "progress_timeout"),
        ),
    ]
    strikes: Annotated[
        int | None,
        Option(
            "A node that failed, or was lost, as a member so many times is quarantined for cooldown.",
            otherwise="none is",
            also=("max_failures", "max_strikes"),
        ),
    ]
    cooldown: Annotated[
        Seconds | None,
        Option("How long a node with so many strikes is kept out.", otherwise="given with strikes"),
    ]
    stop_after: Annotated[
        int | None,
        Option(
            "After so many rounds in which no member tells of progress the run is closed.",
            otherwise="it never is",
            also=("max_restarts",),
        ),
    ]


class ReopenOptions(TypedDict, total=False):
    """Whether a node may begin a run anew; not with stock nodes."""

    reopen: Annotated[
        Literal["ended", "failed"] | None,
        Option(
            "Begins a run anew, as its next incarnation, that is over: ended, one whose members have all"
            " finished; failed, also one that a node closed. What an operator closed stays closed.",
            otherwise="none",
            also=("restart", "requeue"),
        ),
    ]


class TimeOptions(TypedDict, total=False):
    """How long things may take, but for joining."""

    last_call_timeout: Annotated[
        Seconds | None,
        Option(
            "How long a round with enough nodes waits for more.",
            default=TIMES.last_call,
            zero=True,
            also=("last_call",),
        ),
    ]
    close_timeout: Annotated[
        Seconds | None,
        Option("How long leaving, or closing the run, may take.", default=TIMES.close, also=("close",)),
    ]
    heartbeat_timeout: Annotated[
        Seconds | None,
        Option("How long one heartbeat may take.", default=TIMES.heartbeat, also=("heartbeat",)),
    ]
    read_timeout: Annotated[
        Seconds | None,
        Option(
            "How long connecting, or a request, may take.", default=READ_TIMEOUT, also=("connect_timeout",)
        ),
    ]


class HostOptions(TypedDict, total=False):
    """Whether this process serves the endpoint."""

    is_host: Annotated[
        bool | None,
        Option(
            "Whether this process serves the endpoint if nobody does.",
            otherwise="if the endpoint's address is one of this machine; over etcd, if it can",
            also=("host",),
        ),
    ]


class ElectionOptions(TypedDict, total=False):
    """Names where this process serves, if it is elected."""

    port: Annotated[
        int | None, Option("The port at which this process serves if it is elected.", otherwise="a free one")
    ]


class TokenOptions(TypedDict, total=False):
    """Names the token that a server is shown; see `Credentials`."""

    token: Annotated[
        str | None,
        Option(
            "The bearer token, where the server asks for one; a server that this process hosts asks "
            "the others for it. Empty: none. Everybody on the machine sees the arguments of a process, so "
            "rather use a file.",
            otherwise="token_file, or ARENDEZVOUS_TOKEN",
        ),
    ]
    token_file: Annotated[
        str | None, Option("A file whose first word is the token.", otherwise="ARENDEZVOUS_TOKEN_FILE")
    ]


class AccessOptions(TokenOptions, total=False):
    """Names what a server is shown, and what is expected of it; see `Credentials`."""

    tls: Annotated[
        bool | None,
        Option(
            "Whether to speak TLS, trusting the system's authorities without tls_ca.",
            otherwise="if there are files for it, or ARENDEZVOUS_TLS",
        ),
    ]
    tls_ca: Annotated[
        str | None,
        Option(
            "A file with the certificates of the authorities to trust.",
            otherwise="ARENDEZVOUS_TLS_CA",
            also=("ca",),
        ),
    ]
    tls_cert: Annotated[
        str | None,
        Option(
            "A file with this node's certificate, to show to the server, or to serve with.",
            otherwise="ARENDEZVOUS_TLS_CERT",
        ),
    ]
    tls_key: Annotated[
        str | None,
        Option("A file with the key of tls_cert, if it is not in the same.", otherwise="ARENDEZVOUS_TLS_KEY"),
    ]
    tls_server_name: Annotated[
        str | None,
        Option(
            "The name that the server's certificate must have.",
            otherwise="ARENDEZVOUS_TLS_SERVER_NAME, or the endpoint's host",
            also=("server_name", "server_hostname"),
        ),
    ]


class EtcdOptions(TypedDict, total=False):
    """How to reach an etcd cluster, by the names that stock torch has for it; see `etcd_arguments`."""

    protocol: Annotated[
        Literal["http", "https"] | None,
        Option("http or https.", otherwise="https if any of the files is given"),
    ]
    cacert: Annotated[
        str | None,
        Option("A file of the authorities that sign the members' certificates.", otherwise="the system's"),
    ]
    ca_cert: Annotated[str | None, Option("The same as cacert, by its name in stock's etcd-v2.")]
    cert: Annotated[
        str | None, Option("A file of this node's certificate, for mutual TLS.", otherwise="none")
    ]
    ssl_cert: Annotated[str | None, Option("The same as cert, by its name in stock's etcd-v2.")]
    key: Annotated[
        str | None, Option("The file of the certificate's key.", otherwise="it is in that of the certificate")
    ]
    ssl_cert_key: Annotated[str | None, Option("The same as key, by its name in stock's etcd-v2.")]
    etcd_prefix: Annotated[
        str | None,
        Option(
            "What all keys begin with.",
            otherwise="/arendezvous, or with etcd-v2:// /torch/elastic, where alone stock looks",
            also=("prefix",),
        ),
    ]
    user: Annotated[str | None, Option("Who to be.", otherwise="ARENDEZVOUS_ETCD_USER, or nobody")]
    password: Annotated[
        str | None,
        Option(
            "The user's password.",
            otherwise="password_file, or ARENDEZVOUS_ETCD_PASSWORD",
            unfit="left out: options are shown in logs and lists of processes. Give password_file instead, "
            "or ARENDEZVOUS_ETCD_PASSWORD in the environment",
        ),
    ]
    password_file: Annotated[
        str | None,
        Option("A file whose first line is the user's password.", otherwise="ARENDEZVOUS_ETCD_PASSWORD_FILE"),
    ]


class RendezvousOptions(
    CommonOptions,
    RunOptions,
    RuleOptions,
    ReopenOptions,
    TimeOptions,
    HostOptions,
    ElectionOptions,
    AccessOptions,
    EtcdOptions,
    total=False,
):
    """All options of `open_rendezvous`; the entry of a scheme says which of them it takes."""
