"""A whole node and input it cannot use: each refused with its reason, and the node goes on working.

Flow: storescu, raw bytes > node process > [test_bad_input]
Never: what the receiving parts alone can prove (their tests send the rest of what is malformed).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import CTImageStorage

from dicomnode.demo.patient import Person
from tests.builders import NODE_AE, NodeProcess, Patient, Peer, make_config, make_patient, run_command
from tests.peers_programs import LOOPBACK, StoreScp, data_set_bytes, free_port, send_with_dcmtk
from tests.raw_scu import RawScu
from tests.waiting import wait_until

SCANNER = Peer("scanner", "STORESCU")
DECISION_S = 30.0
REGISTRATION_S = 240.0
CANNOT_UNDERSTAND = 0xC000  # PS3.4 table B.2-1
DECIDED_JOB = {"done", "failed", "review"}


def series_uid(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID)


def wait_for_state(node: NodeProcess, path: Path, *states: str) -> dict[str, Any]:
    """Wait until the series of a file is in one of these states, and return its row."""
    uid = series_uid(path)
    wait_until(lambda: node.show_series(uid)["state"] in states, DECISION_S, f"series in {states}")
    return node.show_series(uid)


def send(port: int, files: list[Path]) -> None:
    sent = send_with_dcmtk(files, port, called=NODE_AE)
    assert sent.all_stored, sent.output[-2000:]


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that receives and pairs, and registers nothing."""
    port = free_port()
    config = make_config(tmp_path_factory.mktemp("receiver"), [SCANNER], port)
    with NodeProcess(config, port, ["receive", "pair"]) as node:
        yield node


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    return make_patient(tmp_path_factory.mktemp("patient"), seed=1)


def assert_still_works(node: NodeProcess, tmp_path: Path, seed_of_uids: str) -> None:
    """A new patient's series goes in and is complete."""
    again = make_patient(tmp_path, seed=1, person=Person(patient_id=seed_of_uids))
    send(node.port, again.pet_files)
    wait_for_state(node, again.pet_files[0], "complete", "unpaired")


def test_a_series_of_one_slice_is_refused_with_the_reason(receiver: NodeProcess, tmp_path: Path) -> None:
    one = make_patient(tmp_path, seed=1, person=Person(patient_id="ONE-SLICE"))
    send(receiver.port, one.mr_files[:1])
    row = wait_for_state(receiver, one.mr_files[0], "refused")
    assert row["reason"] == "1 slices, at least 8 needed"
    shown = run_command("series", "show", row["series_uid"], "--config", receiver.config, "--json").json
    assert (shown["state"], shown["reason"]) == ("refused", row["reason"])


def test_a_ct_is_refused_at_negotiation_and_leaves_nothing(
    receiver: NodeProcess, patient: Patient, tmp_path: Path
) -> None:
    ct = pydicom.dcmread(patient.mr_files[0])
    ct.SOPClassUID = ct.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ct.Modality = "CT"
    ct.SeriesInstanceUID += ".1"
    ct.save_as(tmp_path / "ct.dcm")
    sent = send_with_dcmtk([tmp_path / "ct.dcm"], receiver.port, called=NODE_AE)
    assert sent.returncode != 0
    assert "No presentation context" in sent.output or "No Acceptable Presentation Contexts" in sent.output
    result = run_command("series", "show", str(ct.SeriesInstanceUID), "--config", receiver.config, "--json")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert_still_works(receiver, tmp_path, "AFTER-CT")


def test_another_patients_pet_is_never_paired(receiver: NodeProcess, tmp_path: Path) -> None:
    one = make_patient(tmp_path / "one", seed=1, person=Person(patient_id="PAIR-A"))
    other = make_patient(tmp_path / "other", seed=1, person=Person(patient_id="PAIR-B"))
    send(receiver.port, one.mr_files)
    send(receiver.port, other.pet_files)
    mr = wait_for_state(receiver, one.mr_files[0], "unpaired")
    pet = wait_for_state(receiver, other.pet_files[0], "unpaired")
    assert mr["reason"] == "no PET of this patient"
    assert pet["reason"] == "no MR of this patient"
    uids = {mr["series_uid"], pet["series_uid"]}
    pairs = receiver.list_rows("pairs")
    assert not [pair for pair in pairs if {pair["fixed_series_uid"], pair["moving_series_uid"]} & uids]


def test_the_same_id_of_another_issuer_is_never_paired(receiver: NodeProcess, tmp_path: Path) -> None:
    one = make_patient(tmp_path / "one", seed=1, person=Person(patient_id="PAIR-C", issuer="NORTH"))
    other = make_patient(tmp_path / "other", seed=1, person=Person(patient_id="PAIR-C", issuer="SOUTH"))
    # Two people: their scans are two, though our builder would number them alike.
    for path in other.pet_files:
        data_set = pydicom.dcmread(path)
        data_set.SeriesInstanceUID += ".1"
        data_set.StudyInstanceUID += ".1"
        data_set.SOPInstanceUID += ".1"
        data_set.file_meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID
        data_set.save_as(path)
    send(receiver.port, one.mr_files)
    send(receiver.port, other.pet_files)
    pet = wait_for_state(receiver, other.pet_files[0], "unpaired")
    assert "IssuerOfPatientID differs" in pet["reason"]


