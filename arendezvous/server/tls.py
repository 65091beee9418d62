"""TLS at the listeners: settings that follow their files."""

from __future__ import annotations

import ssl

from arendezvous.net.tls import TLS_NAMES, FreshContext, TlsFiles, TlsNames
from arendezvous.net.typed import typed


class ServerTls:
    """The TLS settings of a server, the same at all of its listeners. Versions before TLS 1.2 are refused.

    Files that are replaced are used from the next handshake on; an authority that was taken away is not
    trusted any more then. Files that are of no use leave the settings as they are.

    Args:
        cert: A file with the server's certificate, and those between it and the authority, in PEM.
        key: A file with the key of `cert`, not encrypted; empty: it is in the same file.
        ca: A file with the certificates of the authorities, one of which must have signed the certificate
            that every client then has to show (mutual TLS); empty: clients need none.
        names: What the user calls these files, for errors.

    Attributes:
        files: The files.
        context: For asyncio and aiohttp, which keep it; each handshake gets the settings of its moment.

    Raises:
        RendezvousSettingsError: A file cannot be read, or holds something else.
    """

    @typed
    def __init__(self, cert: str, key: str = "", ca: str = "", *, names: TlsNames = TLS_NAMES) -> None:
        self.files = TlsFiles(ca, cert, key, names)
        self._fresh = FreshContext(self.files, TlsFiles.server_context)
        self.context = self._fresh.get()
        self.context.sni_callback = self._on_hello

    def __repr__(self) -> str:
        return f"ServerTls(cert={self.files.cert!r}, key={self.files.key!r}, ca={self.files.ca!r})"

    @property
    def is_mutual(self) -> bool:
        """Whether clients have to show a certificate."""
        return bool(self.files.ca)

    def reload(self) -> bool:
        """Reads the files again; returns whether that went well. If not, the settings stay as they were."""
        return self._fresh.reload()

    def _on_hello(self, connection: ssl.SSLObject, *_: object) -> None:
        """Gives a handshake the settings of this moment: OpenSSL calls it at the start of each."""
        connection.context = self._fresh.get()
