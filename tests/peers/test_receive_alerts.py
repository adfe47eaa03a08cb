"""The audit trail is told of callers that are refused or break a rule, counted where they come again and again.

Flow: dicomnode.receive > [test_receive_alerts] > DCMTK, openssl
Never: a peer beyond loopback.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dicomnode.audit import NODE_AUTHENTICATION, Party
from dicomnode.database.audit import fetch_messages, open_audit
from dicomnode.receive.alerts import KEPT_AT_MOST, REPEATED_AFTER_S, Alerts
from dicomnode.settings_reporting import AuditSettings
from tests.audit_collectors import details_of, event_of
from tests.certificates import Authority
from tests.peers.test_receive_dcmtk import make_files
from tests.peers_programs import LOOPBACK, free_port, send_with_dcmtk
from tests.storage_scp import RunningScp
from tests.waiting import wait_until

WAIT_S = 20.0
NODE_ALERT, FUNCTION_ALERT = "Security Alert: Node Authentication", "Security Alert: Use of Restricted Function"


def told_of(node: RunningScp) -> list[tuple[str, str, str, int]]:
    """Return what waits for the audit trail: event, caller, description and count."""
    with node.database.read() as connection:
        texts = [message.text for message in fetch_messages(connection, "file", 1000)]
    told = []
    for text in texts:
        values = [base64.b64decode(one).decode("utf-8") for one in details_of(text, ".//*[@type]", "value")]
        told.append((event_of(text), details_of(text, "ActiveParticipant", "UserID")[1], values[0], int(values[1])))
    return told


def audited(node: RunningScp) -> RunningScp:
    node.settings = node.settings.model_copy(update={"audit": AuditSettings(file="/unused/audit.log")})
    return node


def test_strangers_rule_breakers_and_failed_handshakes_are_told_of(tmp_path: Path, authority: Authority) -> None:
    files = make_files(tmp_path / "files", count=1)
    tls = authority.settings(authority.sign("/CN=fusion.example.org"), free_port())
    with audited(RunningScp(tmp_path / "node", tls=tls)) as node:
        for _ in range(3):
            assert not send_with_dcmtk(files, node.port, called="DICOMNODE", calling="STRANGER").all_stored
        assert not send_with_dcmtk(files, node.port, called="DICOMNODE", calling="VIEWER").all_stored
        for port in (tls.port, node.port):
            with socket.create_connection((LOOPBACK, port), WAIT_S) as plain, suppress(ConnectionResetError):
                plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
                plain.recv(100)

        def are_told() -> bool:
            node.scp.step()
            return len(told_of(node)) >= 4

        wait_until(are_told, WAIT_S, "four alerts")
        told = told_of(node)
        assert [(event, caller, count) for event, caller, _, count in told] == [
            (NODE_ALERT, "STRANGER", 3),
            (FUNCTION_ALERT, "VIEWER", 1),
            (NODE_ALERT, "unknown", 1),
            (FUNCTION_ALERT, "unknown", 1),
        ]
        assert "'STRANGER' called us from 127.0.0.1, but no configured peer has this AE title" in told[0][2]
        assert told[1][2] == "peer 'VIEWER' at 127.0.0.1 has no may = [\"store\"]"
        assert told[2][2] == "it spoke HTTP, not TLS"
        assert send_with_dcmtk(files, node.port, called="DICOMNODE", calling="SCANNER").all_stored
        assert len(told_of(node)) == 4


def test_without_an_audit_trail_alerts_are_forgotten(tmp_path: Path) -> None:
    with RunningScp(tmp_path) as node:
        alerts, _ = _alerts(0.0)
        alerts.note(NODE_AUTHENTICATION, "rule", "why", Party("A", "10.0.0.1"))
        alerts.write(node.database, node.settings)
        assert told_of(node) == []


def test_what_comes_again_is_counted_and_said_once_a_minute(tmp_path: Path) -> None:
    with audited(RunningScp(tmp_path)) as node:
        alerts, set_clock = _alerts(100.0)
        with node.database.write() as connection:
            open_audit(connection, ["file"], 0.0)
        for second in range(130):
            set_clock(100.0 + second)
            for _ in range(10):
                alerts.note(NODE_AUTHENTICATION, "rule", f"at {second}", Party("A", "10.0.0.1"))
            alerts.write(node.database, node.settings)
        assert [(why, count) for _, _, why, count in told_of(node)] == [
            ("at 0", 10),
            (f"at {REPEATED_AFTER_S:g}", 600),
            (f"at {2 * REPEATED_AFTER_S:g}", 600),
        ]
        set_clock(5.0)  # put back
        alerts.write(node.database, node.settings)
        assert told_of(node)[-1][3] == 90


def test_callers_without_number_fill_neither_memory_nor_disk(tmp_path: Path) -> None:
    with audited(RunningScp(tmp_path)) as node:
        alerts, _ = _alerts(100.0)
        for number in range(KEPT_AT_MOST + 500):
            alerts.note(NODE_AUTHENTICATION, "rule", "why", Party("A", f"10.0.{number // 256}.{number % 256}"))
        alerts.write(node.database, node.settings)
        with node.database.read() as connection:
            texts = [message.text for message in fetch_messages(connection, "file", 10000)]
        assert len(texts) == KEPT_AT_MOST + 1
        assert told_of(node)[-1][0] == NODE_ALERT
        assert details_of(texts[-1], "ActiveParticipant", "UserID")[1] == "many callers"


def _alerts(now: float) -> tuple[Alerts, Callable[[float], None]]:
    clock = [now]
    return Alerts(lambda: clock[0]), lambda at: clock.__setitem__(0, at)
