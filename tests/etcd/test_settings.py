"""How to reach etcd, as users say it: options with torch's names, the environment, and no secret shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

import arendezvous as ar
from arendezvous.errors import RendezvousSettingsError
from arendezvous.etcd.settings import etcd_arguments
from arendezvous.net.tls import TlsNames
from arendezvous.schemes import parse_endpoint

SCHEMES = ["etcd", "etcd-v2"]
ENDPOINT = parse_endpoint("etcd://h")


def params(backend: str, **options: Any) -> ar.RendezvousParameters:
    return ar.RendezvousParameters(backend, "h1:1,h2", "job", 1, 1, **options)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_several_members_make_one_endpoint(scheme: str) -> None:
    handler = ar.get_rendezvous_handler(params(scheme))
    assert handler.get_backend() == scheme
    assert handler.endpoint == f"{scheme}://h1:1,h2:2379"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"cacert": "ca", "cert": "c", "key": "k", "etcd_prefix": "/p"}, ("cacert", "cert", "key")),
        (
            {"ca_cert": "ca", "ssl_cert": "c", "ssl_cert_key": "k", "etcd_prefix": "/p", "protocol": "HTTPS"},
            ("ca_cert", "ssl_cert", "ssl_cert_key"),
        ),
        (
            {"ca_cert": "ca", "cacert": "ca", "cert": "c", "key": "k", "etcd_prefix": "/p", "user": None},
            ("cacert", "cert", "key"),
        ),
    ],
)
def test_both_of_stocks_names_for_a_file_mean_the_same(
    options: dict[str, Any], names: tuple[str, str, str]
) -> None:
    found = etcd_arguments(options, parse_endpoint("etcd://h1,[::1]:1"), {})
    files = ar.TlsFiles("ca", "c", "k", TlsNames(*names))
    urls = ("https://h1:2379", "https://[::1]:1")
    assert found == {"cluster": ar.EtcdCluster(urls=urls, tls=files), "prefix": "/p"}


def test_the_user_comes_from_options_files_or_the_environment_and_the_password_is_not_shown(
    tmp_path: Path,
) -> None:
    file = tmp_path / "password"
    file.write_text("from a file\r\nnot this\n")
    environ = {"ARENDEZVOUS_ETCD_USER": "bob", "ARENDEZVOUS_ETCD_PASSWORD": "bob's"}
    found = [
        etcd_arguments(options, ENDPOINT, variables)["cluster"]
        for options, variables in [
            ({"user": "ann", "password": "ann's"}, environ),
            ({"user": "ann", "password_file": str(file)}, environ),
            ({}, environ),
            ({"user": "ann"}, {"ARENDEZVOUS_ETCD_PASSWORD_FILE": str(file)}),
            ({}, {}),
        ]
    ]
    assert [(cluster.user, cluster.password) for cluster in found] == [
        ("ann", "ann's"), ("ann", "from a file"), ("bob", "bob's"), ("ann", "from a file"), ("", ""),
    ]  # fmt: skip
    for shown in (repr(found), str(found)):
        assert "ann's" not in shown
        assert "from a file" not in shown


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        ({"protocol": "ftp"}, "protocol", "must be http or https"),
        ({"protocol": "http", "cert": "c"}, "protocol", "must be https, because cert is given, too"),
        ({"cert": "a", "ssl_cert": "b"}, "ssl_cert", "must be the same as cert, or left out"),
        ({"etcd_prefix": "/"}, "etcd_prefix", "text that sets these keys apart"),
        ({"password": "secret"}, "user", "the name of the user whose password is given"),
        ({"user": "ann", "password_file": "/absent"}, "password_file", "'/absent', which cannot be read"),
    ],
)
def test_what_cannot_be_right_is_refused(options: dict[str, Any], name: str, said: str) -> None:
    with pytest.raises(RendezvousSettingsError, match=said) as caught:
        etcd_arguments(options, ENDPOINT, {})
    assert caught.value.name == name
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cacert": "absent"}, "cacert is 'absent', which cannot be read: No such file"),
        ({"ca_cert": "absent"}, "ca_cert is 'absent', which cannot be read: No such file"),
        ({"ssl_cert": "bad"}, "ssl_cert is 'bad', but must be a file with certificates in PEM"),
        ({"cert": "good", "ssl_cert_key": "bad"}, "ssl_cert_key is 'bad', but the key in it cannot be used"),
        ({"key": "good"}, "cert is '', but must be the certificate to the key in key"),
    ],
)
def test_a_file_that_is_of_no_use_is_told_of_by_the_name_of_the_option_that_was_given(
    scheme: str, options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad").write_text("no certificate")
    trustme.CA().issue_cert("h").private_key_and_cert_chain_pem.write_to_path("good")
    with pytest.raises(RendezvousSettingsError, match=said) as caught:
        ar.open_rendezvous(f"{scheme}://h", run_id="job", min_nodes=1, **options)
    assert caught.value.name == said.split()[0]


def test_an_empty_file_is_no_password(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(RendezvousSettingsError, match="a file whose first line is the password"):
        etcd_arguments({"user": "ann", "password_file": str(tmp_path / "empty")}, ENDPOINT, {})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_options_are_checked_by_their_names_and_a_password_among_torchs_parameters_is_refused(
    scheme: str,
) -> None:
    for options, said in [
        ({"cacrt": "ca.pem"}, r"no option 'cacrt' \(did you mean 'cacert'\?\)"),
        ({"user": "ann", "password": "secret"}, "password must be left out: options are shown in logs"),
        *[
            ({"token": "0123456789abcdef"}, f"token must be left out for {v2}")
            for v2 in {scheme} & {"etcd-v2"}
        ],
        ({"tls_server_name": "a"}, "tls_server_name must be left out for etcd"),
    ]:
        with pytest.raises(RendezvousSettingsError, match=said) as caught:
            ar.get_rendezvous_handler(params(scheme, **options))
        assert "secret" not in str(caught.value)


def test_an_option_of_etcd_means_nothing_elsewhere_and_a_misspelt_one_nothing_at_all() -> None:
    with pytest.raises(RendezvousSettingsError, match="user must be left out for memory://"):
        ar.open_rendezvous("memory://", run_id="job", min_nodes=1, user="ann")
    misspelt: dict[str, Any] = {"pasword": "secret"}
    with pytest.raises(RendezvousSettingsError, match=r"pasword is no setting .* did you mean password\?"):
        ar.open_rendezvous("etcd://h", run_id="job", min_nodes=1, **misspelt)
    handler = ar.open_rendezvous("etcd-v2://h", run_id="job", min_nodes=1, user="ann", password="secret")
    assert "secret" not in repr(handler) + handler.endpoint
