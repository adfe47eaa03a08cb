"""Which certificates are named when they run out, and that no file is used that OpenSSL would not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicomnode.certificates import Validity
from dicomnode.errors import ConfigurationError
from dicomnode.settings import TlsSettings
from dicomnode.tls import (
    Certificate,
    find_expiring,
    find_invalid,
    find_problems,
    make_client_context,
    make_server_context,
)
from tests.certificates import Authority, Identity, run_openssl

NOW = datetime(2026, 3, 4, 10, 15, tzinfo=UTC)
Spoil = Callable[[Authority, Identity], tuple[str, Path]]


def certificate(starts_in_days: float, ends_in_days: float) -> Certificate:
    start, end = (NOW + timedelta(days=days) for days in (starts_in_days, ends_in_days))
    return Certificate("certificate", Path("node.pem"), Validity(start, end))


@pytest.mark.parametrize(
    ("starts_in_days", "ends_in_days", "is_expiring", "problem"),
    [
        (-1, 31, False, None),
        (-1, 29, True, None),
        (-1, 0, True, None),
        (-9, -1, False, "node.pem: the certificate expired at 2026-03-03 10:15:00+00:00; put a new one in its place"),
        (1, 9, True, "node.pem: the certificate is valid from 2026-03-05 10:15:00+00:00 on; is the clock of this"),
    ],
)
def test_an_end_is_named_in_time(
    starts_in_days: float, ends_in_days: float, is_expiring: bool, problem: str | None
) -> None:
    one = certificate(starts_in_days, ends_in_days)
    assert find_expiring([one], NOW) == ([one] if is_expiring else [])
    found = [text for _, text in find_invalid([one], NOW)]
    assert found[0].startswith(problem) if problem else found == [], found


def another_key(authority: Authority, identity: Identity) -> tuple[str, Path]:
    return "key", authority.sign("/CN=other").key


def another_kind_of_key(authority: Authority, identity: Identity) -> tuple[str, Path]:
    return "key", authority.sign("/CN=other", new_key=("-newkey", "rsa:2048", "-nodes")).key


def locked_key(authority: Authority, identity: Identity) -> tuple[str, Path]:
    path = authority.folder / "locked.key"
    run_openssl("pkey", "-in", identity.key, "-out", path, "-aes256", "-passout", "pass:secret")
    return "key", path


def damaged_key(authority: Authority, identity: Identity) -> tuple[str, Path]:
    path = authority.folder / "damaged.key"
    path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", encoding="ascii")
    return "key", path


def weak(authority: Authority, identity: Identity) -> tuple[str, Path]:
    return "certificate", authority.sign("/CN=weak", new_key=("-newkey", "rsa:1024", "-nodes")).certificate


def no_certificate(authority: Authority, identity: Identity) -> tuple[str, Path]:
    return "certificate", identity.key


def no_key(authority: Authority, identity: Identity) -> tuple[str, Path]:
    return "key", identity.certificate


def missing(authority: Authority, identity: Identity) -> tuple[str, Path]:
    return "ca", authority.folder / "none.pem"


def a_folder(authority: Authority, identity: Identity) -> tuple[str, Path]:
    return "ca", authority.folder


def damaged(authority: Authority, identity: Identity) -> tuple[str, Path]:
    path = authority.folder / "damaged.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", encoding="ascii")
    return "ca", path


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (another_key, "does not fit {certificate}; name the key that certificate was made for"),
        (another_kind_of_key, "does not fit {certificate}; name the key that certificate was made for"),
        (locked_key, "is locked by a passphrase; name a key without, which only the node's user may read"),
        (damaged_key, "; make the PEM file again from its source"),
        (weak, "ee key too small; RSA 2048 or P-256 with SHA-256 is needed, or more"),
        (no_certificate, "holds no certificate; name a PEM file with BEGIN CERTIFICATE"),
        (no_key, "holds no private key; name a PEM file with BEGIN PRIVATE KEY"),
        (missing, "No such file or directory; name a PEM file that the node's user may read"),
        (a_folder, "Is a directory; name a PEM file that the node's user may read"),
        (damaged, "a certificate cannot be read: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_key_and_fix(tmp_path: Path, spoil: Spoil, text: str) -> None:
    authority = Authority(tmp_path)
    identity = authority.sign("/CN=node")
    good = authority.settings(identity)
    assert list(find_problems(good)) == []
    key, path = spoil(authority, identity)
    changed: dict[str, str] = {key: str(path)}
    if spoil is weak:
        changed["key"] = str(path.with_suffix(".key"))
    tls = good.model_copy(update=changed)
    ((found_key, found),) = find_problems(tls)
    assert found_key == key
    assert found.startswith(f"{path}: ")
    assert text.format(certificate=good.certificate) in found
    for make in (make_client_context, make_server_context):
        with pytest.raises(ConfigurationError, match=f"^tls.{key}: "):
            make(tls)


def test_without_files_we_trust_this_machine_s_cas_to_be_called_and_none_to_call(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    assert make_client_context(TlsSettings()).cert_store_stats()["x509_ca"] >= 0
    own = make_client_context(TlsSettings(ca=str(authority.certificate)))
    assert own.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}
    tls = authority.settings(authority.sign("/CN=node"), require_client_certificate=False)
    anybody = make_server_context(tls.model_copy(update={"ca": ""}))
    assert anybody.cert_store_stats() == {"x509": 0, "crl": 0, "x509_ca": 0}
