"""What a registration's verdict makes of its job, its outputs and its outbox, on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dicomnode.database.engine import Database
from dicomnode.database.index import RENAMED_PATIENT, PatientIdentity
from dicomnode.database.jobs import Job, JobClaim, claim_job, fetch_job, fetch_outputs
from dicomnode.database.outbox import fetch_outbox, retry_dead_rows
from dicomnode.errors import ConfigurationError, LeaseLostError, RegistrationRefusedError
from dicomnode.jobs import pipeline
from dicomnode.jobs.pipeline import SeriesResult, judge_result, run_job
from dicomnode.outputs.objects import OutputFile, write_outputs
from dicomnode.settings import DestinationSettings, NodeSettings, OutputSettings, Settings
from dicomnode.volumes.series import SeriesVolume, load_series
from registration.errors import DeviceError, ModelError, NoOverlapError
from registration.pipeline import Registration
from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.dicomnode.outputs.known_requests import make_request
from tests.dicomnode.series_files import SeriesSpec, write_series
from tests.rows import MR, add_waiting_job, grown, owe_files, receive, receive_within, series_state, settings_of


def _registration(verdict: Literal["accept", "review", "reject"], shift_mm: float = 0.0) -> Registration:
    matrix = np.eye(4)
    matrix[0, 3] = shift_mm
    transform = RigidTransform.from_matrix(matrix)
    return Registration(transform, verdict, 0.91, True, {"inliers": 71.0}, {"polish": 1.5}, "cpu", "ab" * 32)


def _output(root: Path, number: int, kind: Literal["pt", "rgb", "reg"]) -> OutputFile:
    path = root / "outputs" / "1" / f"{kind}-{number:04d}.dcm"
    return OutputFile(kind, f"1.2.5.{number}", "1.2.840", "1.2.5", "1.2.840.10008.1.2.1", path, 1000, "0" * 64)


def _claimed(database: Database) -> Job:
    add_waiting_job(database)
    job = claim_job(database, 20.0, lease_s=60.0)
    assert job is not None
    return job


def _now(database: Database, job: Job) -> Job:
    with database.read() as connection:
        return fetch_job(connection, job.id)


def _record(
    database: Database,
    job: Job,
    root: Path,
    verdict: Literal["accept", "review", "reject"],
    **changes: object,
) -> None:
    outputs = () if verdict == "reject" else (_output(root, 1, "pt"), _output(root, 2, "rgb"), _output(root, 3, "reg"))
    blank = Volume(np.zeros((1, 1, 1), np.float32), np.eye(4))
    result = SeriesResult(_registration(verdict), "because", outputs, blank, blank)
    with database.write() as connection:
        settings = settings_of(root, "pacs", "archive").model_copy(update=changes)
        pipeline._record_result(connection, JobClaim(job.id, job.token), job.pair_id, result, {}, (settings, 30.0))


@pytest.mark.parametrize(
    ("verdict", "state", "outputs", "owed"),
    [("accept", "done", 3, 6), ("review", "review", 3, 0), ("reject", "failed", 0, 0)],
)
def test_a_verdict_decides_what_is_owed(
    database: Database,
    tmp_path: Path,
    verdict: Literal["accept", "review", "reject"],
    state: str,
    outputs: int,
    owed: int,
) -> None:
    job = _claimed(database)

    _record(database, job, tmp_path, verdict)

    after = _now(database, job)
    assert (after.state, after.verdict, after.reason, after.finished_at) == (state, verdict, "because", 30.0)
    with database.read() as connection:
        assert len(fetch_outputs(connection, job.id)) == outputs
        assert len(fetch_outbox(connection)) == owed


@pytest.mark.parametrize(
    ("verdict", "state", "owed"), [("accept", "done", 6), ("review", "review", 6), ("reject", "failed", 0)]
)
def test_what_is_in_review_is_owed_at_once_where_it_is_sent_marked(
    database: Database, tmp_path: Path, verdict: Literal["accept", "review", "reject"], state: str, owed: int
) -> None:
    job = _claimed(database)

    _record(database, job, tmp_path, verdict, outputs=OutputSettings(review="send"))

    assert _now(database, job).state == state
    with database.read() as connection:
        assert len(fetch_outbox(connection)) == owed


def test_each_destination_is_owed_the_objects_it_takes(database: Database, tmp_path: Path) -> None:
    job = _claimed(database)
    chosen = (DestinationSettings(peer="pacs", objects=("reg", "pt")), DestinationSettings(peer="archive"))

    _record(database, job, tmp_path, "accept", destinations=chosen)

    with database.read() as connection:
        owed = [(row.destination, row.kind) for row in fetch_outbox(connection)]
    assert owed == [("archive", "pt"), ("archive", "rgb"), ("archive", "reg"), ("pacs", "pt"), ("pacs", "reg")]


def test_copies_are_made_of_what_a_destination_takes_compressed(tmp_path: Path) -> None:
    outputs = tuple(write_outputs(make_request(), tmp_path))
    blank = Volume(np.zeros((1, 1, 1), np.float32), np.eye(4))
    result = SeriesResult(_registration("accept"), "because", outputs, blank, blank)

    pipeline._write_copies(
        result,
        (
            DestinationSettings(peer="pacs"),
            DestinationSettings(peer="archive", compression="jpeg-2000"),
            DestinationSettings(peer="viewer", compression="jpeg-ls", objects=("rgb", "reg")),
        ),
    )

    copies = {path.name for path in tmp_path.iterdir()} - {output.path.name for output in outputs}
    assert copies == {
        *(f"pt-{number:04d}.jpeg-2000.dcm" for number in range(1, 13)),
        *(f"rgb-{number:04d}.jpeg-ls.dcm" for number in range(1, 13)),
    }


def test_the_result_holds_the_keys_of_the_contract_and_relative_paths(database: Database, tmp_path: Path) -> None:
    job = _claimed(database)

    _record(database, job, tmp_path, "accept")

    assert _now(database, job).result == {
        "fixed_from_moving": np.eye(4).tolist(),
        "verdict": "accept",
        "confidence": 0.91,
        "metrics": {"inliers": 71.0},
        "timings_s": {"polish": 1.5},
        "device": "cpu",
        "model_sha256": "ab" * 32,
    }
    with database.read() as connection:
        assert fetch_outputs(connection, job.id)[0].path == "outputs/1/pt-0001.dcm"


def test_a_worker_that_lost_its_job_records_nothing(database: Database, tmp_path: Path) -> None:
    job = _claimed(database)

    with pytest.raises(LeaseLostError):
        _record(database, replace(job, token=job.token - 1), tmp_path, "accept")

    assert _now(database, job).state == "running"
    with database.read() as connection:
        assert fetch_outputs(connection, job.id) == []
        assert fetch_outbox(connection) == []


def test_a_job_whose_series_grew_is_superseded_and_reads_nothing(database: Database, tmp_path: Path) -> None:
    job = _claimed(database)
    receive(database, grown(replace(MR, study=100), 11), now=25.0, first=11)
    settings = Settings(node=NodeSettings(storage_root=tmp_path))

    run_job(job, settings, database, lambda: 30.0)

    after = _now(database, job)
    assert (after.state, after.finished_at) == ("done", 30.0)
    assert after.reason.startswith("superseded: slices came after its pair was made")


@pytest.mark.parametrize("patient", [MR.patient, replace(MR.patient, patient_id="4712")])
def test_nothing_is_owed_of_series_that_slices_came_to_while_they_were_registered(
    database: Database, tmp_path: Path, patient: PatientIdentity
) -> None:
    job = _claimed(database)
    receive(database, grown(replace(MR, study=100, patient=patient), 11), now=25.0, first=11)

    _record(database, job, tmp_path, "accept")

    after = _now(database, job)
    assert (after.state, after.verdict, after.finished_at) == ("done", "", 30.0)
    assert after.reason.startswith("superseded: slices came after its pair was made")
    with database.read() as connection:
        assert fetch_outputs(connection, job.id) == []
        assert fetch_outbox(connection) == []


def test_nothing_is_owed_while_another_patients_slice_joins_a_series(database: Database, tmp_path: Path) -> None:
    job = _claimed(database)
    other = grown(replace(MR, study=100, patient=replace(MR.patient, patient_id="4712")), 11)
    with ThreadPoolExecutor(1) as threads:
        with database.write() as connection:
            receive_within(connection, other, now=25.0, first=11)
            recorded = threads.submit(_record, database, job, tmp_path, "accept")
            assert wait([recorded], timeout=0.3).not_done  # it waits for what is under way
        recorded.result(timeout=30.0)

    assert _now(database, job).reason.startswith("superseded: slices came after its pair was made")
    with database.read() as connection:
        assert fetch_outbox(connection) == []


@pytest.mark.parametrize(("first", "content"), [(11, ""), (1, "corrected")])
def test_what_is_owed_of_a_series_is_given_up_once_it_is_not_one_patients(
    database: Database, tmp_path: Path, first: int, content: str
) -> None:
    owe_files(database, tmp_path, ["unconcerned"], slices=2)
    job = _claimed(database)
    _record(database, job, tmp_path, "accept")
    renamed = replace(MR, study=102, slices=max(10, first), patient=replace(MR.patient, patient_id="4712"))

    receive(database, renamed, now=40.0, first=first, content=content)

    _state, reason = series_state(database, renamed)
    with database.read() as connection:
        rows = {(row.destination, row.state, row.reason) for row in fetch_outbox(connection)}
    assert rows == {("unconcerned", "owed", ""), ("pacs", "dead", reason), ("archive", "dead", reason)}
    with database.write() as connection:
        assert retry_dead_rows(connection, "pacs", 50.0) == 0


def test_nothing_is_owed_of_a_series_that_came_again_under_another_patient_id(
    database: Database, tmp_path: Path
) -> None:
    job = _claimed(database)
    corrected = replace(MR, study=100, patient=replace(MR.patient, patient_id="4712"))
    receive(database, corrected, now=25.0, content="corrected")

    _record(database, job, tmp_path, "accept")

    assert series_state(database, corrected) == ("refused", RENAMED_PATIENT)
    assert (_now(database, job).state, _now(database, job).verdict) == ("done", "")
    with database.read() as connection:
        assert fetch_outbox(connection) == []


@pytest.mark.parametrize(
    ("raised", "translated"),
    [
        (ModelError, ConfigurationError),
        (DeviceError, ConfigurationError),
        (NoOverlapError, RegistrationRefusedError),
    ],
)
def test_errors_of_the_registration_become_the_nodes_own(raised: type[Exception], translated: type[Exception]) -> None:
    with pytest.raises(translated, match="a third of the head"), pipeline._translated():
        raise raised("a third of the head")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[SeriesVolume, SeriesVolume, SeriesVolume]:
    """An MR, a PET in a frame of its own, and a PET in the MR's frame of reference."""
    folder = tmp_path_factory.mktemp("series")
    mr, pet = SeriesSpec(), SeriesSpec(modality="PT", uid="1.2.826.0.1.3680043.8.498.2")

    def share_frame(header: object, _k: int) -> None:
        header.FrameOfReferenceUID = f"{mr.uid}.4"  # type: ignore[attr-defined]  # pydicom: by keyword

    specs = {"mr": mr, "pet": pet, "hybrid": replace(pet, change=share_frame)}
    loaded = [load_series(write_series(folder / name, spec)) for name, spec in specs.items()]
    return loaded[0], loaded[1], loaded[2]


