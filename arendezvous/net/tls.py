"""TLS settings from certificate files, for both ends, and what went wrong with them in words."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Final

from arendezvous.errors import RendezvousSettingsError

HANDSHAKE: Final = 0x16  # the first byte of whoever begins to speak TLS
ALERT: Final = 0x15  # and of a TLS server that answers somebody who does not

_HOSTNAME_MISMATCH: Final = (62, 64)  # of a name, of an address: X509_V_ERR_*
_EXPIRED, _NOT_YET_VALID = 10, 9
_NO_TLS: Final = (
    "WRONG_VERSION_NUMBER",
    "UNEXPECTED_EOF_WHILE_READING",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
)
_ALERTS: Final = {
    "CERTIFICATE_REQUIRED": "the server asks for a client certificate: give tls_cert and tls_key",
    "UNKNOWN_CA": "the other end does not trust the certificate of this one: another authority has signed it",
    "CERTIFICATE_EXPIRED": "the other end says that the certificate of this one has expired",
    "BAD_CERTIFICATE": "the other end rejects the certificate of this one",
    "CERTIFICATE_UNKNOWN": "the other end rejects the certificate of this one",
    "PROTOCOL_VERSION": "the two ends have no version of TLS in common",
}


def client_context(ca: str = "", cert: str = "", key: str = "") -> ssl.SSLContext:
    """Makes the settings of a client: it checks the server's certificate, name included.

    Args:
        ca: A file with the certificates of the authorities to trust; empty: those of the system.
        cert: A file with the client's own certificate, and those between it and the authority; empty: none.
        key: A file with the key of `cert`; empty: it is in the same file.

    Raises:
        RendezvousSettingsError: A file cannot be read, or holds something else.
    """
    if ca:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        load_authorities(context, ca)
    else:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert:
        load_identity(context, cert, key)
    return context


def server_context(cert: str, key: str = "", ca: str = "") -> ssl.SSLContext:
    """Makes the settings of a server.

    Args:
        cert: A file with the server's certificate, and those between it and the authority.
        key: A file with the key of `cert`; empty: it is in the same file.
        ca: A file with the certificates of the authorities, one of which must have signed the certificate of
            every client; empty: clients need none.

    Raises:
        RendezvousSettingsError: A file cannot be read, or holds something else.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    load_identity(context, cert, key)
    if ca:
        load_authorities(context, ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def load_identity(context: ssl.SSLContext, cert: str, key: str = "") -> None:
    """Gives `context` a certificate and its key; those of handshakes from now on.

    Raises:
        RendezvousSettingsError: A file cannot be read, holds something else, or the key is encrypted, or that
            of another certificate.
    """
    _require_readable("tls_cert", cert)
    if key:
        _require_readable("tls_key", key)
    try:
        context.load_cert_chain(cert, key or None, password=_refuse_password)
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        what = "belongs to another certificate" if mismatch else f"cannot be used: {error.reason or error}"
        expected = f"the key, in PEM and not encrypted, of the certificate in {cert}"
        raise RendezvousSettingsError(
            f"the key in {key or cert} {what}; expected {expected}",
            name="tls_key",
            value=key or cert,
            expected=expected,
        ) from error


def load_authorities(context: ssl.SSLContext, ca: str) -> None:
    """Has `context` trust the authorities in the file `ca`.

    Raises:
        RendezvousSettingsError: It cannot be read, or holds no certificate.
    """
    _require_readable("tls_ca", ca)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise RendezvousSettingsError.of("tls_ca", ca, "a file with certificates in PEM") from error


class FreshContext:
    """TLS settings that follow their files: made anew once one of these has been replaced.

    Args:
        make: Makes the settings.
        files: The files that they are made from.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext], *files: str) -> None:
        self._make = make
        self._files = [file for file in files if file]
        self._seen = self._stamps()
        self._context = make()

    def get(self) -> ssl.SSLContext:
        """The settings. Files that cannot be used now leave them as they are."""
        stamps = self._stamps()
        if stamps != self._seen:
            try:
                self._context = self._make()
            except RendezvousSettingsError:
                return self._context  # they are being replaced this moment: the next handshake looks again
            self._seen = stamps
        return self._context

    def _stamps(self) -> list[tuple[int, ...]]:
        return [file_stamp(file) for file in self._files]


def explain(error: BaseException) -> str:
    """Says in words why a handshake failed; empty if that was not for TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error)
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if reason.endswith(_NO_TLS):
            return "the server there does not speak TLS on this port: leave TLS out, or start it with TLS"
        if reason == "HTTP_REQUEST":
            return "somebody speaks plain HTTP to a port for TLS"
        if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return "the client has shown no certificate, and this server asks for one"
        for alert, words in _ALERTS.items():
            if reason.endswith(f"ALERT_{alert}"):
                return words
        return f"TLS failed: {reason or error}"
    return ""


def _explain_certificate(error: ssl.SSLCertVerificationError) -> str:
    code, said = error.verify_code, error.verify_message
    if code in _HOSTNAME_MISMATCH:
        return (
            f"the certificate is for another name ({said}): use a name that it has in the endpoint, or say"
            " which one to expect by tls_server_name"
        )
    if code == _EXPIRED:
        return "the certificate there has expired: it must be renewed"
    if code == _NOT_YET_VALID:
        return "the certificate there is not valid yet: is this machine's clock right?"
    return (
        f"the certificate there is not trusted ({said}): tls_ca must be the file of the authority that"
        " signed it"
    )


def _require_readable(name: str, path: str) -> None:
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        expected = "a file that can be read"
        raise RendezvousSettingsError(
            f"{name} is {path!r}, which cannot be read: {error.strerror or error}",
            name=name,
            value=path,
            expected=expected,
        ) from error


def file_stamp(path: str) -> tuple[int, ...]:
    """Changes whenever the file is written or replaced; empty while there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _refuse_password() -> str:
    """Stands for the terminal, at which OpenSSL would ask for the password of an encrypted key."""
    return ""
