"""Makes TLS contexts from the settings, and says what is wrong with the files they name.

Flow: app|cli|receive|send > [tls] > certificates, settings
Never: a protocol or cipher suite outside of BCP 195; a trust in CAs of this machine for those who call us.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from dicomnode.certificates import PeerCertificate, Validity, read_validities
from dicomnode.errors import ConfigurationError
from dicomnode.setting_values import check_subject
from dicomnode.settings import PeerSettings, TlsSettings

# PS3.15 annex B, BCP 195 RFC 8996, 9325 profile: for TLS 1.2 ephemeral keys and AEAD alone, and no key below 112 bits
# of security. TLS 1.3 has no other suites.
CIPHERS_1_2 = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20"
EXPIRES_SOON = timedelta(days=30)
# How OpenSSL says it: another key, or one of another kind.
KEY_DOES_NOT_FIT = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}
TOO_WEAK = ("KEY_TOO_SMALL", "MD_TOO_WEAK")

Problem = tuple[str, str]  # the key below [tls], and what is wrong with its value


@dataclass(frozen=True)
class Certificate:
    """A certificate that the settings name: by which key, in which file, and how long it is valid."""

    key: str
    path: Path
    validity: Validity


class _KeyIsLockedError(Exception):
    """OpenSSL asks for a passphrase, and would ask on the terminal."""


def make_server_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return what callers meet: our certificate, and which of theirs we trust.

    Raises
    ------
    ConfigurationError
        If a file cannot be used.
    """
    context = _make_context(ssl.PROTOCOL_TLS_SERVER, tls)
    context.num_tickets = 0  # nobody resumes an association, and a ticket unasked for disturbs a peer that waits
    if tls.ca:
        context.verify_mode = ssl.CERT_REQUIRED if tls.require_client_certificate else ssl.CERT_OPTIONAL
    return context


