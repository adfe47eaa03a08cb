"""A whole node between DCMTK and Orthanc: an MR and a PET go in, REG, PT and fused come out, right and unchanged.

Flow: storescu > node process > Orthanc > [test_end_to_end]
Never: a look into the node's own tables for what the archive can say.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.uid import (
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    SpatialRegistrationStorage,
)

from dicomnode.demo.patient import Person
from tests.builders import NODE_AE, NodeProcess, Peer, make_config, make_patient, mean_tre_mm, run_command
from tests.peers_programs import Orthanc, data_set_bytes, find_dciodvfy_errors, free_port, send_with_dcmtk
from tests.system.pet_from_mr import simulate_pet
from tests.waiting import wait_until

itk: Any = SimpleITK  # it has no types

DELIVERY_S = 240.0
GOAL_MM = 2.0
JSON_KEYS = {
    "fixed_from_moving",
    "verdict",
    "confidence",
    "metrics",
    "timings_s",
    "device",
    "model_sha256",
    "outputs",
}


@dataclass(frozen=True)
class Case:
    """Two series on disk and the truth between them."""

    mr_files: list[Path]
    pet_files: list[Path]
    fixed_from_moving: NDArray[np.float64]
    points_mm: NDArray[np.float64]

    @property
    def mr_folder(self) -> Path:
        return self.mr_files[0].parent

    @property
    def pet_folder(self) -> Path:
        return self.pet_files[0].parent


@dataclass(frozen=True)
class Delivered:
    """What the node made of a case, by its own listing, and what the archive holds, by SOP Instance UID."""

    case: Case
    job: Mapping[str, Any]
    storage_root: Path
    archive: Mapping[str, bytes]

    def archived(self, sop_class_uid: str) -> list[pydicom.Dataset]:
        """Return the archive's instances of a SOP class."""
        data_sets = [pydicom.dcmread(io.BytesIO(content)) for content in self.archive.values()]
        return [data_set for data_set in data_sets if data_set.SOPClassUID == sop_class_uid]


def make_synthetic_case(folder: Path) -> Case:
    patient = make_patient(folder, seed=1, angles_deg=(9.0, -6.0, 5.0), shift_mm=(8.0, -9.0, 9.0))
    return Case(patient.mr_files, patient.pet_files, patient.fixed_from_moving, patient.points_mm)


def make_real_case(folder: Path, shared_data: Path) -> Case:
    """Unpack the UIH T1, give its blanked patient a name again, and simulate a PET from it."""
    with tarfile.open(shared_data / "mr_dicom" / "uih_umr770_t1_sessionA.tar.xz") as archive:
        archive.extractall(folder / "unpacked", filter="data")
    person = Person(patient_id="UIH-1", issuer="TEST", name="Uih^One", birth_date="19800101", sex="M")
    (folder / "mr").mkdir()
    mr_files = []
    for source in sorted((folder / "unpacked").rglob("*.dcm")):
        data_set = pydicom.dcmread(source)
        data_set.PatientID, data_set.IssuerOfPatientID = person.patient_id, person.issuer
        data_set.PatientName, data_set.PatientBirthDate = person.name, person.birth_date
        data_set.PatientAge = "038Y"
        for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
            data_set[keyword].value = "20180925"
        del data_set.AcquisitionDateTime
        mr_files.append(folder / "mr" / source.name)
        data_set.save_as(mr_files[-1])
    pet = simulate_pet(folder / "mr", folder / "pet", person, (7.0, -6.0, 8.0), (8.0, -9.0, 9.0))
    return Case(mr_files, pet.files, pet.fixed_from_moving, pet.points_mm)


@pytest.fixture(scope="module", params=["synthetic", pytest.param("uih", marks=pytest.mark.real_data)])
def delivered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "synthetic":
        case = make_synthetic_case(folder)
    else:
        case = make_real_case(folder, request.getfixturevalue("shared_data"))
    port = free_port()
    with Orthanc(folder / "orthanc") as orthanc:
        peers = [Peer("pacs", orthanc.ae_title, orthanc.port, ("receive",)), Peer("scanner", "STORESCU")]
        config = make_config(folder, peers, port)
        with NodeProcess(config, port) as node:
            for files in (case.mr_files, case.pet_files):
                sent = send_with_dcmtk(files, port, called=NODE_AE)
                assert sent.all_stored, sent.output[-2000:]
                assert len(sent.statuses) == len(files)
            wanted = 2 * len(case.mr_files) + 1
            wait_until(lambda: _has_delivered(node, orthanc, wanted), DELIVERY_S, f"{wanted} instances at Orthanc")
            job = run_command("jobs", "show", "1", "--config", config, "--json").json
        yield Delivered(case, job, folder / "storage", orthanc.fetch_files())


def _has_delivered(node: NodeProcess, orthanc: Orthanc, wanted: int) -> bool:
    assert node.is_running(), node.output()[-4000:]
    assert '"failed"' not in node.output()
    return orthanc.count_instances() >= wanted