def test_two_frames_of_reference_are_judged_by_the_confidence(
    volumes: tuple[SeriesVolume, SeriesVolume, SeriesVolume],
) -> None:
    mr, pet, _ = volumes

    for verdict in ("accept", "review", "reject"):
        registration = _registration(verdict, shift_mm=9.0)
        assert judge_result(mr, pet, registration) == (registration, f"{verdict} at confidence 0.91")


@pytest.mark.parametrize("is_hybrid", [False, True])
def test_what_was_left_out_of_a_series_is_said_with_the_verdict(
    volumes: tuple[SeriesVolume, SeriesVolume, SeriesVolume], is_hybrid: bool
) -> None:
    mr, pet = volumes[0], volumes[2 if is_hybrid else 1]
    mr = replace(mr, choice="the first echo, of EchoTime (10, 40)")
    pet = replace(pet, choice="cropped to the head: the upper 44 of 60 slices")

    _, reason = judge_result(mr, pet, _registration("accept"))

    assert reason.endswith(
        "; MR: the first echo, of EchoTime (10, 40); PET: cropped to the head: the upper 44 of 60 slices"
    )


@pytest.mark.parametrize(
    ("verdict", "shift_mm", "expected", "moved_mm"),
    [
        ("accept", 1.0, "accept", 0.0),
        ("accept", 9.0, "review", 9.0),
        ("review", 1.0, "review", 1.0),
        ("reject", 1.0, "reject", 1.0),
    ],
)
def test_one_scanners_own_alignment_stands_unless_the_registration_contradicts(
    volumes: tuple[SeriesVolume, SeriesVolume, SeriesVolume],
    verdict: Literal["accept", "review", "reject"],
    shift_mm: float,
    expected: str,
    moved_mm: float,
) -> None:
    mr, _, hybrid = volumes

    judged, _reason = judge_result(mr, hybrid, _registration(verdict, shift_mm))

    assert judged.verdict == expected
    assert judged.fixed_from_moving.translation_mm[0] == pytest.approx(moved_mm)
