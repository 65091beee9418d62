"""Certificate files, the TLS settings made of them for either end, and what went wrong with TLS in words."""

from __future__ import annotations

import functools
import logging
import os
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from arendezvous.errors import RendezvousSettingsError
from arendezvous.net.typed import check_fields

logger = logging.getLogger(__name__)

HANDSHAKE: Final = 0x16  # the first byte of whoever begins to speak TLS
ALERT: Final = 0x15  # and of a TLS server that answers somebody who does not

_HOSTNAME_MISMATCH: Final = (62, 64)  # of a name, of an address: X509_V_ERR_*
_INVALID: Final = {
    9: "the certificate there is not valid yet: is this machine's clock right?",
    10: "the certificate there has expired: it must be renewed",
}
_CERTIFICATES: Final = "a file with certificates in PEM"
_NO_TLS: Final = "the server there does not speak TLS on this port: leave TLS out, or start it with TLS"
_REASONS: Final = {  # how OpenSSL's end; an alert is what the other end says of this one
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "UNEXPECTED_EOF_WHILE_READING": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
    "HTTP_REQUEST": "somebody speaks plain HTTP to a port for TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client has shown no certificate, and this server asks for one",
    "ALERT_CERTIFICATE_REQUIRED": (
        "the server asks for a client certificate: give {names.cert} and {names.key}"
    ),
    "ALERT_UNKNOWN_CA": (
        "the other end does not trust the certificate of this one: another authority has signed it"
    ),
    "ALERT_CERTIFICATE_EXPIRED": "the other end says that the certificate of this one has expired",
    "ALERT_BAD_CERTIFICATE": (  # servers in Go say this to whoever has none
        "the other end rejects the certificate of this one, or misses one: see {names.cert} and {names.key}"
    ),
    "ALERT_CERTIFICATE_UNKNOWN": "the other end rejects the certificate of this one",
    "ALERT_PROTOCOL_VERSION": "the two ends have no version of TLS in common",
}


class TlsNames(NamedTuple):
    """Says what the user calls the options of TLS, for errors and advice; empty where there is none."""

    ca: str
    cert: str
    key: str
    server_name: str = ""


TLS_NAMES: Final = TlsNames("tls_ca", "tls_cert", "tls_key", "tls_server_name")
COMMAND_NAMES: Final = TlsNames("--tls-ca", "--tls-cert", "--tls-key", "--tls-server-name")


