"""Where a plane cuts a volume, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dicomnode.outputs.planes import SIZE_PX, make_planes, sample_linear, thin
from registration.volume import Volume

CENTRE_MM = np.array([5.0, -20.0, 30.0])
AXIAL, CORONAL, SAGITTAL = range(3)


def test_radiologists_see_the_patients_left_on_the_right_the_face_on_the_left_and_the_vertex_on_top() -> None:
    planes = make_planes(CENTRE_MM)
    assert [plane.name for plane in planes] == ["axial", "coronal", "sagittal"]
    assert [plane.letters for plane in planes] == [
        ("R", "L", "A", "P"),
        ("R", "L", "S", "I"),
        ("A", "P", "S", "I"),
    ]


@pytest.mark.parametrize(
    ("number", "step_mm", "right_px", "down_px"),
    [
        (AXIAL, (10, 0, 0), 10, 0),  # to the left
        (AXIAL, (0, 10, 0), 0, 10),  # to the back
        (CORONAL, (10, 0, 0), 10, 0),
        (CORONAL, (0, 0, 10), 0, -10),  # to the head
        (SAGITTAL, (0, 10, 0), 10, 0),
        (SAGITTAL, (0, 0, 10), 0, -10),
    ],
)
def test_a_step_in_the_patient_is_a_step_in_the_picture(
    number: int, step_mm: tuple[float, float, float], right_px: int, down_px: int
) -> None:
    plane = make_planes(CENTRE_MM)[number]
    pixels, away_mm = plane.to_pixels(CENTRE_MM + np.array([step_mm]))
    middle = (SIZE_PX - 1) / 2
    assert pixels[0].tolist() == [middle + right_px, middle + down_px]
    assert away_mm.tolist() == [0.0]


@pytest.mark.parametrize("number", [AXIAL, CORONAL, SAGITTAL])
def test_pixels_and_points_are_one_anothers_inverse(number: int) -> None:
    plane = make_planes(CENTRE_MM)[number]
    pixels, away_mm = plane.to_pixels(plane.points_mm()[7:8, 200])
    assert pixels[0].tolist() == pytest.approx([200, 7])
    assert away_mm[0] == pytest.approx(0)
    across = [2, 1, 0][number]
    _, away_mm = plane.to_pixels(CENTRE_MM[None] - 4 * np.eye(3)[across])
    assert away_mm[0] == pytest.approx(4)


def test_a_volume_is_read_between_its_voxels_and_not_beyond_its_field_of_view() -> None:
    affine = np.array([[0.0, 0, 2, 10], [0, 3, 0, 20], [4, 0, 0, 30], [0, 0, 0, 1]])  # i to x, j to y, k to z
    k, j, i = np.indices((2, 3, 4), dtype=np.float32)
    volume = Volume(100 * k + 10 * j + i, affine)
    points = [
        [14, 23, 34],  # k 1, j 1, i 2
        [13, 21.5, 32],  # k 0.5, j 0.5, i 1.5
        [16.9, 27.4, 35.9],  # less than half a voxel beyond the last
        [9.1, 18.6, 28.1],  # and before the first
        [17.1, 26, 34],  # more
        [10, 18.4, 30],
    ]
    values = sample_linear(volume, np.array(points))
    assert values[:4].tolist() == pytest.approx([112, 56.5, 123, 0])
    assert np.isnan(values[4:]).all()


def test_thinned_voxels_stay_where_they_were() -> None:
    affine = np.diag([1.5, 5.0, 1.0, 1.0])
    volume = Volume(np.arange(9 * 3 * 10, dtype=np.float32).reshape(9, 3, 10), affine)
    few = thin(volume)
    assert few.spacing_mm.tolist() == [3.0, 5.0, 4.0]
    assert few.array[1, 2, 2] == volume.array[2, 2, 8]
    assert (few.affine @ (1, 2, 2, 1)).tolist() == (affine @ (2, 2, 8, 1)).tolist()
    assert np.shares_memory(few.array, volume.array)
