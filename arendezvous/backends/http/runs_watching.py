"""Watching all runs of our server from outside, over HTTP: the list of them, then each that changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Final
from urllib.parse import quote

from arendezvous.backends.http.retrying import persist
from arendezvous.errors import RendezvousConnectionError
from arendezvous.net.credentials import NO_CREDENTIALS, Credentials
from arendezvous.net.http_client import EventReader, HttpClient, UnansweredError
from arendezvous.wire.foreign import decode_foreign, json_decoder
from arendezvous.wire.http.answers import HttpAnswer
from arendezvous.wire.http.bodies import RUNS, SUMMARY, ForgottenBody, RunsBody
from arendezvous.wire.http.sse import ServerEvent
from arendezvous.wire.native.messages import RunSummary

PAGE: Final = 1000  # runs in one answer

_decode_forgotten: Final = json_decoder(ForgottenBody)


@asynccontextmanager
async def watch_runs(
    url: str, *, timeout: float = 5.0, credentials: Credentials = NO_CREDENTIALS, others: Sequence[str] = ()
) -> AsyncIterator[AsyncIterator[RunSummary | str | Sequence[RunSummary]]]:
    """Watches all runs while the block runs: all of them first, then one that has changed, or is forgotten.

    Args:
        url: The server's base URL.
        timeout: Seconds that the server may be out of reach.
        credentials: The token that is shown to the server, and the TLS settings.
        others: The base URLs of servers that stand in for it.

    Raises:
        RendezvousConnectionError: The server could not be reached within `timeout`; from the iteration, the
            stream is over.
        RendezvousPermissionError: The token is missing or wrong.
    """
    client = HttpClient(url, credentials, others=others)
    try:
        async with aclosing(_items(client, timeout)) as items:
            yield items
    finally:
        await client.close()


async def _items(
    client: HttpClient, timeout: float
) -> AsyncGenerator[RunSummary | str | Sequence[RunSummary], None]:
    source = await persist(partial(client.stream, "GET", "/v1/events", limit=timeout), client.url, timeout)
    if isinstance(source, HttpAnswer):
        raise source.error()
    try:
        while True:
            event = await _next(source, client.url)
            if event.name == "runs":
                yield await _all(client, decode_foreign(RUNS.decode, event.data, ValueError), timeout)
            elif event.name == "run":
                yield decode_foreign(SUMMARY.decode, event.data, ValueError)
            elif event.name == "forgotten":
                yield decode_foreign(_decode_forgotten, event.data, ValueError).run_id
    except ValueError as error:
        raise RendezvousConnectionError(
            f"{client.url} does not speak our protocol: {error}", endpoint=client.url, doing="watching"
        ) from error
    finally:
        source.close()


async def _next(source: EventReader, url: str) -> ServerEvent:
    try:
        return await anext(source)
    except UnansweredError as error:
        raise RendezvousConnectionError(
            f"the connection to {url} is lost: {error}", endpoint=url, doing="watching"
        ) from error


async def _all(client: HttpClient, page: RunsBody, timeout: float) -> tuple[RunSummary, ...]:
    """Asks for the runs that do not fit into the first page."""
    found = list(page.runs)
    while page.next is not None and page.runs:
        path = f"/v1/runs?limit={PAGE}&after={quote(page.next, safe='')}"
        attempt = partial(client.request, "GET", path, limit=timeout)
        page = (await persist(attempt, client.url, timeout)).read(RUNS.decode)
        found += page.runs
    return tuple(found)
