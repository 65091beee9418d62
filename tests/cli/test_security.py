"""Tokens and TLS on the command line: of the server, of those who look at it, and of the doctor."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from arendezvous.doctor.checks import Level, judge_certificate
from tests.kit import cli_kit
from tests.kit.cli_kit import Result, Running, run_apart, running
from tests.kit.tls_kit import OTHER, TOKEN, Pki, make_pki


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """The server's file, with one token for everything."""
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


@asynccontextmanager
async def serving(*options: str) -> AsyncIterator[tuple[str, Running]]:
    async with running("serve", "--port", "0", *options) as server:
        yield (await server.line()).split()[1], server


def _write(file: Path, text: str) -> None:
    file.write_text(text)


async def as_bearer(monkeypatch: pytest.MonkeyPatch, token: str, *command: str) -> Result:
    monkeypatch.setitem(cli_kit.ENV, "ARENDEZVOUS_TOKEN", token)
    return await run_apart(*command)


async def test_a_server_with_a_token_file_lets_in_whoever_shows_a_token_of_it(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.write_text(TOKEN)
    async with serving("--token-file", str(tokens), "--host", "0.0.0.0") as (url, server):
        refused = await run_apart("status", url)
        assert (refused.code, refused.out) == (1, "")
        said = "this server asks for a token, and none was given; give one by --token-file"
        assert f"error: {said}, or by ARENDEZVOUS_TOKEN" in refused.err
        assert (await run_apart("status", url, "--token-file", str(mine))).code == 0
        assert (await as_bearer(monkeypatch, TOKEN, "status", url)).code == 0
        wrong = await as_bearer(monkeypatch, OTHER, "explain", url, "job")
        assert "this server does not know the token that was given" in wrong.err
        assert OTHER not in wrong.err
        server.send_signal(signal.SIGTERM)
        ended = await server.end()
    assert "refused: this server does not know the token" in ended.err
    assert not [token for token in (TOKEN, OTHER) if token in ended.out + ended.err]


async def test_a_hangup_has_the_token_file_read_again(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving("--token-file", str(tokens), "--verbose") as (url, server):
        _write(tokens, f"{OTHER}\n")
        server.send_signal(signal.SIGHUP)
        assert (await as_bearer(monkeypatch, OTHER, "status", url)).code == 0
        assert (await as_bearer(monkeypatch, TOKEN, "status", url)).code == 1
        server.send_signal(signal.SIGTERM)
        ended = await server.end()
    assert "was read again: 1 token added, 1 removed" in ended.err


async def test_the_server_takes_its_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli_kit.ENV, "ARENDEZVOUS_TOKEN", TOKEN)
    async with serving() as (url, _):
        assert (await run_apart("status", url)).code == 0
        assert (await as_bearer(monkeypatch, OTHER, "status", url)).code == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--tls-ca", "FILE"], "--tls-ca is"),
        (["--token-file", "FILE"], "has a bad token in line 1"),
        (["--token-file", "absent"], "cannot be read"),
        (["--tls-cert", "absent"], "--tls-cert is 'absent', which cannot be read"),
    ],
)
async def test_what_makes_no_safe_server_is_refused_with_usage(
    tmp_path: Path, options: list[str], said: str
) -> None:
    file = tmp_path / "file"
    file.write_text("short")
    result = await run_apart(
        "serve", "--port", "0", *[str(file) if word == "FILE" else word for word in options]
    )
    assert (result.code, result.out) == (2, "")
    assert said in result.err


async def test_every_command_reaches_a_server_over_tls(
    pki: Pki, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ("--tls-cert", pki.cert, "--tls-key", pki.key)
    monkeypatch.setitem(cli_kit.ENV, "ARENDEZVOUS_TOKEN", TOKEN)
    async with serving("--token-file", str(tokens), *tls) as (url, _):
        assert (await run_apart("status", url, "--tls-ca", pki.ca)).code == 0
        plain = await run_apart("status", url, "--timeout", "3")
        assert (plain.code, "it answers with TLS: give --tls-ca" in plain.err) == (3, True)
        monkeypatch.setitem(cli_kit.ENV, "ARENDEZVOUS_TLS_CA", pki.ca)
        for command in ("close", "explain", "reopen"):
            assert f"there is no run 'job' at {url}" in (await run_apart(command, url, "job")).err
        async with running("watch", url, "job", "--json") as watching:
            assert "status" in await watching.line()
        doctor = await run_apart("doctor", url)
        assert doctor.code == 0, doctor.out
        assert "the certificate is trusted, and good until" in doctor.out
        assert "an arendezvous server (protocol version 2" in doctor.out


@pytest.mark.parametrize(
    ("token", "ca", "said"),
    [
        (OTHER, "ca", "failed   server     an arendezvous server that refuses us (this server does not know"),
        ("", "ca", "an arendezvous server that refuses us (this server asks for a token, and none was given"),
        (TOKEN, "foreign_ca", "failed   tls        the certificate there is not trusted"),
        (TOKEN, "", "somebody who expects TLS; give --tls-ca"),
    ],
)
async def test_the_doctor_says_what_is_wrong_with_the_token_or_tls(
    pki: Pki, tokens: Path, monkeypatch: pytest.MonkeyPatch, token: str, ca: str, said: str
) -> None:
    async with serving("--token-file", str(tokens), "--tls-cert", pki.cert, "--tls-key", pki.key) as (url, _):
        options = ("--tls-ca", getattr(pki, ca)) if ca else ()
        result = await as_bearer(monkeypatch, token, "doctor", url, *options)
    assert result.code == 1
    assert said in result.out
    assert TOKEN not in result.out
    assert OTHER not in result.out


@pytest.mark.parametrize("certificate", ["expired", "other_name"])
async def test_the_doctor_says_what_is_wrong_with_the_certificate(pki: Pki, certificate: str) -> None:
    cert, key = getattr(pki, f"{certificate}_cert"), getattr(pki, f"{certificate}_key")
    async with serving("--tls-cert", cert, "--tls-key", key) as (url, _):
        result = await run_apart("doctor", url, "--tls-ca", pki.ca)
    said = {"expired": "has expired: it must be renewed", "other_name": "is for another name"}
    assert result.code == 1
    assert said[certificate] in result.out


async def test_the_doctor_says_that_a_server_has_no_tls_or_asks_for_a_certificate(pki: Pki) -> None:
    async with serving() as (url, _):
        result = await run_apart("doctor", url, "--tls-ca", pki.ca)
        assert "failed   tls" in result.out
        assert "does not speak TLS on this port" in result.out
    async with serving("--tls-cert", pki.cert, "--tls-key", pki.key, "--tls-ca", pki.ca) as (url, _):
        result = await run_apart("doctor", url, "--tls-ca", pki.ca)
        assert "it may ask for a certificate: give --tls-cert and --tls-key" in result.out
        own = ("--tls-cert", pki.cert, "--tls-key", pki.key)
        assert (await run_apart("doctor", url, "--tls-ca", pki.ca, *own)).code == 0


def test_a_certificate_that_expires_soon_is_a_warning() -> None:
    not_after = "Jan 10 00:00:00 2030 GMT"
    day = 86_400
    end = 1_893_456_000 + 9 * day
    expected = [Level.OK, Level.WARNING]
    assert [judge_certificate("TLSv1.3", not_after, end - days * day).level for days in (8, 6)] == expected
    assert "6.0 days from now; renew it" in str(judge_certificate("TLSv1.3", not_after, end - 6 * day))
