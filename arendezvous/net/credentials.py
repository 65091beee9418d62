"""The credentials of a client, its token and TLS settings; and connecting by them, without haste."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any, Final, Self

import anyio
import anyio.abc
import msgspec

from arendezvous.net.tls import TLS_NAMES, FreshContext, TlsFiles, TlsNames, explain
from arendezvous.net.tokens import check_token, read_token
from arendezvous.net.typed import check_fields

_TRUE: Final = ("1", "true", "yes", "on")
_CA, _CERT, _KEY = "ARENDEZVOUS_TLS_CA", "ARENDEZVOUS_TLS_CERT", "ARENDEZVOUS_TLS_KEY"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """A bearer token, and TLS settings by their files. What is shown of it never contains the token.

    Attributes:
        token: The bearer token; empty: none.
        tls: Whether to speak TLS; any of the files below turns it on by itself.
        ca: A file with the certificates of the authorities to trust; empty: those of the system.
        cert: A file with this end's own certificate; empty: none.
        key: A file with the key of `cert`; empty: it is in the same file.
        server_name: The name that the server's certificate must have; empty: the endpoint's host.
        names: What errors call the files.

    Raises:
        RendezvousSettingsError: The token is too short, too long, or not of visible ASCII characters; or
            there is a key without a certificate.
    """

    token: str = ""
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""
    names: TlsNames = TLS_NAMES

    def __post_init__(self) -> None:
        check_fields(self)
        if self.token:
            check_token(self.token)
        _ = self.files  # which checks them

    def __bool__(self) -> bool:
        """Whether there is anything to show or to expect."""
        return bool(self.token) or self.uses_tls

    def __repr__(self) -> str:
        shown = [f"{name}={getattr(self, name)!r}" for name in ("ca", "cert", "key", "server_name")]
        return f"Credentials(token={'...' if self.token else ''!r}, tls={self.uses_tls}, {', '.join(shown)})"

    def __rich_repr__(self) -> Any:
        yield repr(self)

    @classmethod
    def of(
        cls,
        token: str | None = None,
        *,
        token_file: str = "",
        tls: bool | None = None,
        ca: str = "",
        cert: str = "",
        key: str = "",
        server_name: str = "",
        names: TlsNames = TLS_NAMES,
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """Takes what is given, and the rest from the environment.

        The variables are ``ARENDEZVOUS_TOKEN``, ``ARENDEZVOUS_TOKEN_FILE``, ``ARENDEZVOUS_TLS``,
        ``ARENDEZVOUS_TLS_CA``, ``ARENDEZVOUS_TLS_CERT``, ``ARENDEZVOUS_TLS_KEY`` and
        ``ARENDEZVOUS_TLS_SERVER_NAME``.

        Args:
            token: The token; None: from the file or the environment; empty: none.
            token_file: A file whose first word is the token.
            tls: Whether to speak TLS; None: as the environment says, or if there is any file for it.
            ca: See `Credentials`; so are the others.
            cert: See `Credentials`.
            key: See `Credentials`.
            server_name: See `Credentials`.
            names: What the user calls the files that are given; those from the environment go by the names of
                their variables.
            environ: The environment.

        Raises:
            RendezvousSettingsError: See `Credentials`; or a token file cannot be read, or has no token.
        """
        if token is None:
            if not token_file and not (token := environ.get("ARENDEZVOUS_TOKEN", "").strip()):
                token_file = environ.get("ARENDEZVOUS_TOKEN_FILE", "")
            token = read_token(token_file) if token_file else token
        if not ca and (ca := environ.get(_CA, "")):
            names = names._replace(ca=_CA)
        if not cert and not key:  # they belong together
            cert, key = environ.get(_CERT, ""), environ.get(_KEY, "")
            if cert or key:
                names = names._replace(cert=_CERT, key=_KEY)
        if tls is False:
            ca = cert = key = ""
        return cls(
            token=token or "",
            tls=environ.get("ARENDEZVOUS_TLS", "").lower() in _TRUE if tls is None else tls,
            ca=ca,
            cert=cert,
            key=key,
            server_name=server_name or environ.get("ARENDEZVOUS_TLS_SERVER_NAME", ""),
            names=names,
        )

    @property
    def files(self) -> TlsFiles:
        """The certificate files."""
        return TlsFiles(self.ca, self.cert, self.key, self.names)

    @property
    def uses_tls(self) -> bool:
        """Whether to speak TLS."""
        return self.tls or bool(self.files)

    @property
    def can_serve_tls(self) -> bool:
        """Whether a server can be hosted with them: one that speaks TLS needs a certificate."""
        return not self.uses_tls or bool(self.cert)

    def ssl_context(self) -> ssl.SSLContext | None:
        """Makes the TLS settings of a client, as `TlsFiles.client_context` does; None without TLS."""
        return self.files.client_context() if self.uses_tls else None

    def fresh_context(self) -> FreshContext | None:
        """As `ssl_context`, but following files that are replaced; shared by all who use the same files."""
        return self.files.fresh_client_context() if self.uses_tls else None

    def connecting(self, context: FreshContext | None, seconds: float) -> dict[str, Any]:
        """The arguments about TLS, from `fresh_context`, for asyncio's `create_connection`.

        A handshake may take so many seconds.
        """
        name = self.server_name or None
        tls = {"server_hostname": name, "ssl_handshake_timeout": seconds}
        return {"ssl": context.get(), **tls} if context else {}

    def headers(self) -> dict[str, str]:
        """The headers that show the token to an HTTP server; none without a token."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


NO_CREDENTIALS: Final = Credentials()


async def connect(host: str, port: int, credentials: Credentials) -> anyio.abc.ByteStream:
    """Connects, with TLS if the credentials say so. Cancellation: safe.

    Raises `OSError` if there is no connection to be had, or the handshake failed, and
    `anyio.BrokenResourceError` if the server broke it off; `why` says either in words. Raises as
    `ssl_context` does, too.
    """
    context = credentials.ssl_context()
    if context is None:
        return await anyio.connect_tcp(host, port)
    name = credentials.server_name or host
    strict = False  # our frames have lengths: a cut is noticed without TLS's own end
    try:
        return await anyio.connect_tcp(
            host, port, ssl_context=context, tls_hostname=name, tls_standard_compatible=strict
        )
    except anyio.EndOfStream as error:
        raise anyio.BrokenResourceError from error


def why(error: BaseException, credentials: Credentials) -> str:
    """Says why there is no connection, or not any more; empty if `error` does not tell."""
    cause = error.__cause__ or error
    said = explain(cause, credentials.names)
    if isinstance(error, anyio.BrokenResourceError) and not said:
        return "the connection was broken off"
    return said or str(cause)
