"""Rows as the node would have written them: received series, pairs, jobs, outputs.

Flow: tests > [rows] > dicomnode.database
Never: SQL of its own; the node's own functions write, so that a row here is one that can be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pydicom
from sqlalchemy import Connection

from dicomnode.database.engine import Database
from dicomnode.database.index import (
    Arrival,
    InstanceHeader,
    PatientIdentity,
    SeriesHeader,
    StoredFile,
    StudyHeader,
    close_association,
    open_association,
    record_instance,
)
from dicomnode.database.jobs import JobClaim, add_job, claim_job, fetch_jobs, move_claimed_job, record_outputs
from dicomnode.database.outbox import Due, add_outbox_rows
from dicomnode.database.pairs import NewPair, add_pair, fetch_input_digest
from dicomnode.database.series import fetch_series
from dicomnode.database.store import make_file_name
from dicomnode.settings import DestinationSettings, NodeSettings, PeerSettings, RuleSettings, Settings
from tests.dicomnode.series_files import SeriesSpec, write_series

PATIENT = PatientIdentity("4711", "HOSPITAL", "Doe^Jane", "19700102", "F")
MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
PET_CLASS = "1.2.840.10008.5.1.4.1.1.128"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
NODE = "0" * 32


@dataclass(frozen=True)
class Sent:
    """A series as it was sent: `number` names it and its study, so that each is another one."""

    number: int
    modality: str
    slices: int = 10
    patient: PatientIdentity = PATIENT
    study: int = 1
    study_date: str = "20260301"
    study_time: str = "101500"
    accession_number: str = ""
    description: str = ""
    frame_of_reference_uid: str = ""
    expected_instances: int | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def series_uid(self) -> str:
        """The SeriesInstanceUID."""
        return f"1.2.3.{self.study}.{self.number}"

    def instance(self, slice_number: int) -> InstanceHeader:
        """One of its instances."""
        return InstanceHeader(
            sop_instance_uid=f"{self.series_uid}.{slice_number}",
            sop_class_uid=MR_CLASS if self.modality == "MR" else PET_CLASS,
            patient=self.patient,
            study=StudyHeader(f"1.2.3.{self.study}", self.study_date, self.study_time, self.accession_number),
            series=SeriesHeader(
                self.series_uid,
                self.modality,
                self.description,
                self.frame_of_reference_uid or f"1.2.9.{self.study}",
                self.expected_instances,
                dict(self.summary),
            ),
        )


MR = Sent(number=1, modality="MR", study=1, summary={"MRAcquisitionType": "3D", "EchoTime": 3.0})
PET = Sent(number=2, modality="PT", study=2, summary={"SeriesType": ["STATIC", "IMAGE"], "CorrectedImage": ["ATTN"]})


def receive(
    database: Database,
    sent: Sent,
    now: float,
    *,
    first: int = 1,
    stays_open: bool = False,
    calling_ae: str = "SCANNER",
    content: str = "",
) -> int:
    """Record slices `first` to `sent.slices` over one association, ended unless it `stays_open`; return its id.

    Those of another `content` are other bytes.
    """
    with database.write() as connection:
        association_id = receive_within(connection, sent, now, first=first, calling_ae=calling_ae, content=content)
        if not stays_open:
            close_association(connection, association_id, now)
    return association_id


def receive_within(
    connection: Connection, sent: Sent, now: float, *, first: int = 1, calling_ae: str = "SCANNER", content: str = ""
) -> int:
    """Do what `receive` does within a transaction; the association stays open."""
    association_id = open_association(connection, node=NODE, calling_ae=calling_ae, address="127.0.0.1", now=now)
    for number in range(first, sent.slices + 1):
        file = StoredFile(make_file_name(), EXPLICIT_LITTLE_ENDIAN, 1000, f"{content}{number:064x}"[:64])
        record_instance(connection, sent.instance(number), file, Arrival(association_id, calling_ae, now))
    return association_id


def grown(sent: Sent, slices: int) -> Sent:
    """The same series with more slices."""
    return replace(sent, slices=slices)


def series_state(database: Database, sent: Sent) -> tuple[str, str]:
    """State and reason of a series."""
    with database.read() as connection:
        row = fetch_series(connection, sent.series_uid).row
        return row.state, row.reason


def add_ready_pair(
    database: Database, fixed: Sent = MR, moving: Sent = PET, *, state: str = "ready", calling_ae: str = "SCANNER"
) -> int:
    """Receive both series, the moving one from `calling_ae`, and record them as a pair; return its id."""
    receive(database, fixed, now=1.0)
    receive(database, moving, now=1.0, calling_ae=calling_ae)
    with database.write() as connection:
        ids = [fetch_series(connection, sent.series_uid).row.id for sent in (fixed, moving)]
        digest = fetch_input_digest(connection, ids[0], ids[1])
        pair_id = add_pair(connection, NewPair(ids[0], ids[1], digest, state, "", {}), now=2.0)
    assert pair_id is not None
    return pair_id


def add_waiting_job(database: Database, now: float = 10.0, calling_ae: str = "SCANNER") -> int:
    """Record a job of a pair of its own, whose moving series `calling_ae` sent; return its id."""
    with database.read() as connection:
        number = len(fetch_jobs(connection)) * 2
    fixed, moving = replace(MR, study=100 + number), replace(PET, study=101 + number)
    pair_id = add_ready_pair(database, fixed, moving, calling_ae=calling_ae)
    with database.write() as connection:
        return add_job(connection, pair_id, now)


def add_finished_job(database: Database, kinds: tuple[str, ...], *, state: str = "done") -> tuple[int, list[int]]:
    """Record a job that made one output of each kind, in this order; return its id and those of the outputs."""
    add_waiting_job(database)
    job = claim_job(database, now=20.0, lease_s=60.0)
    assert job is not None
    with database.write() as connection:
        move_claimed_job(connection, JobClaim(job.id, job.token), state, verdict="accept", finished_at=21.0)
        rows = [output_row(job.id, number, kind) for number, kind in enumerate(kinds, start=1)]
        return job.id, record_outputs(connection, job.id, rows)


def due(destination: str = "pacs", now: float = 40.0, order: Literal["last", "first"] = "last") -> Due:
    """What a sender asks for: leases of 60 s, and no wait above an hour."""
    return Due(destination, now, 60.0, 3600.0, order)


def settings_of(root: Path, *destinations: str, rules: tuple[RuleSettings, ...] = ()) -> Settings:
    """A node's settings with these destinations."""
    return Settings(
        node=NodeSettings(storage_root=root),
        peers=tuple(
            PeerSettings(name=name, ae_title=name.upper(), host="127.0.0.1", port=104, may=("receive",))
            for name in destinations
        ),
        destinations=tuple(DestinationSettings(peer=name) for name in destinations),
        rules=rules,
    )