class TlsFiles(msgspec.Struct, frozen=True):
    """The certificate files of one end of a connection, in PEM. Whoever has none of them is falsy.

    Attributes:
        ca: A file with the certificates of the authorities that may have signed the other end's; empty: at a
            client those of the system, and at a server no certificate is asked for.
        cert: A file with this end's certificate, and those between it and the authority; empty: none.
        key: A file with the key of `cert`, not encrypted; empty: it is in the same file.
        names: What errors call them.

    Raises:
        RendezvousSettingsError: There is a key without a certificate.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    names: TlsNames = TLS_NAMES

    def __post_init__(self) -> None:
        check_fields(self)
        if self.key and not self.cert:
            expected = f"the certificate to the key in {self.names.key}"
            raise RendezvousSettingsError.of(self.names.cert, self.cert, expected)

    def __bool__(self) -> bool:
        """Whether there is any file."""
        return bool(self.ca or self.cert)

    def client_context(self) -> ssl.SSLContext:
        """Makes the settings of a client: it checks the server's certificate, name included.

        Raises:
            RendezvousSettingsError: A file cannot be read, or holds something else.
        """
        if self.ca:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._load_authorities(context)
        else:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert:
            self._load_certificate(context)
        return context

    def server_context(self) -> ssl.SSLContext:
        """Makes the settings of a server, which has to have a certificate; with `ca`, its clients, too.

        Raises:
            RendezvousSettingsError: A file cannot be read, or holds something else.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        self._load_certificate(context)
        if self.ca:
            self._load_authorities(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    @functools.lru_cache(maxsize=32)  # noqa: B019 - it may keep so many that nobody uses any more
    def fresh_client_context(self) -> FreshContext:
        """Returns the settings of a client, shared by all who use the same files and kept up to date.

        Raises:
            RendezvousSettingsError: A file cannot be read, or holds something else.
        """
        return FreshContext(self, TlsFiles.client_context)

    def stamps(self) -> tuple[tuple[int, ...], ...]:
        """Returns what changes whenever one of the files is written or replaced."""
        return tuple(map(file_stamp, _given(self)))

    def _load_authorities(self, context: ssl.SSLContext) -> None:
        _require_readable(self.names.ca, self.ca)
        try:
            context.load_verify_locations(self.ca)
        except OSError as error:  # those of OpenSSL, too
            raise RendezvousSettingsError.of(self.names.ca, self.ca, _CERTIFICATES) from error

    def _load_certificate(self, context: ssl.SSLContext) -> None:
        names, key = self.names, self.key or self.cert
        _require_readable(names.cert, self.cert)
        if self.key:
            _require_readable(names.key, self.key)
        try:
            context.load_cert_chain(self.cert, self.key or None, password=str)  # none: OpenSSL asks nobody
        except OSError as error:
            if not _has_certificates(self.cert):
                raise RendezvousSettingsError.of(names.cert, self.cert, _CERTIFICATES) from error
            name, reason = names.key if self.key else names.cert, getattr(error, "reason", None)
            mismatch = reason == "KEY_VALUES_MISMATCH"
            what = "belongs to another certificate" if mismatch else f"cannot be used: {reason or error}"
            expected = f"the key, in PEM and not encrypted, of the certificate in {self.cert}"
            said = f"{name} is {key!r}, but the key in it {what}; expected {expected}"
            raise RendezvousSettingsError(said, name=name, value=key, expected=expected) from error


NO_FILES: Final = TlsFiles()


def _given(files: TlsFiles) -> list[str]:
    return [file for file in (files.ca, files.cert, files.key) if file]


class FreshContext:
    """TLS settings that follow their files: made anew, by `make`, once one of these has been replaced.

    Raises:
        RendezvousSettingsError: A file cannot be read, or holds something else.

    Its fields:
        _context: The settings as they were made last.
        _seen: The stamps of the files that `_context` was made of.
        _refused: The stamps of files that were of no use, so that this is logged once; empty if none were.
    """

    def __init__(self, files: TlsFiles, make: Callable[[TlsFiles], ssl.SSLContext]) -> None:
        self._files = files
        self._make = make
        self._seen = files.stamps()
        self._refused: tuple[tuple[int, ...], ...] = ()
        self._context = make(files)

    def get(self) -> ssl.SSLContext:
        """Returns the settings for the next handshake; files that are of no use leave them as they are."""
        if self._files.stamps() != self._seen:
            self.reload()
        return self._context

    def reload(self) -> bool:
        """Reads the files again; returns whether that went well. If not, the settings stay as they were."""
        stamps = self._files.stamps()
        try:
            self._context = self._make(self._files)
        except RendezvousSettingsError as error:
            if stamps != self._refused:
                self._refused = stamps
                logger.error("the TLS settings stay as they are: %s", error)  # noqa: TRY400 - it says it all
            return False
        self._seen = stamps
        logger.info("the certificates in %s were read again", ", ".join(_given(self._files)))
        return True


def explain(error: BaseException, names: TlsNames = TLS_NAMES) -> str:
    """Says in words, with `names` for the options, why a handshake failed; empty if that was not for TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error, names)
    if not isinstance(error, ssl.SSLError):
        return ""
    reason = error.reason or ""
    known = (words.format(names=names) for end, words in _REASONS.items() if reason.endswith(end))
    return next(known, f"TLS failed: {reason or error}")


def speaks_no_tls(error: BaseException | None) -> bool:
    """Tells whether a handshake failed because the other side answered with something else than TLS."""
    return isinstance(error, ssl.SSLError) and (error.reason or "").endswith("WRONG_VERSION_NUMBER")


def _explain_certificate(error: ssl.SSLCertVerificationError, names: TlsNames) -> str:
    code, said = error.verify_code, error.verify_message
    if code in _HOSTNAME_MISMATCH:
        other = f", or say which one to expect by {names.server_name}" if names.server_name else ""
        return f"the certificate is for another name ({said}): use a name that it has in the endpoint{other}"
    trust = f"{names.ca} must be the file of the authority that signed it"
    return _INVALID.get(code, f"the certificate there is not trusted ({said}): {trust}")


def _require_readable(name: str, path: str) -> None:
    try:
        with open(path, "rb"):
            return
    except (OSError, ValueError) as error:  # a path with a null byte is no value
        said = f"{name} is {path!r}, which cannot be read: {getattr(error, 'strerror', None) or error}"
        expected = "a file that can be read"
        raise RendezvousSettingsError(said, name=name, value=path, expected=expected) from error


def _has_certificates(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:
        return False
    return True


def file_stamp(path: str) -> tuple[int, ...]:
    """Changes whenever the file is written or replaced; empty while there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)