def test_an_unknown_caller_is_turned_away(receiver: NodeProcess, patient: Patient) -> None:
    sent = send_with_dcmtk(patient.mr_files[:1], receiver.port, called=NODE_AE, calling="STRANGER")
    assert sent.returncode != 0
    assert sent.statuses == ()
    assert "Calling AE Title Not Recognized" in sent.output


def test_bytes_that_are_not_dicom_do_no_harm(receiver: NodeProcess, patient: Patient, tmp_path: Path) -> None:
    with socket.create_connection((LOOPBACK, receiver.port), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n" * 100)
    header = pydicom.dcmread(patient.mr_files[3], stop_before_pixels=True)
    with RawScu(receiver.port, calling=SCANNER.ae_title) as scu:
        status = scu.store(header.SOPClassUID, header.SOPInstanceUID, b"this is no data set at all" * 50)
    assert status == CANNOT_UNDERSTAND
    assert receiver.is_running()
    assert_still_works(receiver, tmp_path, "AFTER-GARBAGE")


def test_a_truncated_data_set_is_refused_and_can_be_sent_again(receiver: NodeProcess, tmp_path: Path) -> None:
    whole = make_patient(tmp_path, seed=1, person=Person(patient_id="TRUNCATED"))
    header = pydicom.dcmread(whole.mr_files[0], stop_before_pixels=True)
    data = data_set_bytes(whole.mr_files[0].read_bytes())
    with RawScu(receiver.port, calling=SCANNER.ae_title) as scu:
        status = scu.store(header.SOPClassUID, header.SOPInstanceUID, data[: len(data) // 2])
    assert status == CANNOT_UNDERSTAND
    send(receiver.port, whole.mr_files)
    row = wait_for_state(receiver, whole.mr_files[0], "complete", "unpaired")
    assert row["instance_count"] == len(whole.mr_files)


@dataclass(frozen=True)
class DownAndUp:
    """One node whose destination was down at first: what its rows said then, and what arrived later."""

    good: Patient
    good_series: str
    wrong_series: str
    jobs: list[dict[str, Any]]
    outbox_while_down: list[dict[str, Any]]
    outbox_in_the_end: list[dict[str, Any]]
    arrived: list[Path]

    def job_of(self, moving_series_uid: str, pairs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the job of the pair with this PET."""
        pair = next(pair for pair in pairs if pair["moving_series_uid"] == moving_series_uid)
        return next(job for job in self.jobs if job["pair_id"] == pair["id"])


@pytest.fixture(scope="module")
def down_and_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DownAndUp, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("down")
    mixed_up = Person(patient_id="MIXED-UP")
    good = make_patient(folder / "good", seed=1)
    head_one = make_patient(folder / "one", seed=1, person=mixed_up)
    head_two = make_patient(folder / "two", seed=2, person=mixed_up)
    port, pacs_port = free_port(), free_port()
    peers = [SCANNER, Peer("pacs", "STORESCP", pacs_port, ("receive",))]
    config = make_config(folder, peers, port)
    with NodeProcess(config, port) as node:
        send(port, good.files)
        send(port, [*head_one.mr_files, *head_two.pet_files])
        wait_until(lambda: _are_decided(node, 2), REGISTRATION_S, "both jobs decided")
        wait_until(lambda: any(row["state"] == "retry" for row in node.list_rows("outbox")), DECISION_S, "a retry")
        while_down = node.list_rows("outbox")
        with StoreScp(folder, port=pacs_port) as pacs:
            wait_until(lambda: len(pacs.files()) >= len(while_down), REGISTRATION_S, "the delivery")
            wait_until(
                lambda: {row["state"] for row in node.list_rows("outbox")} == {"sent"}, DECISION_S, "every row sent"
            )
            arrived = pacs.files()
        found = DownAndUp(
            good=good,
            good_series=series_uid(good.pet_files[0]),
            wrong_series=series_uid(head_two.pet_files[0]),
            jobs=node.list_rows("jobs"),
            outbox_while_down=while_down,
            outbox_in_the_end=node.list_rows("outbox"),
            arrived=arrived,
        )
        yield found, node.list_rows("pairs")


def _are_decided(node: NodeProcess, count: int) -> bool:
    assert node.is_running(), node.output()[-4000:]
    jobs = node.list_rows("jobs")
    return len(jobs) == count and all(job["state"] in DECIDED_JOB for job in jobs)


def test_a_destination_that_is_down_keeps_its_rows_and_gets_them_when_it_is_back(
    down_and_up: tuple[DownAndUp, list[dict[str, Any]]],
) -> None:
    found, pairs = down_and_up
    job = found.job_of(found.good_series, pairs)
    assert job["state"] == "done"
    wanted = 2 * len(found.good.mr_files) + 1
    of_job = [row for row in found.outbox_while_down if row["job_id"] == job["id"]]
    assert len(of_job) == wanted
    assert {row["state"] for row in of_job} <= {"owed", "retry"}
    assert all(row["reason"] for row in of_job if row["state"] == "retry")
    uids = [str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in found.arrived]
    assert len(uids) == len(set(uids))
    assert {row["sop_instance_uid"] for row in of_job} <= set(uids)


def test_another_persons_pet_under_the_same_id_is_never_sent(
    down_and_up: tuple[DownAndUp, list[dict[str, Any]]],
) -> None:
    found, pairs = down_and_up
    job = found.job_of(found.wrong_series, pairs)
    assert job["state"] in {"review", "failed"}, job
    assert job["verdict"] in {"review", "reject"}
    assert not [row for row in found.outbox_in_the_end if row["job_id"] == job["id"]]
