"""A client of etcd v3's JSON gateway: several endpoints with fail-over, users and tokens, clear errors.

Each request asks etcd to refuse it at once where the cluster has no leader (the ``hasleader`` metadata of
etcd's own clients), so that such a request has surely not been carried out and may go to another member.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import anyio
import msgspec

from arendezvous.errors import RendezvousConnectionError, StoreError
from arendezvous.etcd.failover import Failover
from arendezvous.etcd.http import Endpoint, EndpointTrouble, Gateway, Refusal, Stream
from arendezvous.etcd.wire import ErrorReply, Meaning, TokenReply, decode, encode, meaning_of

T = TypeVar("T")

_SERVER_ERRORS: Final = 500


class _Renew(Exception):
    """The token is no longer valid."""


class EtcdClient(Failover):
    """Sends requests to one cluster, for one event loop; any number at the same time.

    Args:
        urls: The base URLs of the members; one of them is chosen at random, then the next ones as needed.
        read_timeout: For how many seconds an answer is awaited, from all members together.
        user: Who to be; None for a cluster without users.
        password: The user's password.
        tls: The TLS settings for https; None stands for the system's.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        read_timeout: float = 10.0,
        user: str | None = None,
        password: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.gateway = Gateway(read_timeout, tls)
        super().__init__(urls, self.gateway, read_timeout)
        self._user = user
        self._password = password
        self._token: str | None = None
        self._authenticating = anyio.Lock()

    async def call(
        self,
        method: str,
        request: Any,
        kind: type[T],
        *,
        doing: str,
        repeat: bool,
        seconds: float | None = -1.0,
    ) -> T:
        """Sends `request` and returns the reply.

        Args:
            method: The method's path behind the prefix of the gateway: ``kv/range``.
            request: The message, anything that msgspec encodes.
            kind: The type of the reply.
            doing: What errors say was being done.
            repeat: Whether it does no harm to carry it out twice. What was refused before it was carried out,
                or never sent, goes to the next endpoint in any case.
            seconds: For how long to try; None for ever; negative stands for the `read_timeout`.

        Raises:
            RendezvousConnectionError: No endpoint answered in time, or one may have carried out the request,
                without saying so, and `repeat` is false; or the password is wrong.
            StoreError: etcd refuses the request, or the client is closed; nothing has changed.
        """
        body = encode(request)

        async def send(endpoint: Endpoint, limit: float) -> T:
            def post(token: str | None) -> Awaitable[bytes]:
                return self.gateway.post(endpoint, method, body, token, limit)

            try:
                async with self._requests:
                    data = await self._authorized(post, endpoint, limit, doing)
                return decode(data, kind)
            except msgspec.DecodeError as error:
                raise EndpointTrouble(f"sent what is no reply of etcd ({error})", done=True) from error

        return await self.try_endpoints(send, doing, repeat=repeat, seconds=seconds)

    async def stream(self, method: str, body: bytes, *, doing: str) -> Stream:
        """Opens a stream of messages; raises as `call` does. The caller has to close it."""

        async def send(endpoint: Endpoint, limit: float) -> Stream:
            def post(token: str | None) -> Awaitable[Stream]:
                return self.gateway.open_stream(endpoint, method, body, token, limit)

            return await self._authorized(post, endpoint, limit, doing)

        return await self.try_endpoints(send, doing, repeat=True, seconds=-1.0)

    async def renew(self, endpoint: Endpoint, doing: str) -> bool:
        """Gets a new token; False if there is no user. Raises as `call` does, or `EndpointTrouble`."""
        if self._user is None:
            return False
        await self._authenticate(endpoint, self._token, self.read_timeout, doing)
        return True

    def denied(self, doing: str, said: str) -> StoreError:
        """The error that says: the user may not do this."""
        who = "nobody may do this without a user" if self._user is None else f"user {self._user!r} may not"
        return StoreError(
            f"{doing} at {self.name}: etcd says {said!r}: {who}; grant a role that may read and write the"
            " prefix of this store"
        )

    # One endpoint

    async def _authorized(
        self, post: Callable[[str | None], Awaitable[T]], endpoint: Endpoint, limit: float, doing: str
    ) -> T:
        """Posts with a token, and once more with a new one if that is no longer valid."""
        if self._user is not None and self._token is None:
            await self._authenticate(endpoint, None, limit, doing)
        token = self._token
        try:
            return await post(token)
        except Refusal as refusal:
            error = self._judge(refusal, doing)
            if self._user is None or not isinstance(error, _Renew):
                raise self._shown(error, doing) from refusal
        await self._authenticate(endpoint, token, limit, doing)
        try:
            return await post(self._token)
        except Refusal as refusal:
            raise self._shown(self._judge(refusal, doing), doing) from refusal

    def _shown(self, error: Exception, doing: str) -> Exception:
        """The error to raise for `error`, now that there is no better token to be had."""
        if not isinstance(error, _Renew):
            return error
        advice = (
            "it wants a user: give user and password"
            if self._user is None
            else f"it does not take the token that it has just given to user {self._user!r}"
        )
        return RendezvousConnectionError(
            f"{doing} at {self.name}: etcd says {str(error)!r}: {advice}", endpoint=self.name, doing=doing
        )

    def _judge(self, refusal: Refusal, doing: str) -> Exception:
        """What a refusal means, as an error."""
        try:
            reply = decode(refusal.body, ErrorReply)
        except msgspec.DecodeError:
            text = refusal.body[:80].decode(errors="backslashreplace").strip()
            return EndpointTrouble(
                f"answers with status {refusal.status} and {text!r}", done=refusal.status >= _SERVER_ERRORS
            )
        meaning = meaning_of(reply.error, reply.code)
        if meaning is Meaning.NOT_DONE:
            return EndpointTrouble(f"says {reply.error!r}")
        if meaning is Meaning.IN_DOUBT:
            quorum = " (perhaps the cluster has no quorum)" if "timed out" in reply.error else ""
            return EndpointTrouble(f"says {reply.error!r}{quorum}", done=True)
        if meaning is Meaning.RENEW:
            return _Renew(reply.error)
        if meaning is Meaning.DENIED:
            return self.denied(doing, reply.error)
        return StoreError(f"{doing} at {self.name}: etcd refuses it: {reply.error}")

    async def _authenticate(self, endpoint: Endpoint, stale: str | None, limit: float, doing: str) -> None:
        """Gets a token, unless there is another than `stale` by now."""
        async with self._authenticating:
            if self._token != stale:
                return
            request = encode({"name": self._user, "password": self._password})
            try:
                answer = await self.gateway.post(endpoint, "auth/authenticate", request, None, limit)
                self._token = decode(answer, TokenReply).token
            except Refusal as refusal:
                self._token = self._token_after(refusal, doing)
            except EndpointTrouble as trouble:
                # What the token is wanted for has not even been sent.
                raise EndpointTrouble(str(trouble), final=trouble.final) from trouble

    def _token_after(self, refusal: Refusal, doing: str) -> str:
        if b"authentication is not enabled" in refusal.body:
            return ""  # and go on without, as etcd's own clients do
        if b"authentication failed" in refusal.body:
            raise RendezvousConnectionError(
                f"{doing} at {self.name}: etcd does not let user {self._user!r} in: the name or the password"
                " is wrong",
                endpoint=self.name,
                doing=doing,
            ) from refusal
        error = self._judge(refusal, f"authentication of user {self._user!r}")
        raise EndpointTrouble(str(error)) from refusal
