"""The audit trail of a whole node, killed and started again: every transfer is told of, and nothing of a patient.

Flow: dicomnode serve > [test_audit_node] > DCMTK, xmllint
Never: a look into the node's memory; its file says it.
"""

from __future__ import annotations

import base64
import os
import signal
from pathlib import Path

from pydicom import dcmread

from tests.audit_collectors import details_of, event_of, find_schema_errors
from tests.builders import NodeProcess, Peer, make_config
from tests.peers.test_receive_dcmtk import make_files
from tests.peers_programs import free_port, send_with_dcmtk
from tests.waiting import wait_until

WAIT_S = 60.0


def _read(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines() if path.exists() else []


def _events(path: Path) -> list[str]:
    return [event_of(text) for text in _read(path)]


def test_a_node_that_is_killed_tells_of_what_it_took_when_it_is_back(tmp_path: Path) -> None:
    port, trail = free_port(), tmp_path / "audit.log"
    config = make_config(tmp_path, [Peer("scanner", "SCANNER")], port, {"audit": {"file": str(trail)}})
    files = make_files(tmp_path / "files", count=3)
    with NodeProcess(config, port, roles=("receive", "send")) as node:
        assert not send_with_dcmtk(files, port, called="DICOMNODE", calling="STRANGER").all_stored
        wait_until(lambda: len(_events(trail)) == 2, WAIT_S, "the stranger being told of")
        assert send_with_dcmtk(files, port, called="DICOMNODE", calling="SCANNER").all_stored
        node.kill()
    with NodeProcess(config, port, roles=("receive", "send")) as node:
        wait_until(lambda: "DICOM Instances Transferred" in _events(trail), WAIT_S, "the transfer being told of")
        text = config.read_text(encoding="utf-8").replace("study_quiet_period_s = 0.5", "study_quiet_period_s = 0.7")
        config.write_text(text, encoding="utf-8")
        os.kill(node.pid, signal.SIGHUP)
        wait_until(lambda: "Software" in "".join(_events(trail)), WAIT_S, "the change being told of")
        assert node.stop() == 0
    texts = _read(trail)
    transferred = [text for text in texts if event_of(text) == "DICOM Instances Transferred"]
    counts = [int(count) for text in transferred for count in details_of(text, ".//SOPClass", "NumberOfInstances")]
    assert sum(counts) == len(files)
    assert {details_of(text, "ActiveParticipant", "UserID")[0] for text in transferred} == {"SCANNER"}
    others = [event for event in _events(trail) if event != "DICOM Instances Transferred"]
    assert others == [
        "Application Activity: Application Start",
        "Security Alert: Node Authentication",
        "Application Activity: Application Start",
        "Security Alert: Software Configuration",
        "Application Activity: Application Stop",
    ]
    assert find_schema_errors(tmp_path, texts) == []
    patient = dcmread(files[0])
    values = [base64.b64decode(one).decode() for text in texts for one in details_of(text, ".//*[@value]", "value")]
    told = "\n".join([*texts, *values])
    assert str(patient.PatientName) not in told
    assert str(patient.PatientID) not in told