def test_the_three_series_arrive_whole(delivered: Delivered) -> None:
    count = len(delivered.case.mr_files)
    for sop_class_uid, wanted in {
        SpatialRegistrationStorage: 1,
        PositronEmissionTomographyImageStorage: count,
        SecondaryCaptureImageStorage: count,
    }.items():
        found = delivered.archived(sop_class_uid)
        assert len(found) == wanted
        assert len({data_set.SeriesInstanceUID for data_set in found}) == 1
    assert len(delivered.archive) == 2 * count + 1


def test_the_archive_holds_the_very_bytes_the_node_wrote(delivered: Delivered) -> None:
    assert len(delivered.job["outputs"]) == len(delivered.archive)
    for output in delivered.job["outputs"]:
        written = (delivered.storage_root / output["path"]).read_bytes()
        archived = delivered.archive[output["sop_instance_uid"]]
        assert data_set_bytes(archived) == data_set_bytes(written), output["kind"]


def test_dciodvfy_finds_no_error(delivered: Delivered) -> None:
    errors = {
        output["path"]: found
        for output in delivered.job["outputs"]
        if (found := find_dciodvfy_errors(delivered.storage_root / output["path"]))
    }
    assert errors == {}


def test_simpleitk_reads_pet_and_fused_on_exactly_the_mr_grid(
    delivered: Delivered, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mr = read_with_simpleitk(delivered.case.mr_folder)
    for sop_class_uid in (PositronEmissionTomographyImageStorage, SecondaryCaptureImageStorage):
        folder = tmp_path_factory.mktemp("series")
        for uid, content in delivered.archive.items():
            if pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).SOPClassUID == sop_class_uid:
                (folder / f"{uid}.dcm").write_bytes(content)
        output = read_with_simpleitk(folder)
        assert output.GetSize() == mr.GetSize()
        assert output.GetOrigin() == mr.GetOrigin()
        assert output.GetSpacing() == mr.GetSpacing()
        assert output.GetDirection() == mr.GetDirection()


def test_the_registration_object_agrees_with_the_truth(delivered: Delivered) -> None:
    moving = delivered.archived(SpatialRegistrationStorage)[0].RegistrationSequence[-1]
    assert moving.FrameOfReferenceUID == pydicom.dcmread(delivered.case.pet_files[0]).FrameOfReferenceUID
    values = moving.MatrixRegistrationSequence[0].MatrixSequence[0].FrameOfReferenceTransformationMatrix
    found = np.array(values, np.float64).reshape(4, 4)
    case = delivered.case
    assert mean_tre_mm(np.eye(4), case.fixed_from_moving, case.points_mm) > 5 * GOAL_MM
    assert mean_tre_mm(found, case.fixed_from_moving, case.points_mm) < GOAL_MM


def test_the_returned_pet_is_bright_where_the_sent_one_was(delivered: Delivered) -> None:
    """The archive's PET, read at the true places, has the sent PET's values: quantity and place in one."""
    sent = read_slices(delivered.case.pet_files)
    returned = read_slices(
        delivered.archived(PositronEmissionTomographyImageStorage),
    )
    points = delivered.case.points_mm
    there = points @ delivered.case.fixed_from_moving[:3, :3].T + delivered.case.fixed_from_moving[:3, 3]
    before, after = sent(points), returned(there)
    assert np.corrcoef(before, after)[0, 1] > 0.9
    assert after.mean() == pytest.approx(before.mean(), rel=0.05)


def test_register_gives_the_same_transform_as_the_node(
    delivered: Delivered, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = tmp_path_factory.mktemp("registered")
    case = delivered.case
    result = run_command(
        "register", "--fixed", case.mr_folder, "--moving", case.pet_folder, "--output", output, "--json"
    )
    assert result.returncode == 0, result.stderr
    printed = result.json
    assert set(printed) == JSON_KEYS
    assert printed["fixed_from_moving"] == delivered.job["result"]["fixed_from_moving"]
    assert printed["verdict"] == delivered.job["verdict"] == "accept"
    assert printed["confidence"] == delivered.job["result"]["confidence"]
    written = {one["sop_instance_uid"] for one in printed["outputs"]}
    assert written == {one["sop_instance_uid"] for one in delivered.job["outputs"]}
    assert all(Path(one["path"]).is_file() for one in printed["outputs"])


def read_with_simpleitk(folder: Path) -> Any:
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def read_slices(slices: list[Path] | list[pydicom.Dataset]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return a function that reads a PET series at (n, 3) points, LPS mm, to the nearest voxel."""
    data_sets = [pydicom.dcmread(one) if isinstance(one, Path) else one for one in slices]
    along_row, along_column = np.array(data_sets[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    data_sets.sort(key=lambda d: float(normal @ np.array(d.ImagePositionPatient, float)))
    values = np.stack([d.pixel_array * float(d.RescaleSlope) for d in data_sets])
    corners = np.array([d.ImagePositionPatient for d in data_sets], float)
    between_rows, between_columns = map(float, data_sets[0].PixelSpacing)
    affine = np.c_[
        (corners[-1] - corners[0]) / (len(corners) - 1), along_column * between_rows, along_row * between_columns
    ]

    def read(points: NDArray[np.float64]) -> NDArray[np.float64]:
        index = np.rint((points - corners[0]) @ np.linalg.inv(affine).T).astype(int)
        inside = np.clip(index, 0, np.array(values.shape) - 1)
        return np.asarray(values[tuple(inside.T)], np.float64)

    return read
