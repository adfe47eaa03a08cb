"""What is read of a certificate is what OpenSSL says of it, whatever its form."""

from __future__ import annotations

import _ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dicomnode.certificates import read_validities, show_subject
from tests.certificates import Authority, run_openssl

RSA = ("-newkey", "rsa:2048", "-nodes")


def openssl_dates(path: Path) -> list[datetime]:
    lines = run_openssl("x509", "-noout", "-dates", "-in", path).splitlines()
    shown = [line.partition("=")[2] for line in lines]
    return [datetime.strptime(text, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC) for text in shown]


@pytest.mark.parametrize("days", [1, 365, 36500])  # the last one ends in a GeneralizedTime (RFC 5280 4.1.2.5)
def test_the_validity_is_openssl_s(tmp_path: Path, days: int) -> None:
    authority = Authority(tmp_path)
    for identity in (authority.sign("/CN=ec", days=days), authority.sign("/CN=rsa", days=days, new_key=RSA)):
        (found,) = read_validities(identity.certificate)
        assert [found.not_before, found.not_after] == openssl_dates(identity.certificate)


def test_a_version_1_certificate_has_a_validity_too(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    request = authority.sign("/CN=old").certificate.with_suffix(".csr")
    run_openssl("x509", "-req", "-in", request, "-out", tmp_path / "v1.pem", "-CA", authority.certificate, "-CAkey",
                tmp_path / "ca.key", "-days", "9")  # fmt: skip
    (found,) = read_validities(tmp_path / "v1.pem")
    assert [found.not_before, found.not_after] == openssl_dates(tmp_path / "v1.pem")


def test_a_file_gives_every_certificate_in_its_order(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    leaf = authority.sign("/CN=leaf", days=7)
    both = tmp_path / "chain.pem"
    both.write_bytes(b"# caf\xe9\n" + leaf.certificate.read_bytes() + b"\n" + authority.certificate.read_bytes())
    assert read_validities(both) == [*read_validities(leaf.certificate), *read_validities(authority.certificate)]
    assert read_validities(leaf.key) == []


@pytest.mark.parametrize("cut", [20, 200, 300])
def test_a_damaged_certificate_is_an_error_of_values(tmp_path: Path, cut: int) -> None:
    lines = Authority(tmp_path).certificate.read_text(encoding="ascii").splitlines()
    body = "".join(lines[1:-1])[:cut]
    (tmp_path / "cut.pem").write_text(f"{lines[0]}\n{body}\n{lines[-1]}\n", encoding="ascii")
    with pytest.raises(ValueError, match=r".+"):
        read_validities(tmp_path / "cut.pem")


@pytest.mark.parametrize(
    "subject",
    ["/O=Hospital/CN=ct", "/C=DE/O=Acme, Inc/OU=a+b/CN=x", '/CN=say "no"', "/CN=a\\\\b", "/DC=org/UID=7/CN=a#"],
)
def test_a_subject_is_written_as_openssl_writes_it(tmp_path: Path, subject: str) -> None:
    identity = Authority(tmp_path).sign(subject)
    wanted = run_openssl("x509", "-noout", "-subject", "-in", identity.certificate).strip().removeprefix("subject=")
    assert show_subject(_decode(identity.certificate)) == wanted


def _decode(path: Path) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Let Python decode a certificate as it does for a peer's."""
    decoded: dict[str, Any] = _ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]  # for Python's own tests
    subject: tuple[tuple[tuple[str, str], ...], ...] = decoded["subject"]
    return subject
