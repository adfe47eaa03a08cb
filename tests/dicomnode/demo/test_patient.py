"""The synthetic patient's DICOM series, read back header by header.

Flow: pytest > [test_patient] > patient
Never: another reader of ours; tests/peers reads the same files with SimpleITK and dciodvfy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from dicomnode.demo.patient import Person, Visit, write_mr, write_pet
from dicomnode.demo.scans import Scan, rigid_matrix

AFFINE = rigid_matrix((20, -10, 30), (5, 6, 7), np.zeros(3)) @ np.diag([-3.0, 2.0, 1.5, 1.0])[[2, 1, 0, 3]]


@pytest.fixture
def scan() -> Scan:
    values = np.random.default_rng(0).random((9, 5, 7), np.float32) * np.float32(30000)
    return Scan(values * np.linspace(0.1, 1, 9, dtype=np.float32)[:, None, None], AFFINE, np.eye(4))


def affine_of(slices: list[pydicom.Dataset]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Work out the index (k, j, i) to LPS matrix from the headers, by PS3.3 C.7.6.2.1.1."""
    first, last = (np.array(s.ImagePositionPatient, float) for s in (slices[0], slices[-1]))
    along_row, along_column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = (last - first) / (len(slices) - 1)
    affine[:3, 1] = along_column * between_rows
    affine[:3, 2] = along_row * between_columns
    affine[:3, 3] = first
    return affine


def read(paths: list[Path]) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in paths]


def test_pet_round_trip_with_a_slope_for_every_slice(tmp_path: Path, scan: Scan) -> None:
    slices = read(write_pet(tmp_path, scan, Visit(Person(), "a")))
    assert affine_of(slices) == pytest.approx(scan.affine, abs=1e-6)
    values = np.stack([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices])
    assert values == pytest.approx(scan.array, abs=0.5)
    assert len({s.RescaleSlope for s in slices}) == 9
    assert {int(s.NumberOfSlices) for s in slices} == {9}
    assert {s.Units for s in slices} == {"BQML"}


def test_mr_round_trip(tmp_path: Path, scan: Scan) -> None:
    slices = read(write_mr(tmp_path, scan, Visit(Person(), "a")))
    assert affine_of(slices) == pytest.approx(scan.affine, abs=1e-6)
    assert np.stack([s.pixel_array for s in slices]) == pytest.approx(scan.array, abs=0.51)


def test_the_same_key_makes_the_same_bytes(tmp_path: Path, scan: Scan) -> None:
    one, two, other = (
        [path.read_bytes() for path in write_mr(tmp_path / name, scan, Visit(Person(), key))]
        for name, key in (("1", "a"), ("2", "a"), ("3", "b"))
    )
    assert one == two
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_uids_are_valid_and_each_visit_has_its_own(tmp_path: Path, scan: Scan) -> None:
    mr, pet = (
        read(write_mr(tmp_path, scan, Visit(Person(), "a"))),
        read(write_pet(tmp_path, scan, Visit(Person(), "b"))),
    )
    for keyword, count in {"SOPInstanceUID": 18, "SeriesInstanceUID": 2, "StudyInstanceUID": 2}.items():
        found = {s[keyword].value for s in [*mr, *pet]}
        assert len(found) == count
        assert all(uid.is_valid for uid in found)
    assert mr[0].FrameOfReferenceUID != pet[0].FrameOfReferenceUID


def test_identity_and_transfer_syntax_are_as_asked(tmp_path: Path, scan: Scan) -> None:
    who = Person(patient_id="X1", issuer="", name="Doe^Jo", birth_date="19700101", sex="M")
    visit = replace(Visit(who, "a"), transfer_syntax_uid=ImplicitVRLittleEndian)
    first = read(write_pet(tmp_path, scan, visit))[0]
    assert (first.PatientID, first.PatientName, first.PatientBirthDate, first.PatientSex) == (
        "X1",
        "Doe^Jo",
        "19700101",
        "M",
    )
    assert "IssuerOfPatientID" not in first
    assert first.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
