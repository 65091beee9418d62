"""The resources of the HTTP listener, one file each: handlers, and routes that say who may do what there."""

from __future__ import annotations

from typing import Final

from arendezvous.server.http.resources import (
    health,
    key_lists,
    keys,
    leader,
    meeting,
    members,
    openapi,
    page,
    queues,
    rounds,
    runs,
)

RESOURCES: Final = (
    key_lists.RESOURCE,
    keys.RESOURCE,
    queues.RESOURCE,
    health.RESOURCE,
    meeting.RESOURCE,  # before the members, and these
    rounds.RESOURCE,
    members.RESOURCE,  # before the runs: of what is below a path, routes are tried in this order
    runs.RESOURCE,
    openapi.RESOURCE,
    page.RESOURCE,
)
"""All there are: a new one is a module here and a line in this tuple."""
OF_FOLLOWERS: Final = (health.RESOURCE, leader.RESOURCE)
"""Those of a server that does not lead its fleet."""
