"""Reads X.509 certificates: until when one is valid, and how it is named in settings and logs.

Flow: tls|receive > [certificates] > PEM files, TLS connections
Never: a decision whom to trust (OpenSSL makes that); a private key.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PEM_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# RFC 5280 4.1: DER tags of what stands before the validity in a TBSCertificate, and of its two kinds of time.
EXPLICIT_VERSION, UTC_TIME = 0xA0, 0x17
SHORT_NAMES = {  # as `openssl x509 -subject` writes them; OpenSSL's long names are what Python gives
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "givenName": "GN",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "surname": "SN",
    "userId": "UID",
}
NEEDS_QUOTES = re.compile(r"[,+<>;]|^[# ]| $")  # RFC 4514 2.4


@dataclass(frozen=True)
class Validity:
    """From when until when one certificate is valid."""

    not_before: datetime
    not_after: datetime


@dataclass(frozen=True)
class PeerCertificate:
    """What a peer showed, and OpenSSL found to be signed by a CA we trust."""

    sha256: str  # of its DER form, hexadecimal
    subject: str  # as `openssl x509 -subject` writes it

    def __str__(self) -> str:
        """Name it for a log: a subject is the peer's own text, and is escaped."""
        return f"{self.subject!a} (SHA-256 {self.sha256})"


def read_validities(path: Path) -> list[Validity]:
    """Return the validity of each certificate of a PEM file, in its order; none where it holds none.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If one of its certificates is not base64, or no certificate.
    """
    text = path.read_text(encoding="latin-1")  # comments may be in any encoding
    return [_find_validity(ssl.PEM_cert_to_DER_cert(found[0])) for found in PEM_CERTIFICATE.finditer(text)]


def read_peer_certificate(connection: ssl.SSLSocket) -> PeerCertificate | None:
    """Return the certificate that the other side of a connection proved to own; None where it showed none."""
    encoded, decoded = connection.getpeercert(binary_form=True), connection.getpeercert()
    if not encoded or not decoded:
        return None
    # One tuple of (name, value) pairs for each relative distinguished name; typeshed knows them as tuples of anything.
    names: tuple[tuple[tuple[str, str], ...], ...] = decoded["subject"]  # type: ignore[assignment]  # see above
    return PeerCertificate(hashlib.sha256(encoded).hexdigest(), show_subject(names))


def show_subject(names: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    """Write a subject as `openssl x509 -subject` does: `O = Hospital, CN = mr.example.org`."""
    shown = [[f"{SHORT_NAMES.get(key, key)} = {_quote(value)}" for key, value in name] for name in names]
    return ", ".join(" + ".join(parts) for parts in shown)


def _quote(value: str) -> str:
    escaped = re.sub(r'(["\\])', r"\\\1", value)
    return f'"{escaped}"' if NEEDS_QUOTES.search(value) else escaped


def _find_validity(der: bytes) -> Validity:
    """Find Certificate.tbsCertificate.validity (RFC 5280 4.1); Python decodes it for a peer's certificate only."""
    ((_, certificate),) = _read_elements(der)
    (_, fields), *_ = _read_elements(certificate)
    parts = [part for part in _read_elements(fields) if part[0] != EXPLICIT_VERSION]
    _serial_number, _signature, _issuer, (_, validity), *_ = parts
    not_before, not_after = (_read_time(tag, value) for tag, value in _read_elements(validity))
    return Validity(not_before, not_after)


def _read_elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tag and the value of each DER element (X.690 8.1) of a run of them."""
    at = 0
    while at < len(data):
        tag, length = data[at], int.from_bytes(data[at + 1 : at + 2], "big")
        at += 2
        if length & 0x80:  # the long form: the length of the length
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if at + length > len(data):
            raise ValueError(f"an element of {length} bytes is cut off after {len(data) - at}")
        yield tag, data[at : at + length]
        at += length


def _read_time(tag: int, value: bytes) -> datetime:
    """Read a UTCTime or GeneralizedTime, which RFC 5280 4.1.2.5 wants in seconds and UTC."""
    text = value.decode("ascii")
    if tag == UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
