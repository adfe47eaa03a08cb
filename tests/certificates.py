"""A hospital's CA of a test's own, and the certificates it signs, made by the `openssl` program.

Flow: tests > [certificates] > openssl
Never: a key that is used twice; a certificate from anywhere else.
"""

from __future__ import annotations

import hashlib
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dicomnode.settings import TlsSettings
from tests.conftest import find_peer_program

LOCAL_NAMES = "IP:127.0.0.1,DNS:localhost"
NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


@dataclass(frozen=True)
class Identity:
    """A certificate and its private key, both PEM files."""

    certificate: Path
    key: Path

    @property
    def sha256(self) -> str:
        """Its fingerprint, hexadecimal."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate.read_text())).hexdigest()


class Authority:
    """A CA in a folder; `certificate` is what those who trust it need."""

    def __init__(self, folder: Path, name: str = "Hospital CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        made: list[str | Path] = [
            "-keyout",
            self._key,
            "-out",
            self.certificate,
            "-days",
            "3650",
            "-subj",
            f"/CN={name}",
        ]
        run_openssl("req", "-x509", *NEW_KEY, *made)

    def sign(
        self, subject: str, *, names: str = LOCAL_NAMES, days: int = 365, new_key: tuple[str, ...] = tuple(NEW_KEY)
    ) -> Identity:
        """Return a new certificate for a subject such as "/O=Hospital/CN=node"; with negative days it has expired."""
        stem = self.folder / f"{len(list(self.folder.glob('*.csr')))}"
        key, request, certificate = (stem.with_suffix(ending) for ending in (".key", ".csr", ".pem"))
        extensions = stem.with_suffix(".ext")
        extensions.write_text(f"subjectAltName={names}\nbasicConstraints=CA:FALSE\n", encoding="utf-8")
        run_openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", subject)
        run_openssl(
            "x509", "-req", "-in", request, "-out", certificate, "-days", str(days), "-extfile", extensions,
            "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
        )  # fmt: skip
        return Identity(certificate, key)

    def settings(self, identity: Identity, port: int = 2762, *, require_client_certificate: bool = True) -> TlsSettings:
        """Return the [tls] of a node with this identity that trusts this CA."""
        return TlsSettings(
            certificate=str(identity.certificate),
            key=str(identity.key),
            ca=str(self.certificate),
            port=port,
            require_client_certificate=require_client_certificate,
        )

    def dcmtk_options(self, identity: Identity) -> list[str]:
        """Return what DCMTK's programs need to be this identity and to trust this CA."""
        return ["+tls", str(identity.key), str(identity.certificate), "+cf", str(self.certificate)]


def run_openssl(*arguments: str | Path) -> str:
    """Run `openssl`, and return what it printed."""
    command = [find_peer_program("openssl"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
