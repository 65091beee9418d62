"""What a client shows a server, and what it expects of one: its token and its TLS settings."""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.tls import FreshContext, client_context

MIN_TOKEN: Final = 16  # characters: fewer could be guessed
MAX_TOKEN: Final = 1024
_TRUE: Final = ("1", "true", "yes", "on")


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """A bearer token, and TLS settings by their files. What is shown of it never contains the token.

    Attributes:
        token: The bearer token; empty: none.
        tls: Whether to speak TLS; any of the files below turns it on by itself.
        ca: A file with the certificates of the authorities to trust; empty: those of the system.
        cert: A file with this end's own certificate; empty: none.
        key: A file with the key of `cert`; empty: it is in the same file.
        server_name: The name that the server's certificate must have; empty: the endpoint's host.

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

    def __post_init__(self) -> None:
        if self.token:
            check_token(self.token)
        if self.key and not self.cert:
            raise RendezvousSettingsError.of("tls_cert", self.cert, "the certificate to the key in tls_key")

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
            environ: The environment.

        Raises:
            RendezvousSettingsError: See `Credentials`; or a token file cannot be read, or has no token.
        """
        if token is None:
            if not token_file and not (token := environ.get("ARENDEZVOUS_TOKEN", "").strip()):
                token_file = environ.get("ARENDEZVOUS_TOKEN_FILE", "")
            token = read_token(token_file) if token_file else token
        plain = tls is False
        if not cert and not key:  # they belong together
            cert, key = (environ.get(f"ARENDEZVOUS_TLS_{name}", "") for name in ("CERT", "KEY"))
        return cls(
            token=token or "",
            tls=environ.get("ARENDEZVOUS_TLS", "").lower() in _TRUE if tls is None else tls,
            ca="" if plain else ca or environ.get("ARENDEZVOUS_TLS_CA", ""),
            cert="" if plain else cert,
            key="" if plain else key,
            server_name=server_name or environ.get("ARENDEZVOUS_TLS_SERVER_NAME", ""),
        )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Takes everything from the environment; see `of`."""
        return cls.of(environ=environ)

    @property
    def uses_tls(self) -> bool:
        """Whether to speak TLS."""
        return self.tls or bool(self.ca or self.cert)

    @property
    def can_serve_tls(self) -> bool:
        """Whether a server can be hosted with them: one that speaks TLS needs a certificate."""
        return not self.uses_tls or bool(self.cert)

    def ssl_context(self) -> ssl.SSLContext | None:
        """Makes the TLS settings of a client; None without TLS.

        Raises:
            RendezvousSettingsError: A file cannot be read, or holds something else.
        """
        return client_context(self.ca, self.cert, self.key) if self.uses_tls else None

    def fresh_context(self) -> FreshContext | None:
        """As `ssl_context`, but following files that are replaced; shared by all who use the same files."""
        return _shared_context(self.ca, self.cert, self.key) if self.uses_tls else None

    def connecting(self, context: FreshContext | None, seconds: float) -> dict[str, Any]:
        """The arguments about TLS for asyncio's `create_connection`.

        Args:
            context: From `fresh_context`.
            seconds: How long a handshake may take.
        """
        if context is None:
            return {}
        return {
            "ssl": context.get(),
            "server_hostname": self.server_name or None,
            "ssl_handshake_timeout": seconds,
        }

    def headers(self) -> dict[str, str]:
        """The headers that show the token to an HTTP server; none without a token."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


NO_CREDENTIALS: Final = Credentials()


@functools.lru_cache(maxsize=32)
def _shared_context(ca: str, cert: str, key: str) -> FreshContext:
    return FreshContext(lambda: client_context(ca, cert, key), ca, cert, key)


def check_token(token: str) -> None:
    """Checks that `token` can be one; it is not in the error.

    Raises:
        RendezvousSettingsError: It is too short, too long, or not of visible ASCII characters.
    """
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN or not all("!" <= character <= "~" for character in token):
        expected = (
            f"{MIN_TOKEN} to {MAX_TOKEN} visible ASCII characters, hard to guess, such as"
            " 'openssl rand -hex 32' makes"
        )
        raise RendezvousSettingsError(
            f"the token has {len(token)} characters, but must be {expected}", name="token", expected=expected
        )


def read_token(path: str) -> str:
    """Reads the token of a client: the first word of a file, whose lines may be those of a server's file.

    Raises:
        RendezvousSettingsError: The file cannot be read, or its first word is no token.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(64 * 1024)
    except OSError as error:
        why = error.strerror or str(error)
        raise RendezvousSettingsError(
            f"the token file {path} cannot be read: {why}", name="token_file", value=path
        ) from error
    for line in content.decode("utf-8-sig", "replace").splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            check_token(words[0])
            return words[0]
    raise RendezvousSettingsError(
        f"the token file {path} holds no token; its first word must be one", name="token_file", value=path
    )
