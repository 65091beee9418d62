"""A client of etcd v3's JSON gateway: calls and streams, credentials, clear errors.

Each request asks etcd to refuse it at once where the cluster has no leader (the ``hasleader`` metadata of
etcd's own clients), so that such a request has surely not been carried out and may go to another member.

The changes of a `FencedClient` are carried out in the order in which they were asked for, or not at all. Each
request may take a connection of its own, to a member of its own. So one that was cancelled, or whose answer
was lost, may be carried out behind what its sender asks for later. Here every change holds only as long as a
mark is absent, and whoever has given one up puts that mark before asking for anything else. What it asks for
from then on goes by another mark.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import anyio
import msgspec

from arendezvous.errors import StoreError
from arendezvous.etcd import wire
from arendezvous.etcd.cluster import ClusterClient, EtcdCluster
from arendezvous.etcd.http import (
    NOT_FOUND,
    OK,
    SERVER_ERROR,
    EndpointTrouble,
    EtcdAnswer,
    EtcdMember,
    Stream,
    no_reply,
)

T = TypeVar("T")

_GATEWAYS: Final = ("/v3", "/v3beta", "/v3alpha")  # since etcd 3.4, 3.3, 3.2
_HEADERS: Final = {"Content-Type": "application/json", "Grpc-Metadata-Hasleader": "true"}
MARK_TTL: Final = 60  # seconds; etcd itself gives a request up after some 7 s


class _Refusal(Exception):
    """An endpoint answered with an error."""

    def __init__(self, answer: EtcdAnswer) -> None:
        super().__init__(answer.status, answer.body)
        self.answer = answer


class _Expired(Exception):
    """The login is no longer valid."""


class EtcdClient(ClusterClient):
    """Sends requests to one cluster, for one event loop; any number at the same time.

    Its fields, besides those of `ClusterClient`:
        _login: What etcd gave for the credentials, and each request shows; etcd calls it a token. Empty where
            etcd has no users after all; None before the first request.
        _logging_in: Held while a login is asked for, which is done once for all who need it.
    """

    def __init__(self, cluster: EtcdCluster | str | Sequence[str], *, read_timeout: float = 10.0) -> None:
        super().__init__(cluster, read_timeout=read_timeout)
        self._login: str | None = None
        self._logging_in = anyio.Lock()

    async def call(
        self,
        method: str,
        request: Any,
        kind: type[T],
        *,
        doing: str,
        repeat: bool,
        seconds: float | None = None,
        settled: bool = False,
    ) -> T:
        """Sends `request` and returns the reply. Cancellation: safe; it may have been carried out.

        Args:
            method: The method's path behind the prefix of the gateway: ``kv/range``.
            request: The message, anything that msgspec encodes.
            kind: The type of the reply.
            doing: What errors say was being done.
            repeat: Whether it does no harm to carry it out twice. What was refused before it was carried out,
                or never sent, goes to the next endpoint in any case.
            seconds: For how long to try; infinity: for ever; None stands for the `read_timeout`.
            settled: Whether it may come before what was given up earlier.

        Raises:
            RendezvousConnectionError: As `try_endpoints` does; or the password is wrong.
            StoreError: etcd refuses the request, or the client is closed; nothing has changed.
        """
        if not settled:
            await self._settle(doing)
        body = msgspec.json.encode(request)

        async def send(endpoint: EtcdMember, limit: float) -> T:
            async with self._requests:
                answer = await self._ask(endpoint, method, body, limit, doing)
            reply = wire.decode(answer.body, kind, no_reply)
            if isinstance(reply, wire.TxnReply) and not wire.fits(request, reply):
                raise no_reply("it does not answer each operation")
            return reply

        return await self.try_endpoints(send, doing, repeat=repeat, seconds=seconds)

    async def _settle(self, doing: str) -> None:
        """Sees to it that nothing that was given up can be carried out any more; here it may be."""

    async def stream(self, method: str, body: bytes, *, doing: str) -> Stream:
        """Opens a stream of messages; raises as `call` does. The caller has to close it."""

        async def send(endpoint: EtcdMember, limit: float) -> Stream:
            async def ping() -> None:
                with suppress(_Refusal):  # which is an answer, too
                    await self._post(endpoint, "maintenance/status", b"{}", None, self.read_timeout)

            answer = await self._ask(endpoint, method, body, limit, doing, stream=True)
            assert answer.response is not None  # noqa: S101 - it was asked for as a stream
            return Stream(endpoint, answer.response, self.read_timeout, ping)

        return await self.try_endpoints(send, doing, repeat=True)

    async def renew(self, endpoint: EtcdMember, doing: str) -> bool:
        """Logs in again; False if there is no user. Raises as `call` does, or `EndpointTrouble`."""
        if not self.cluster.user:
            return False
        await self._log_in(endpoint, self._login, self.read_timeout, doing)
        return True

    def denied(self, doing: str, said: str) -> StoreError:
        """Builds the error that says: the user may not do this."""
        user = self.cluster.user
        who = f"user {user!r} may not" if user else "nobody may do this without a user"
        return StoreError(
            f"{doing} at {self.name}: etcd says {said!r}: {who}; grant a role that may read and write the"
            " prefix of this store"
        )

    # One endpoint

    async def _post(
        self,
        endpoint: EtcdMember,
        method: str,
        body: bytes,
        login: str | None,
        limit: float,
        *,
        stream: bool = False,
    ) -> EtcdAnswer:
        """Sends a request by the first prefix that is one of the gateway, and returns a good answer.

        Raises:
            EndpointTrouble: There was none within `limit` seconds, or there is no gateway of etcd v3.
            _Refusal: The answer is an error.
        """
        headers = {**_HEADERS, "Authorization": login} if login else _HEADERS
        while True:
            gateway = endpoint.gateway
            url = f"{endpoint.url}{_GATEWAYS[gateway]}/{method}"
            answer = await self.fetch("POST", url, body, headers, limit=limit, stream=stream)
            if answer.status == OK:
                return answer
            if answer.status != NOT_FOUND or answer.body.startswith(b"{"):
                raise _Refusal(answer)
            if gateway + 1 == len(_GATEWAYS):
                endpoint.gateway = 0
                raise await self._no_gateway(endpoint, limit)
            endpoint.gateway = max(endpoint.gateway, gateway + 1)

    async def _no_gateway(self, endpoint: EtcdMember, limit: float) -> EndpointTrouble:
        version = await self.version_of(endpoint, limit)
        if version.startswith("2."):
            said = f"is etcd {version}, which speaks only the v2 API: use etcd-v2://, or a newer etcd"
        else:
            said = f"is etcd {version}, but has no JSON gateway: start it with --enable-grpc-gateway"
        return EndpointTrouble(said, final=True)

    async def _ask(
        self,
        endpoint: EtcdMember,
        method: str,
        body: bytes,
        limit: float,
        doing: str,
        *,
        stream: bool = False,
    ) -> EtcdAnswer:
        """Posts once there is a login, and once more with a new one if it is no longer valid."""
        user, renewed = self.cluster.user, False
        if user and self._login is None:
            await self._log_in(endpoint, None, limit, doing)
        while True:
            login = self._login
            try:
                return await self._post(endpoint, method, body, login, limit, stream=stream)
            except _Refusal as refusal:
                error = self._judge(refusal.answer, doing)
                if not isinstance(error, _Expired):
                    raise error from refusal
                if renewed or not user:
                    advice = "it wants a user: give user and password"
                    if user:
                        advice = f"it does not accept the login that it has just given to user {user!r}"
                    said = f" at {self.name}: etcd says {str(error)!r}: {advice}"
                    raise self.failed(doing, said) from refusal
            await self._log_in(endpoint, login, limit, doing)
            renewed = True

    def _judge(self, answer: EtcdAnswer, doing: str) -> Exception:
        """Turns a refusal into an error."""
        try:
            reply = wire.decode(answer.body, wire.ErrorReply, no_reply)
        except EndpointTrouble:
            return EndpointTrouble(answer.told, done=answer.status >= SERVER_ERROR)
        meaning = wire.meaning_of(reply.error, reply.code)
        if meaning is wire.Meaning.NOT_DONE:
            return EndpointTrouble(f"says {reply.error!r}")
        if meaning is wire.Meaning.IN_DOUBT:
            quorum = " (perhaps the cluster has no quorum)" if "timed out" in reply.error else ""
            return EndpointTrouble(f"says {reply.error!r}{quorum}", done=True)
        if meaning is wire.Meaning.EXPIRED:
            return _Expired(reply.error)
        if meaning is wire.Meaning.DENIED:
            return self.denied(doing, reply.error)
        return StoreError(f"{doing} at {self.name}: etcd refuses it: {reply.error}")

    async def _log_in(self, endpoint: EtcdMember, stale: str | None, limit: float, doing: str) -> None:
        """Logs in, unless there is another login than `stale` by now."""
        async with self._logging_in:
            if self._login != stale:
                return
            who = msgspec.json.encode({"name": self.cluster.user, "password": self.cluster.password})
            try:
                answer = await self._post(endpoint, "auth/authenticate", who, None, limit)
                self._login = wire.decode(answer.body, wire.LoginReply, no_reply).token
            except _Refusal as refusal:
                self._login = self._login_after(refusal, doing)
            except EndpointTrouble as trouble:
                # What the login is wanted for has not even been sent.
                raise EndpointTrouble(str(trouble), final=trouble.final) from trouble

    def _login_after(self, refusal: _Refusal, doing: str) -> str:
        user, said = self.cluster.user, refusal.answer.body
        if b"authentication is not enabled" in said:
            return ""  # and go on without, as etcd's own clients do
        if b"authentication failed" in said:
            wrong = f"etcd does not let user {user!r} in: the name or the password is wrong"
            raise self.failed(doing, f" at {self.name}: {wrong}") from refusal
        error = self._judge(refusal.answer, f"authentication of user {user!r}")
        raise EndpointTrouble(str(error)) from refusal


class FencedClient(EtcdClient):
    """A client whose changes come in order; what a call gives up is seen by the next one, or never will be.

    Args:
        cluster: See `ClusterClient`.
        marks: What the keys of its marks begin with. There is one for each time that something was given up,
            for `MARK_TTL` seconds.
        read_timeout: See `ClusterClient`.

    Its fields:
        _marks: What the keys of the marks of this client begin with.
        _marked: How many of them it has put; the changes of this moment hold while the next one is absent.
        _gave_up: Whether a change was given up since, and may be carried out yet.
        _marking: Held while a mark is put, which is done once for all who wait for it.
    """

    def __init__(
        self, cluster: EtcdCluster | str | Sequence[str], *, marks: bytes, read_timeout: float = 10.0
    ) -> None:
        super().__init__(cluster, read_timeout=read_timeout)
        self._marks = marks + secrets.token_hex(8).encode() + b"/"
        self._marked = 0
        self._gave_up = False
        self._marking = anyio.Lock()

    async def change(self, request: dict[str, Any], doing: str) -> wire.TxnReply:
        """Carries out what `txn` returns, once. Cancellation: that is before what comes next, or never.

        Raises:
            RendezvousConnectionError: No endpoint answered in time, or one may have carried it out without
                saying so; or may yet, but not behind what comes next.
            StoreError: etcd refuses it, or the client is closed; nothing has changed.
        """
        while True:
            await self._settle(doing)
            number = self._marked
            mark = self._mark(number)
            absent = wire.created(mark, 0)
            # One transaction: in two, one inside the other, etcd's gateway would parse all values twice.
            fenced = wire.txn(
                [absent, *request["compare"]],
                request["success"],
                [wire.range_op(mark), wire.txn_op([absent], request["failure"])],
            )
            try:
                reply = await self.call(
                    "kv/txn", fenced, wire.TxnReply, doing=doing, repeat=False, settled=True
                )
            except StoreError:
                raise
            except BaseException:
                self._gave_up |= number == self._marked
                raise
            if reply.succeeded:
                return reply
            if not reply.ranges[0].kvs:  # else it was overtaken by the mark for another that was given up
                inner = reply.responses[1].response_txn or wire.TxnReply()
                return wire.TxnReply(reply.header, responses=inner.responses)
            if number == self._marked and not self._gave_up:
                said = "etcd says that a mark is there which nobody has put"
                raise self.failed(doing, f" at {self.name}: {said}")

    def _mark(self, number: int) -> bytes:
        return self._marks + b"%d" % number

    async def _settle(self, doing: str) -> None:
        if not self._gave_up:
            return
        number = self._marked
        async with self._marking:
            if number != self._marked:  # another caller has seen to it
                return
            ttl = {"TTL": str(MARK_TTL)}
            lease = await self.call(
                "lease/grant", ttl, wire.LeaseReply, doing=doing, repeat=True, settled=True
            )
            mark = wire.txn([], [wire.put_op(self._mark(number), b"", lease.ID)])
            await self.call("kv/txn", mark, wire.TxnReply, doing=doing, repeat=True, settled=True)
            self._marked += 1
            self._gave_up = False
