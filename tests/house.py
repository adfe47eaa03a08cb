"""A node's storage root and database with series, results and what is owed of them; every row has its real file.

Flow: tests > [house] > dicomnode.receive, dicomnode.database
Never: SQL or a row of its own making: the node's own functions write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.database.engine import Database
from dicomnode.database.jobs import JobClaim, add_job, claim_job, fetch_outputs, move_claimed_job, record_outputs
from dicomnode.database.outbox import add_outbox_rows, claim_outbox, record_sent
from dicomnode.database.pairs import NewPair, add_pair, fetch_input_digest
from dicomnode.database.series import complete_series, fetch_series, set_series_state
from dicomnode.database.snapshots import TABLES, fetch_rows
from dicomnode.database.store import Store
from dicomnode.receive.ingest import StoreRequest, ingest
from dicomnode.receive.intake import Intake
from dicomnode.receive.recording import Sender
from dicomnode.receive.recovery import close_spool, open_spool
from dicomnode.settings_limits import LimitSettings
from tests.receiving import MR, PT, ROOT, encode, make_data_set
from tests.rows import due

LIMITS = LimitSettings(disk_reserve_bytes=0)
CLASSES = {"MR": MR, "PT": PT}
SLICES = 2
DAY_S = 86400.0
START = 1.0e9  # when what is received here came


@dataclass
class House:
    """A house that is lived in inside the `with` block; `now` is what its clock shows."""

    root: Path
    database: Database
    now: float = START
    sent: dict[str, bytes] = field(default_factory=dict)  # the data set of each instance that was taken

    def __enter__(self) -> Self:
        self.store = Store(self.root)
        self.intake = Intake(open_spool(self.store, self.database, self.now), self.database)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.intake.stop()
        close_spool(self.intake.spool, self.database, self.now)

    def clock(self) -> float:
        """Return the time, UTC epoch seconds."""
        return self.now

    def receive(
        self, modality: str, number: int, *, patient: str = "P-1", description: str = "brain", slices: int = SLICES
    ) -> str:
        """Take a series in by the node's own ingest, and return its UID once its rows are there."""
        series_uid = f"{ROOT}.{number}"
        data_sets = []
        for slice_number in range(1, slices + 1):
            uid = f"{series_uid}.{slice_number}"
            headers: dict[str, Any] = {
                "StudyInstanceUID": f"{series_uid}.0",
                "SeriesInstanceUID": series_uid,
                "PatientID": patient,
            }
            headers |= {"SOPInstanceUID": uid, "SeriesDescription": description}
            data_sets.append(make_data_set(slice_number, sop_class_uid=CLASSES[modality], **headers))
        self.receive_data_sets(data_sets)
        return series_uid

    def receive_data_sets(self, data_sets: Iterable[pydicom.Dataset]) -> None:
        """Take instances in by the node's own ingest, over one association."""
        sender = Sender("SCANNER", "10.1.2.8", may_store=True, opened_at=self.now)
        for data_set in data_sets:
            sop_class_uid, uid, data = data_set.SOPClassUID, data_set.SOPInstanceUID, encode(data_set)
            request = StoreRequest(sop_class_uid, uid, sop_class_uid, ExplicitVRLittleEndian, data)
            try:
                ingest(self.intake, request, sender, limits=LIMITS, now=self.now)
            finally:
                self.sent.setdefault(uid, data)
        self.intake.close(sender, self.now)

    def settle(self, series_uid: str, state: str, reason: str = "") -> None:
        """Judge a series complete, and move it on."""
        with self.database.write() as connection:
            series_id = fetch_series(connection, series_uid).row.id
            complete_series(connection, series_id, "all came")
            set_series_state(connection, series_id, state, reason)

    def pair(self, number: int, *, state: str = "ready", slices: int = SLICES) -> tuple[int, str, str]:
        """Receive an MR and a PET and pair them; return the pair's id and both UIDs."""
        uids = [
            self.receive(modality, number * 10 + place, slices=slices) for place, modality in enumerate(("MR", "PT"))
        ]
        return self.pair_series(uids, state=state), uids[0], uids[1]

    def pair_series(self, uids: Sequence[str], *, state: str = "ready") -> int:
        """Pair an MR and a PET that are here, and return the pair's id."""
        for uid in uids:
            self.settle(uid, "paired")
        with self.database.write() as connection:
            ids = [fetch_series(connection, uid).row.id for uid in uids]
            new = NewPair(ids[0], ids[1], fetch_input_digest(connection, *ids), state, "", {})
            pair_id = add_pair(connection, new, self.now)
        assert pair_id is not None
        return pair_id

    def finish(self, pair_id: int, *, state: str = "done", owed_to: tuple[str, ...] = ("pacs",)) -> int:
        """Run a job for a pair that makes two outputs and owes them; return its id."""
        with self.database.write() as connection:
            job_id = add_job(connection, pair_id, self.now)
        job = claim_job(self.database, self.now, lease_s=60.0)
        assert job is not None
        assert job.id == job_id
        rows = [self._write_output(job_id, number) for number in (1, 2)]
        with self.database.write() as connection:
            move_claimed_job(connection, JobClaim(job.id, job.token), state, finished_at=self.now)
            add_outbox_rows(connection, record_outputs(connection, job_id, rows), owed_to, self.now)
        return job_id

    def deliver(self, destination: str = "pacs", limit: int = 100) -> int:
        """Record that a destination has what is owed to it; return how much that was."""
        rows = claim_outbox(self.database, due(destination, self.now), limit)
        with self.database.write() as connection:
            for row in rows:
                record_sent(connection, row, self.now)
        return len(rows)

    def state_of(self, series_uid: str) -> str:
        """Return the state of a series."""
        with self.database.read() as connection:
            return fetch_series(connection, series_uid).row.state

    def files(self, *folders: str) -> set[str]:
        """Return the files below these folders, or all that hold received or made instances, by their paths."""
        wanted = folders or ("store", "conflicts", "outputs")
        found = (path for folder in wanted for path in (self.root / folder).rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)) for path in found}

    def named_files(self) -> set[str]:
        """Return the files that rows name, doomed ones included."""
        rows = fetch_all(self.database)
        found = {str(self.store.instance_path(row["file_name"]).relative_to(self.root)) for row in rows["instances"]}
        found |= {str(self.store.conflict_path(row["file_name"]).relative_to(self.root)) for row in rows["conflicts"]}
        found |= {row["path"] for row in rows["outputs"] if row["deleted_at"] is None}
        return found | {row["path"] for row in rows["doomed_files"]}

    def outputs(self, job_id: int) -> list[Path]:
        """Return the files of what a job made."""
        with self.database.read() as connection:
            return [self.root / output.path for output in fetch_outputs(connection, job_id)]

    def _write_output(self, job_id: int, number: int) -> dict[str, Any]:
        path = self.store.outputs_folder(job_id) / f"pt-{number:04d}.dcm"
        path.parent.mkdir(exist_ok=True)
        content = f"output {number} of job {job_id}".encode()
        path.write_bytes(content)
        return {
            "kind": "pt",
            "sop_instance_uid": f"{ROOT}.9.{job_id}.{number}",
            "sop_class_uid": PT,
            "series_uid": f"{ROOT}.9.{job_id}",
            "transfer_syntax_uid": ExplicitVRLittleEndian,
            "path": str(path.relative_to(self.root)),
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "copies": None,
        }


def fetch_all(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table, by table."""
    with database.read() as connection:
        return {name: [dict(row) for row in fetch_rows(connection, name)] for name in TABLES}


def spoil(path: Path, at: int = -1) -> None:
    """Change one byte of a file, as a disk may."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(bytes(content))


def without(rows: Mapping[str, list[dict[str, Any]]], *names: str) -> dict[str, list[dict[str, Any]]]:
    """Return tables without some."""
    return {name: found for name, found in rows.items() if name not in names}
