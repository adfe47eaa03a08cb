"""The MR and the PET of a synthetic head: contrast, geometry and the truth between them.

Flow: pytest > [test_scans] > scans
Never: registration; the truth is checked by what lies at the points it connects.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dicomnode.demo.phantom import Tissue
from dicomnode.demo.scans import Scan, fixed_from_moving, make_mr, make_pet, move_points, rigid_matrix
from dicomnode.demo.shapes import sample_linear
from tests.builders import head

MR_FROM_HEAD = rigid_matrix((3, -4, 5), (4, -18, 22), np.zeros(3))
TRUTH = rigid_matrix((12, -8, 10), (15, -12, 18), np.zeros(3))
PET_FROM_HEAD = np.linalg.inv(TRUTH) @ MR_FROM_HEAD


@pytest.fixture(scope="module")
def mr() -> Scan:
    return make_mr(head(1), MR_FROM_HEAD, seed=1)


@pytest.fixture(scope="module")
def pet() -> Scan:
    return make_pet(head(1), PET_FROM_HEAD, seed=1)


def inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.inv(matrix), np.float64)


def values_at(scan: Scan, points_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    return sample_linear(scan.array, move_points(inverse(scan.affine), points_mm).T.astype(np.float32))


def points_of(tissue: Tissue) -> NDArray[np.float64]:
    inside = np.argwhere(head(1).fractions[tissue] > 250)[::50]
    return move_points(head(1).affine, inside.astype(np.float64))


def test_rigid_matrix_by_hand() -> None:
    quarter = rigid_matrix((0, 0, 90), (1, 2, 3), np.array([10.0, 0, 0]))
    # A quarter about z through (10, 0, 0) takes +x to +y.
    assert move_points(quarter, np.array([[11.0, 0, 0]]))[0] == pytest.approx([11, 3, 3])
    turned = rigid_matrix((90, 0, 90), (0, 0, 0), np.zeros(3))
    # About x first: +y goes to +z and stays there.
    assert move_points(turned, np.array([[0.0, 1, 0]]))[0] == pytest.approx([0, 0, 1], abs=1e-12)


def test_mr_white_matter_is_brighter_than_grey_and_grey_than_fluid(mr: Scan) -> None:
    white, grey, fluid, fat = (
        float(np.median(values_at(mr, move_points(MR_FROM_HEAD, points_of(tissue)))))
        for tissue in (Tissue.WHITE, Tissue.CORTEX, Tissue.FLUID, Tissue.FAT)
    )
    assert fat > white > 1.3 * grey > 2 * fluid > 0


def test_mr_is_a_box_of_sagittal_slices(mr: Scan) -> None:
    assert mr.array.shape == (176, 229, 231)
    directions = mr.affine[:3, :3]
    assert directions.T @ directions == pytest.approx(np.eye(3), abs=1e-9)
    assert directions[0, 0] > 0.9, "k runs to the left"
    assert directions[2, 1] < -0.9, "rows run down"
    assert directions[1, 2] > 0.9, "columns run to the back"


def test_a_coarser_mr_lies_in_the_same_place(mr: Scan) -> None:
    coarse = make_mr(head(1), MR_FROM_HEAD, spacing_mm=2.0, seed=1)
    corner = move_points(coarse.affine, np.array([[0.0, 0, 0]]))[0]
    assert corner == pytest.approx(move_points(mr.affine, np.array([[0.5, 0.5, 0.5]]))[0])
    points = move_points(MR_FROM_HEAD, points_of(Tissue.WHITE))
    assert np.median(values_at(coarse, points)) == pytest.approx(np.median(values_at(mr, points)), rel=0.1)
    nuclei = move_points(MR_FROM_HEAD, points_of(Tissue.NUCLEI))
    assert np.median(values_at(coarse, nuclei)) == pytest.approx(np.median(values_at(mr, nuclei)), rel=0.1)


def test_pet_is_hot_in_grey_matter_and_cool_outside_the_brain(pet: Scan) -> None:
    nuclei, cortex, white, fat = (
        float(values_at(pet, move_points(PET_FROM_HEAD, points_of(tissue))).mean())
        for tissue in (Tissue.NUCLEI, Tissue.CORTEX, Tissue.WHITE, Tissue.FAT)
    )
    assert nuclei > cortex > 1.4 * white > 1.4 * 2 * fat > 0


def test_pet_grid_is_the_scanners(pet: Scan) -> None:
    assert np.abs(pet.affine[:3, :3]).max(axis=1).tolist() == [2, 2, 3]
    assert np.count_nonzero(pet.affine[:3, :3]) == 3
    assert pet.array.min() >= 0


def test_the_truth_connects_the_same_points(mr: Scan, pet: Scan) -> None:
    found = fixed_from_moving(mr, pet)
    assert found == pytest.approx(TRUTH)
    in_pet = move_points(PET_FROM_HEAD, points_of(Tissue.WHITE))
    right = values_at(mr, move_points(found, in_pet))
    wrong = values_at(mr, move_points(inverse(found), in_pet))
    assert np.median(right) > 700
    assert right.std() < 0.5 * wrong.std()


def test_the_same_seed_gives_the_same_noise_and_another_another() -> None:
    one, same, other = (make_pet(head(1), PET_FROM_HEAD, spacing_mm=(6, 6, 6), seed=s) for s in (1, 1, 2))
    assert (one.array == same.array).all()
    assert (one.array != other.array).any()
