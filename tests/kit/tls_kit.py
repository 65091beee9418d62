"""Certificates for tests, made anew for each process, and servers that use them."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import trustme

from arendezvous.net.credentials import Credentials
from arendezvous.server.tls import ServerTls

TOKEN = "a-token-for-tests-0123456789"
OTHER = "another-token-for-tests-9876"


@dataclass(frozen=True)
class Pki:
    """An authority, and the files of certificates that it has signed."""

    ca: str
    cert: str
    key: str
    expired_cert: str
    expired_key: str
    other_name_cert: str
    other_name_key: str
    foreign_ca: str
    foreign_cert: str
    foreign_key: str

    def server(self, *, mutual: bool = False) -> ServerTls:
        return ServerTls(self.cert, self.key, self.ca if mutual else "")

    def client(self, *, token: str = "", certificate: bool = False, server_name: str = "") -> Credentials:
        cert, key = (self.cert, self.key) if certificate else ("", "")
        return Credentials(token=token, ca=self.ca, cert=cert, key=key, server_name=server_name)


def make_pki(directory: Path) -> Pki:
    """Writes everything into `directory`."""
    authority, foreign = trustme.CA(), trustme.CA()
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    leaves = {
        "good": authority.issue_cert("localhost", "127.0.0.1"),
        "expired": authority.issue_cert("localhost", "127.0.0.1", not_after=past),
        "other_name": authority.issue_cert("elsewhere.example"),
        "foreign": foreign.issue_cert("localhost", "127.0.0.1"),
    }
    paths: dict[str, tuple[str, str]] = {}
    for name, leaf in leaves.items():
        cert, key = directory / f"{name}.pem", directory / f"{name}.key"
        cert.write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())
        paths[name] = str(cert), str(key)
    for name, ca in (("ca", authority), ("foreign_ca", foreign)):
        ca.cert_pem.write_to_path(str(directory / f"{name}.pem"))
    return Pki(
        str(directory / "ca.pem"),
        *paths["good"],
        *paths["expired"],
        *paths["other_name"],
        str(directory / "foreign_ca.pem"),
        *paths["foreign"],
    )