def output_row(job_id: int, number: int, kind: str, path: Path | None = None) -> dict[str, Any]:
    """Columns of an output instance."""
    return {
        "kind": kind,
        "sop_instance_uid": f"1.2.4.{job_id}.{number}",
        "sop_class_uid": PET_CLASS,
        "series_uid": f"1.2.4.{job_id}",
        "transfer_syntax_uid": EXPLICIT_LITTLE_ENDIAN,
        "path": str(path or f"outputs/{job_id}/{kind}-{number:04d}.dcm"),
        "size_bytes": 1000,
        "sha256": "0" * 64,
    }


def owe_files(database: Database, root: Path, destinations: list[str], *, slices: int = 6) -> list[Path]:
    """Make a job with real output files, the last a "reg", and owe them; return the files in order."""
    job_id = add_waiting_job(database)
    job = claim_job(database, 500.0, lease_s=60.0)
    assert job is not None
    folder = root / "outputs" / str(job_id)
    paths = write_series(folder, SeriesSpec(shape=(slices, 24, 20), uid=f"1.2.826.0.1.3680043.8.498.{job_id}"))
    rows = []
    for number, path in enumerate(paths):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        rows.append(
            {
                "kind": "reg" if number == slices - 1 else "pt",
                "sop_instance_uid": str(header.SOPInstanceUID),
                "sop_class_uid": str(header.SOPClassUID),
                "series_uid": str(header.SeriesInstanceUID),
                "transfer_syntax_uid": str(header.file_meta.TransferSyntaxUID),
                "path": str(path.relative_to(root)),
                "size_bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
    with database.write() as connection:
        move_claimed_job(connection, JobClaim(job.id, job.token), "done")
        add_outbox_rows(connection, record_outputs(connection, job.id, rows), destinations, 500.0)
    return paths