def make_client_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return how we call: our certificate if we have one, and which of the peers' we trust, by the host's name.

    Raises
    ------
    ConfigurationError
        If a file cannot be used.
    """
    context = _make_context(ssl.PROTOCOL_TLS_CLIENT, tls)
    if not tls.ca:
        context.load_default_certs()
    return context


def make_trusting_context(ca: str) -> ssl.SSLContext:
    """Return how we call whoever is not a peer: without a certificate of ours, and by the host's name.

    Parameters
    ----------
    ca : str
        PEM file of the CAs that are trusted; "" is those of this machine.

    Raises
    ------
    ConfigurationError
        If the file cannot be used.
    """
    context = _bare_context(ssl.PROTOCOL_TLS_CLIENT)
    if not ca:
        context.load_default_certs()
        return context
    if problem := find_ca_problem(ca):
        raise ConfigurationError(problem)
    context.load_verify_locations(ca)
    return context


def find_ca_problem(ca: str) -> str | None:
    """Return why a PEM file of CAs cannot be used, None where it can or where none is named."""
    if not ca:
        return None
    return _find_problem("ca", ca) or next((text for _, text in _find_misfit(TlsSettings(ca=ca))), None)


def check_tls(tls: TlsSettings) -> None:
    """Raise `ConfigurationError` for the first file that cannot be used; an expired certificate can be."""
    for key, text in find_problems(tls):
        raise ConfigurationError(f"tls.{key}: {text}")


def find_problems(tls: TlsSettings) -> Iterator[Problem]:
    """Yield whatever keeps the files from being used."""
    wrong = [(key, text) for key in ("certificate", "key", "ca") if (text := _find_problem(key, getattr(tls, key)))]
    yield from wrong
    if not wrong:
        yield from _find_misfit(tls)


def read_certificates(tls: TlsSettings) -> list[Certificate]:
    """Return every certificate of the files; raises `ConfigurationError` where they cannot be used."""
    check_tls(tls)
    return [
        Certificate(key, Path(name), validity)
        for key, name in (("certificate", tls.certificate), ("ca", tls.ca))
        if name
        for validity in read_validities(Path(name))
    ]


def find_invalid(certificates: list[Certificate], now: datetime) -> Iterator[tuple[Certificate, str]]:
    """Yield the certificates that nobody should accept at `now`, and why."""
    for one in certificates:
        if now > one.validity.not_after:
            yield one, f"{one.path}: the certificate expired at {one.validity.not_after}; put a new one in its place"
        elif now < one.validity.not_before:
            text = f"the certificate is valid from {one.validity.not_before} on; is the clock of this machine right?"
            yield one, f"{one.path}: {text}"


def find_expiring(certificates: list[Certificate], now: datetime) -> list[Certificate]:
    """Return the certificates that are valid still, but not for long."""
    return [one for one in certificates if now <= one.validity.not_after < now + EXPIRES_SOON]


def is_proven(peer: PeerSettings, shown: PeerCertificate | None) -> bool:
    """Tell whether a peer showed the certificate that it is configured with, if it is with any."""
    if not (peer.certificate_sha256 or peer.certificate_subject):
        return True
    if shown is None:
        return False
    is_same_subject = peer.certificate_subject in ("", check_subject(shown.subject))
    return is_same_subject and peer.certificate_sha256 in ("", shown.sha256)


def show_needed_certificate(peer: PeerSettings) -> str:
    """Name the certificate that a peer is configured with."""
    parts = {"certificate_sha256": peer.certificate_sha256, "certificate_subject": peer.certificate_subject}
    return " and ".join(f"{name} {value!a}" for name, value in parts.items() if value)


def _make_context(protocol: ssl._SSLMethod, tls: TlsSettings) -> ssl.SSLContext:
    check_tls(tls)
    context = _bare_context(protocol)
    if tls.certificate:
        context.load_cert_chain(tls.certificate, tls.key)
    if tls.ca:
        context.load_verify_locations(tls.ca)
    return context


def _bare_context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_1_2)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    return context


def _find_problem(key: str, name: str) -> str | None:
    """Say what is wrong with one file, taken alone."""
    if not name:
        return None
    what = "private key" if key == "key" else "certificate"
    try:
        text = Path(name).read_text(encoding="latin-1")
        count = len(read_validities(Path(name))) if key != "key" else text.count("PRIVATE KEY-----") // 2
    except OSError as error:
        return f"{name}: {error.strerror}; name a PEM file that the node's user may read"
    except ValueError as error:
        return f"{name}: a certificate cannot be read: {error}; make the PEM file again from its source"
    return None if count else f"{name}: holds no {what}; name a PEM file with BEGIN {what.upper()}"


def _find_misfit(tls: TlsSettings) -> Iterator[Problem]:
    """Yield what OpenSSL finds wrong with the files, and with one beside the other."""
    context = _bare_context(ssl.PROTOCOL_TLS_SERVER)
    try:
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key, password=_refuse_to_unlock)
    except _KeyIsLockedError:
        yield "key", f"{tls.key}: is locked by a passphrase; name a key without, which only the node's user may read"
    except ssl.SSLError as error:
        if error.reason in KEY_DOES_NOT_FIT:
            yield "key", f"{tls.key}: does not fit {tls.certificate}; name the key that certificate was made for"
        elif (error.reason or "").endswith(TOO_WEAK):
            yield "certificate", f"{tls.certificate}: {_show(error)}; RSA 2048 or P-256 with SHA-256 is needed, or more"
        else:
            yield "key", f"{tls.key}: {_show(error)}; make the PEM file again from its source"
    try:
        if tls.ca:
            context.load_verify_locations(tls.ca)
    except ssl.SSLError as error:
        yield "ca", f"{tls.ca}: {_show(error)}; make the PEM file again from its source"


def _refuse_to_unlock() -> str:
    raise _KeyIsLockedError


def _show(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
