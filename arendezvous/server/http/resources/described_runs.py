"""The operations on runs, as ``/openapi.json`` tells of them; the handlers are in `runs` and `members`."""

from __future__ import annotations

from typing import Final

from arendezvous.law.state import MAX_ROUND
from arendezvous.server.http.resources.describing import (
    EVENTS,
    NODE,
    RUN_ID,
    WAIT,
    Answer,
    Content,
    Operation,
    header,
    json,
    query,
)
from arendezvous.wire.http.bodies import (
    CLOSE,
    DRAIN,
    JOIN,
    JOINED,
    KEEP_ALIVE,
    MEMBERS,
    REJOIN,
    REOPEN,
    RUN,
    SESSION_HEADER,
    VIEW,
)
from arendezvous.wire.http.bodies import (
    RUNS as RUNS_BODY,
)
from arendezvous.wire.http.names import IDEMPOTENCY_HEADER

_RUN: Final = "/v1/runs/{run_id}"
_MEMBER: Final = _RUN + "/members/{node}"
_NO_RUN: Final = {404: "There is no such run."}
_REFUSED: Final = {
    409: "The state of the run does not allow it; `error` names the kind, `data` has the facts."
}
_OWN: Final = {
    404: "There is no such run or node.",
    409: "The state of the run does not allow it.",
    410: "The session is over; `view` says why.",
}
_SESSION: Final = header(SESSION_HEADER, "The secret of the node's session, from the answer to its join.")
_JOIN_KEY: Final = header(IDEMPOTENCY_HEADER, "Random; a join that repeats it goes on with the same session.")
_LAST_EVENT: Final = header("Last-Event-ID", "Goes on after this event of an earlier stream.")
_VIEW: Final = {200: Answer("Where the node stands now.", (json(VIEW.twin),))}
_EVENTS: Final = Content(EVENTS, (str,))
_LIMIT: Final = query("limit", "At most so many.", type="integer", minimum=0, maximum=1000, default=100)

_OF_RUNS: Final = (
    Operation(
        "GET", "/v1/runs", "listRuns", "Lists the runs of the server by their ids.", "runs",
        {200: Answer("Some runs.", (json(RUNS_BODY.twin),))},
        parameters=(_LIMIT, query("after", "Only runs whose ids come after this one.")),
        head=True,
    ),
    Operation(
        "GET", "/v1/events", "followRuns",
        "Streams the list of runs, then each run that changes or is forgotten.", "runs",
        {200: Answer(
            "Events `runs` (a RunsBody), then `run` (a RunSummaryBody) and `forgotten` (a ForgottenBody).",
            (_EVENTS,),
        )},
    ),
    Operation(
        "GET", _RUN, "showRun", "Tells all of a run: its nodes, their states, and the same in words.", "runs",
        {200: Answer("The run.", (json(RUN.twin),))}, _NO_RUN, (RUN_ID,), head=True,
    ),
    Operation(
        "GET", _RUN + "/events", "followRun", "Streams what happened to a run, then what happens.", "runs",
        {200: Answer("Events `happened` (an EventBody) and, for a gap, `reset` (a ResetBody).", (_EVENTS,))},
        parameters=(RUN_ID, query("after", "As the header Last-Event-ID."), _LAST_EVENT),
    ),
    Operation(
        "POST", _RUN + "/close", "closeRun", "Closes a run: no further round will form.", "runs",
        {200: Answer("The run is closed.", (json(VIEW.twin),))},
        _REFUSED, (RUN_ID,), (json(CLOSE.twin),),
    ),
    Operation(
        "POST", _RUN + "/reopen", "reopenRun", "Opens a closed run anew, without its nodes.", "runs",
        {200: Answer("The run is open.", (json(VIEW.twin),))},
        _NO_RUN | _REFUSED, (RUN_ID,), (json(REOPEN.twin),),
    ),
)  # fmt: skip

_OF_MEMBERS: Final = (
    Operation(
        "POST", _RUN + "/members", "join", "Brings a node into the run, and begins its session.", "members",
        {201: Answer(
            "The node has joined; for whoever accepts events, a stream of `joined` and `view`.",
            (json(JOINED.twin), _EVENTS), {"Location": "The node."},
        )},
        _REFUSED | {410: "This join, by its key, is a late copy of one that is over."},
        (RUN_ID, _SESSION, _JOIN_KEY),
        (json(JOIN.twin),),
    ),
    Operation(
        "GET", _RUN + "/members", "listMembers", "Lists the members of the complete round.", "members",
        {200: Answer("The members.", (json(MEMBERS.twin),))},
        _NO_RUN | {409: "That round is not the current one."},
        (
            RUN_ID,
            query("incarnation", "Of that round.", type="integer", minimum=0, maximum=MAX_ROUND),
            query("round", "That round and no later one.", type="integer", minimum=0, maximum=MAX_ROUND),
        ),
        head=True,
    ),
    Operation(
        "GET", _MEMBER, "showMember", "Tells what a node sees of the run.", "members",
        _VIEW, {404: "There is no such run or node."}, (RUN_ID, NODE), head=True,
    ),
    Operation(
        "PUT", _MEMBER, "joinAgain", "Has the node join the next round.", "members",
        _VIEW, _OWN, (RUN_ID, NODE, _SESSION), (json(REJOIN.twin),),
    ),
    Operation(
        "DELETE", _MEMBER, "leave", "Has the node leave the run.", "members", _VIEW, _OWN,
        (
            RUN_ID, NODE, _SESSION, query("reason", "Why, in words.", type="string", maxLength=256),
            query("cause", "Why, for programs.", enum=["left", "finished", "failed", "cancelled"]),
        ),
    ),
    Operation(
        "GET", _MEMBER + "/view", "followView", "Waits for the node's next view, or streams its views.",
        "members",
        {
            200: Answer("The view; for whoever accepts events, a stream.", (json(VIEW.twin), _EVENTS)),
            304: Answer("There is no other view yet."),
        },
        _OWN,
        (
            RUN_ID, NODE, _SESSION, WAIT, _LAST_EVENT,
            query("since", "The revision that is known; -1: none.", type="integer", minimum=-1),
        ),
    ),
    Operation(
        "POST", _MEMBER + "/keep-alive", "keepAlive", "Says that the node is alive.", "members",
        _VIEW, _OWN, (RUN_ID, NODE, _SESSION), (json(KEEP_ALIVE.twin),),
    ),
    Operation(
        "POST", _MEMBER + "/drain", "drain", "Asks a node to leave before its time is over.", "members",
        _VIEW, {404: "There is no such run or node."} | _REFUSED, (RUN_ID, NODE),
        (json(DRAIN.twin),),
    ),
)  # fmt: skip

RUNS: Final = _OF_RUNS + _OF_MEMBERS
