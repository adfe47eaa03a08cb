"""Who keeps the audit trail: rsyslog by TLS and UDP, and the schema of the standard that every message must fit.

Flow: tests > [audit_collectors] > rsyslogd, xmllint
Never: a port beyond loopback; a message that is read otherwise than as rsyslog wrote it.
"""

from __future__ import annotations

import socket
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.certificates import Authority
from tests.conftest import find_peer_program
from tests.peers_programs import LOOPBACK, Process, free_port

CALLER = "test"
SCHEMA = Path(__file__).with_name("audit_message.rng")
CONFIGURATION = """
global(workDirectory="{folder}" maxMessageSize="64k"
  defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile="{ca}"
  defaultNetstreamDriverCertFile="{certificate}" defaultNetstreamDriverKeyFile="{key}")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
module(load="imudp")
template(name="kept" type="string" string="%pri% %protocol-version% %hostname% %app-name% %msgid% %msg%\\n")
ruleset(name="keep") {{ action(type="omfile" file="{kept}" template="kept") }}
input(type="imtcp" address="{loopback}" port="{tls_port}" ruleset="keep")
input(type="imudp" address="{loopback}" port="{udp_port}" ruleset="keep")
"""


@dataclass(frozen=True)
class Kept:
    """One message as the collector took it apart."""

    priority: int
    version: str
    host: str
    application: str
    message_id: str
    text: str


class Rsyslog(Process):
    """rsyslogd with a port for TLS, which asks for a certificate, and one for UDP."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        identity = authority.sign("/CN=audit.example.org")
        self.kept, self.tls_port, self.udp_port = folder / "kept.log", free_port(), free_port()
        configuration = folder / "rsyslog.conf"
        values = {
            "folder": folder,
            "ca": authority.certificate,
            "certificate": identity.certificate,
            "key": identity.key,
            "kept": self.kept,
            "loopback": LOOPBACK,
            "tls_port": self.tls_port,
            "udp_port": self.udp_port,
        }
        configuration.write_text(CONFIGURATION.format(**values), encoding="utf-8")
        command: list[str | Path] = [
            find_peer_program("rsyslogd"),
            "-n",
            "-f",
            configuration,
            "-i",
            folder / "rsyslog.pid",
        ]
        super().__init__(command, folder / "rsyslogd.log", (self.tls_port,))

    def _has_come_up(self) -> bool:
        """Tell whether it keeps what it is sent: rsyslog 8.2302 loses messages of who calls while it still starts."""
        if not super()._has_come_up():
            return False
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.sendto(b"<13>1 - - " + CALLER.encode() + b" - - - up?", (LOOPBACK, self.udp_port))
        return self.kept.exists()

    def messages(self) -> list[Kept]:
        """Return what it has kept, in its order, but for our asking whether it has come up."""
        if not self.kept.exists():
            return []
        lines = [line.split(" ", 5) for line in self.kept.read_text(encoding="utf-8").splitlines()]
        return [Kept(int(line[0]), *line[1:]) for line in lines if line[3] != CALLER]


def find_schema_errors(folder: Path, texts: Iterable[str]) -> list[str]:
    """Return what is wrong with messages by the schema of PS3.15 A.5.1."""
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"message-{number}.xml")
        paths[-1].write_text(text, encoding="utf-8")
    command: list[str | Path] = [find_peer_program("xmllint"), "--noout", "--relaxng", SCHEMA, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [line for line in done.stderr.splitlines() if not line.endswith(" validates")]


def event_of(text: str) -> str:
    """Return what a message is about: its event, and its type where it has one."""
    event = ET.fromstring(text)[0]  # noqa: S314 - written by the node
    return ": ".join(one.get("originalText", "") for one in event if one.get("originalText"))


def details_of(text: str, path: str, attribute: str) -> list[str]:
    """Return an attribute of each element of a message at a path."""
    return [one.get(attribute, "") for one in ET.fromstring(text).iterfind(path)]  # noqa: S314 - see above
