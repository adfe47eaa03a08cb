"""Twenty-four simulated hours of forty patients each, among faults: nothing is lost, doubled, or grows."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pydicom

from dicomnode.database.deletions import fetch_deletions
from dicomnode.database.engine import open_database
from dicomnode.database.jobs import fetch_jobs, fetch_outputs
from dicomnode.database.outbox import fetch_outbox
from dicomnode.database.series import fetch_series_rows
from dicomnode.receive.spool import FILES
from dicomnode.settings import (
    DestinationSettings,
    JobSettings,
    NodeSettings,
    OutputSettings,
    PairingSettings,
    PeerSettings,
    RegistrationSettings,
    SendSettings,
    Settings,
)
from dicomnode.settings_keeping import RetentionSettings
from dicomnode.settings_limits import LimitSettings
from tests.conftest import REPOSITORY
from tests.peers_programs import LOOPBACK, free_port

HOURS, PATIENTS_AN_HOUR, SEED = 24, 40, 20260306
LIVES = 3
HISTORY_HOURS = 3.0
KINDS: tuple[Literal["reg", "multiframe"], ...] = ("reg", "multiframe")
LIFE_TIMEOUT_S = 550.0
DISK_AT_MOST_BYTES = 3_000_000
DESCRIPTORS_BESIDE = 60  # those of empty files for instances to come, of which a spool keeps up to `FILES` open


def make_settings(folder: Path, port: int) -> Settings:
    """Return the settings of the node: short waits, small results, and a disk that is soon full."""
    return Settings(
        node=NodeSettings(storage_root=folder / "root"),
        peers=(PeerSettings(name="pacs", ae_title="PACS", host=LOOPBACK, port=port, may=("receive",)),),
        destinations=(DestinationSettings(peer="pacs"),),
        pairing=PairingSettings(series_quiet_period_s=60.0, study_quiet_period_s=60.0),
        jobs=JobSettings(lease_s=600.0, attempts=60, recycle_after=10_000),
        registration=RegistrationSettings(device="cpu"),
        outputs=OutputSettings(objects=KINDS),
        send=SendSettings(retry_first_s=60.0, retry_ceiling_s=300.0, timeout_s=10.0, attempts=10_000),
        limits=LimitSettings(disk_reserve_bytes=0),
        retention=RetentionSettings(
            hold_hours=1.0, history_days=HISTORY_HOURS / 24, free_start_bytes=1_500_000, free_stop_bytes=2_000_000
        ),
    )


def live(folder: Path, port: int) -> int:
    """Let the node live once; return how it ended: a death is a signal."""
    plan = {"folder": str(folder), "port": port, "hours": HOURS, "lives": LIVES, "seed": SEED}
    with (folder / "node.log").open("ab") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "tests.system.simulated_day"],
            cwd=REPOSITORY,
            env={**os.environ, "DAY": json.dumps(plan)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            return node.wait(LIFE_TIMEOUT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)  # the PACS too, which it started
            node.wait()


def test_a_day_of_patients_and_faults_loses_and_doubles_nothing_and_nothing_grows(tmp_path: Path) -> None:
    port = free_port()
    ends = [live(tmp_path, port) for _ in range(LIVES)]
    assert ends == [-signal.SIGKILL] * (LIVES - 1) + [0], (tmp_path / "node.log").read_text("utf-8")[-4000:]

    settings = make_settings(tmp_path, port)
    patients = HOURS * PATIENTS_AN_HOUR
    database = open_database(settings.database_url)
    with database.read() as connection:
        series = fetch_series_rows(connection)
        jobs, outbox = fetch_jobs(connection), fetch_outbox(connection)
        outputs = {one.sop_instance_uid: one for job in jobs for one in fetch_outputs(connection, job.id)}
        deletions = fetch_deletions(connection)
    database.close()
    # One job for each patient, one of each result, each sent.
    assert len(series) == 2 * patients
    assert {row.state for row in series} <= {"paired", "deleted", "unpaired"}
    # Alone are only those that were pushed again after they and their partners had gone.
    gone = re.findall(r"housekeeping.deleted .*subject=(\S+)", (tmp_path / "node.log").read_text("utf-8"))
    assert {row.series_uid for row in series if row.state == "unpaired"} <= set(gone)
    assert len(jobs) == len({job.pair_id for job in jobs}) == patients
    assert {job.state for job in jobs} == {"done"}
    assert Counter(one.kind for one in outputs.values()) == dict.fromkeys(KINDS, patients)
    assert [row.state for row in outbox] == ["sent"] * 2 * patients
    # The PACS has all of them: what was sent again after a death is the same to the byte.
    received: dict[str, set[bytes]] = {}
    for path in (tmp_path / "received").iterdir():
        uid = str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
        received.setdefault(uid, set()).add(path.read_bytes())
    whole = {uid for uid, files in received.items() if len(files) == 1}
    assert whole == outputs.keys()
    check_growth([json.loads(line) for line in (tmp_path / "notes.jsonl").read_text("ascii").splitlines()])
    assert {one.kind for one in deletions} == {"outputs", "paired", "history"}
    assert all(one.done_at is not None for one in deletions)


def check_growth(notes: list[dict[str, Any]]) -> None:
    """Assert that after the first hours nothing takes more and more."""
    assert len(notes) >= HOURS - LIVES
    assert max(note["bytes"] for note in notes) <= DISK_AT_MOST_BYTES
    assert max(note["descriptors"] for note in notes) <= FILES + DESCRIPTORS_BESIDE
    later = [note for note in notes if note["hour"] >= 6]
    assert max(note["files"] for note in later) <= 1.5 * min(note["files"] for note in later) + 400
    assert max(note["rows"] for note in later) <= 1.5 * min(note["rows"] for note in later) + 400
    for life in range(LIVES):
        of_life = [note for note in notes if note["life"] == life]
        first, last = of_life[len(of_life) // 3], of_life[-1]
        assert last["resident_bytes"] <= 1.15 * first["resident_bytes"]
