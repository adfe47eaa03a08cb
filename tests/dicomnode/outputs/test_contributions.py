"""Which PET slices an output slice was made of."""

from __future__ import annotations

import numpy as np

from dicomnode.outputs.contributions import find_contributing, middle_slice
from registration.transforms import RigidTransform
from registration.volume import Volume


def make_volume(shape: tuple[int, int, int], spacing_mm: float, origin_mm: tuple[float, ...] = (0, 0, 0)) -> Volume:
    """Return an axial volume: k along z, j along y, i along x."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing_mm
    affine[:3, 3] = origin_mm
    affine[3, 3] = 1
    return Volume(np.zeros(shape, np.float32), affine)


def test_parallel_slices_lie_between_their_neighbours() -> None:
    # MR planes at z = 0, 3, 6 ... 27; PET planes at z = 0, 4, 8, 12, 16, its last edge at 18.
    found = find_contributing(make_volume((10, 8, 8), 3), make_volume((5, 8, 8), 4), RigidTransform.identity())
    assert [list(slices) for slices in found[:7]] == [[0], [0, 1], [1, 2], [2, 3], [3], [3, 4], [4]]
    assert [list(slices) for slices in found[7:]] == [[], [], []]


def test_direction_is_that_of_the_moving_volume_being_carried_over() -> None:
    # fixed_from_moving adds 8 mm in z: the PET slice at z = 0 lies at 8 in the MR.
    shift = np.eye(4)
    shift[2, 3] = 8
    found = find_contributing(make_volume((5, 8, 8), 4), make_volume((5, 8, 8), 4), RigidTransform(shift))
    assert [list(slices) for slices in found] == [[], [], [0], [1], [2]]


def test_a_plane_across_the_slices_takes_only_those_it_meets() -> None:
    # Turned by 90 degrees about x, (x, y, z) goes to (x, -z, y): an MR row at y lies at z = -y in the PET. The MR's
    # rows reach from y = -6 to 10 mm, the PET's slices from z = -2 to 34 mm: they share z = -2 to 6, slices 0 to 1.5.
    turn = RigidTransform.from_parameters(np.array([np.pi / 2, 0, 0]), np.zeros(3), np.zeros(3))
    found = find_contributing(make_volume((3, 4, 8), 4, (0, -4, 0)), make_volume((9, 8, 8), 4), turn)
    assert [list(slices) for slices in found] == [[0, 1, 2]] * 3


def test_only_the_part_of_a_plane_inside_the_rows_and_columns_counts() -> None:
    # Turned by -45 degrees about x the plane runs along y = z in the PET. The PET's two rows end at y = 6 mm, so
    # the plane leaves it at z = 6 mm, slice 1.5, though both go on.
    turn = RigidTransform.from_parameters(np.array([-np.pi / 4, 0, 0]), np.zeros(3), np.zeros(3))
    found = find_contributing(make_volume((1, 9, 4), 4, (0, -16, 0)), make_volume((9, 2, 8), 4), turn)
    assert [list(slices) for slices in found] == [[0, 1, 2]]


def test_middle_slice_is_that_of_all_contributing() -> None:
    assert middle_slice([range(0), range(3, 5), range(4, 8)], 20) == 5
    assert middle_slice([range(0)], 20) == 10
