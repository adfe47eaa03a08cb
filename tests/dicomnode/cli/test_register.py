"""`dicomnode register`: what it refuses in one line, and what it says of a pair that does not belong together.

Flow: cli/register > [test_register]
Never: how good a registration is (tests/registration), or that it is the node's (tests/system).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage

from dicomnode.cli.register import EXIT_CODES
from dicomnode.outputs.report_words import SIGNALS
from tests.builders import Patient, make_patient
from tests.dicomnode.cli.conftest import Run
from tests.dicomnode.dynamic_files import DynamicSpec, make_dynamic
from tests.dicomnode.series_files import write_files

KEYS = ["fixed_from_moving", "verdict", "confidence", "metrics", "timings_s", "device", "model_sha256", "outputs"]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    return make_patient(tmp_path_factory.mktemp("patient"))


def refuse(run: Run, fixed: Path, moving: Path, output: Path) -> str:
    ran = run("register", "--fixed", fixed, "--moving", moving, "--output", output, "--json")
    assert ran.code == 2
    assert ran.out == ""
    (line,) = [line for line in ran.err.splitlines() if line.startswith("dicomnode: ")]
    assert "Traceback" not in ran.err
    return line


def test_a_folder_that_is_not_there(run: Run, tmp_path: Path) -> None:
    for name in ("none", "n" * 300):  # where even root may not look
        line = refuse(run, tmp_path / name, tmp_path, tmp_path / "out")
        assert f"--fixed {tmp_path}/{name}: no such folder, or this user may not read it" in line


def test_a_folder_without_dicom(run: Run, tmp_path: Path, patient: Patient) -> None:
    (tmp_path / "text.dcm").write_text("not DICOM", encoding="utf-8")
    line = refuse(run, patient.mr_folder, tmp_path, tmp_path / "out")
    assert f"--moving {tmp_path}: found 0 DICOM series, needed 1: none" in line


def test_a_folder_of_two_series(run: Run, tmp_path: Path, patient: Patient) -> None:
    line = refuse(run, patient.mr_folder.parent, patient.pet_folder, tmp_path / "out")
    assert "found 2 DICOM series, needed 1: " in line
    assert f"({len(patient.mr_files)} files)" in line


def test_one_slice(run: Run, tmp_path: Path, patient: Patient) -> None:
    (tmp_path / "mr").mkdir()
    (tmp_path / "mr" / "one.dcm").write_bytes(patient.mr_files[0].read_bytes())
    line = refuse(run, tmp_path / "mr", patient.pet_folder, tmp_path / "out")
    assert "slice" in line
    assert list((tmp_path / "out").iterdir()) == []


def test_a_ct(run: Run, tmp_path: Path, patient: Patient) -> None:
    (tmp_path / "ct").mkdir()
    for path in patient.pet_files:
        header = pydicom.dcmread(path)
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
        header.Modality = "CT"
        header.save_as(tmp_path / "ct" / path.name)
    assert "modality CT" in refuse(run, patient.mr_folder, tmp_path / "ct", tmp_path / "out")


def test_a_dynamic_pet_is_refused_unless_the_environment_asks_for_its_mean(
    run: Run, tmp_path: Path, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient_id = pydicom.dcmread(patient.mr_files[0]).PatientID

    def change(header: pydicom.Dataset, _number: int) -> None:
        header.PatientID = patient_id
        del header.ActualFrameDuration

    frames = make_dynamic(DynamicSpec(durations_s=(60, 120), change=change))
    write_files(tmp_path / "pet", [header for slices in frames for header in slices])
    assert "a dynamic series: 2 stacks" in refuse(run, patient.mr_folder, tmp_path / "pet", tmp_path / "out")
    monkeypatch.setenv("DICOMNODE_PAIRING__DYNAMIC_PET", "mean")
    line = refuse(run, patient.mr_folder, tmp_path / "pet", tmp_path / "out")
    assert "time frame 1 of 2: ActualFrameDuration is absent" in line


def test_an_output_folder_that_cannot_be_made(run: Run, patient: Patient) -> None:
    line = refuse(run, patient.mr_folder, patient.pet_folder, Path("/proc/out"))
    assert "--output /proc/out: cannot be made" in line


def test_a_device_that_there_is_not(
    run: Run, tmp_path: Path, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMNODE_REGISTRATION__DEVICE", "tpu")
    line = refuse(run, patient.mr_folder, patient.pet_folder, tmp_path / "out")
    assert "environment variable DICOMNODE_REGISTRATION__DEVICE: registration.device: found 'tpu'" in line


def check_report(path: Path) -> None:
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.shape[1] > 1500
    assert np.ptp(picture.astype(int), axis=2).max() > 100, "no colour anywhere"


def test_a_pair_gives_dicom_and_a_report_for_the_eye(run: Run, tmp_path: Path, patient: Patient) -> None:
    out = tmp_path / "out"
    ran = run("register", "--fixed", patient.mr_folder, "--moving", patient.pet_folder, "--output", out)
    facts = dict(line.split(maxsplit=1) for line in ran.out.splitlines()[:7])
    assert ran.code == EXIT_CODES[facts["verdict"]]
    assert facts["verdict"] != "reject"
    assert facts["report"] == str(out / "report.png")
    assert f"the report is {out}/report.png\n" in ran.err
    assert "PatientID" not in ran.err
    written = {path.name for path in out.iterdir() if path.suffix != ".dcm"}
    assert written == {"report.png"}
    assert facts["outputs"] == f"{len(list(out.glob('*.dcm')))} instances in {out}"
    check_report(out / "report.png")


def test_what_does_not_belong_together_is_rejected_with_3_and_nothing_written_but_the_report(
    run: Run, tmp_path: Path, patient: Patient
) -> None:
    (tmp_path / "noise").mkdir()
    random = np.random.default_rng(0)
    for path in patient.pet_files:
        instance = pydicom.dcmread(path)
        shape = (instance.Rows, instance.Columns)
        instance.PatientID = "somebody else"
        instance.PixelData = random.integers(0, 2000, shape, dtype=np.uint16).tobytes()
        instance.save_as(tmp_path / "noise" / path.name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.dcm").touch()
    flags = ("--fixed", patient.mr_folder, "--moving", tmp_path / "noise", "--output", tmp_path / "out")
    ran = run("register", *flags, "--json")
    assert ran.code == EXIT_CODES["reject"] == 3
    answer = ran.json
    assert list(answer) == KEYS
    assert (answer["verdict"], answer["outputs"]) == ("reject", [])
    assert np.shape(answer["fixed_from_moving"]) == (4, 4)
    assert answer["confidence"] < 0.5
    assert set(answer["metrics"]) == set(SIGNALS), "each is told in words"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"old.dcm", "report.png"}
    assert f"the report is {tmp_path}/out/report.png\n" in ran.err
    check_report(tmp_path / "out" / "report.png")
    assert "% load\n" in ran.err
    assert f"{tmp_path}/out also holds 1 files of an earlier run" in ran.err
    assert "dicomnode: PatientID differs between the MR and the PET; the results carry the MR's\n" in ran.err
    assert "somebody else" not in ran.err
