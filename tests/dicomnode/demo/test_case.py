"""How the demonstration judges what came back: by the REG's matrix and the slices' own positions.

Flow: pytest > [test_case] > case
Never: a node; tests/system runs the whole demonstration.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, SpatialRegistrationStorage

from dicomnode.demo.case import Case, make_panels, measure_tre_mm
from dicomnode.demo.patient import Person, Visit, write_pet
from dicomnode.demo.scans import Scan, fixed_from_moving, make_mr, make_pet, move_points, rigid_matrix
from dicomnode.errors import SeriesRefusedError
from tests.builders import head

TRUTH = rigid_matrix((10, 0, 0), (5, 6, 7), np.zeros(3))
INVERSE = np.asarray(np.linalg.inv(TRUTH), np.float64)


@pytest.fixture(scope="module")
def case() -> Case:
    mr = make_mr(head(1), np.eye(4), seed=1)
    pet = make_pet(head(1), INVERSE, spacing_mm=(6, 6, 6), seed=1)
    points = move_points(pet.scan_from_head, head(1).brain_points(50))
    return Case(head(1), mr, pet, [], [], fixed_from_moving(mr, pet), points)


def write_registration(path: Path, matrix: NDArray[np.float64]) -> Path:
    def item(values: NDArray[np.float64]) -> Dataset:
        inner, middle, outer = Dataset(), Dataset(), Dataset()
        inner.FrameOfReferenceTransformationMatrix = [f"{value:.10g}" for value in values.ravel()]
        middle.MatrixSequence = Sequence([inner])
        outer.MatrixRegistrationSequence = Sequence([middle])
        return outer

    registration = Dataset()
    registration.RegistrationSequence = Sequence([item(np.eye(4)), item(matrix)])
    registration.file_meta = FileMetaDataset()
    registration.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    registration.file_meta.MediaStorageSOPClassUID = SpatialRegistrationStorage
    registration.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    registration.save_as(path, enforce_file_format=True)
    return path


def test_the_error_is_the_distance_to_the_truth(case: Case, tmp_path: Path) -> None:
    assert measure_tre_mm(case, write_registration(tmp_path / "a.dcm", TRUTH)).max() < 1e-6
    shifted = TRUTH.copy()
    shifted[:3, 3] += [3, 4, 0]
    assert measure_tre_mm(case, write_registration(tmp_path / "b.dcm", shifted)) == pytest.approx(5)
    turned_round = measure_tre_mm(case, write_registration(tmp_path / "c.dcm", INVERSE))
    assert turned_round.mean() > 10


def test_displacement_is_what_a_header_gets_wrong(case: Case) -> None:
    wrong = np.linalg.norm(move_points(TRUTH, case.points_mm) - case.points_mm, axis=1).mean()
    assert case.displacement_mm == pytest.approx(wrong)


def test_received_slices_go_where_they_say(case: Case, tmp_path: Path) -> None:
    some = Scan(np.arange(176 * 229 * 231, dtype=np.float32).reshape(176, 229, 231)[:3], case.mr.affine, np.eye(4))
    files = write_pet(tmp_path, some, Visit(Person(), "a"))
    panels = make_panels(case, files[::-1], [])
    assert panels.pet_after[:3] == pytest.approx(some.array, abs=100)
    assert not panels.pet_after[3:].any()
    k, j, i = panels.planes
    shown = panels.pet_before[k], panels.pet_before[:, j], panels.pet_before[:, :, i]
    assert all(plane.max() > 5000 for plane in shown)


def test_a_slice_beside_the_mr_grid_is_refused(case: Case, tmp_path: Path) -> None:
    affine = case.mr.affine.copy()
    affine[:3, 3] += 0.3 * affine[:3, 0]
    files = write_pet(tmp_path, Scan(np.ones((1, 4, 4), np.float32), affine, np.eye(4)), Visit(Person(), "a"))
    with pytest.raises(SeriesRefusedError, match=r"voxel \(0\.300, -?0\.000, -?0\.000\)"):
        make_panels(case, files, [])
