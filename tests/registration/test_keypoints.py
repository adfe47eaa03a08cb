from __future__ import annotations

import cv2
import numpy as np
import pytest

from registration.errors import TooFewPointsError
from registration.keypoints import detect, find_fixed_points, find_moving_points, find_sift_points, spread
from registration.preprocess import Cube, make_cube_grid
from registration.profiles import DEFAULT, PAPER


def make_cube_of_blobs(count: int = 60, seed: int = 0) -> tuple[Cube, np.ndarray]:
    rng = np.random.default_rng(seed)
    array = np.zeros((128, 128, 128), np.float32)
    places = rng.integers(24, 104, (count, 3))
    k, j, i = np.indices((17, 17, 17)) - 8
    blob = np.exp(-(k**2 + j**2 + i**2) / (2 * 3.0**2)).astype(np.float32)
    for a, b, c in places:
        array[a - 8 : a + 9, b - 8 : b + 9, c - 8 : c + 9] += 0.7 * blob
    foreground = np.zeros(array.shape, bool)
    foreground[16:112, 16:112, 16:112] = True
    return Cube(np.clip(array, 0, 1), foreground, make_cube_grid(np.zeros(3)).affine), places


@pytest.mark.parametrize(("row", "column"), [(40.0, 60.0), (40.25, 60.5), (39.6, 59.9)])
def test_a_blob_is_found_where_it_is_to_a_tenth_of_a_pixel(row: float, column: float) -> None:
    rows, columns = np.indices((96, 112))
    image = 200 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 4.0**2))

    found = detect(np.rint(image).astype(np.uint8))

    nearest = found[np.linalg.norm(found[:, :2] - [row, column], axis=1).argmin()]
    assert nearest[:2] == pytest.approx([row, column], abs=0.1)


def test_an_image_without_structure_has_no_points() -> None:
    assert detect(np.full((64, 64), 90, np.uint8)).shape == (0, 3)


def test_points_lie_at_the_blobs_inside_the_foreground_and_only_once() -> None:
    cube, places = make_cube_of_blobs(12)

    points, responses = find_sift_points(cube, DEFAULT.planes)

    assert cube.foreground[tuple(points.T)].all()
    assert len(np.unique(points, axis=0)) == len(points)
    assert (np.diff(responses) <= 0).all()
    apart = np.linalg.norm(points[:, None] - places[None], axis=2).min(axis=0)
    assert np.median(apart) <= 2


def test_spread_takes_the_strongest_of_each_cell_first() -> None:
    points = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [40, 40, 40]])

    chosen = spread(points, np.array([9.0, 8.0, 7.0, 1.0]), 2)

    assert chosen.tolist() == [[0, 0, 0], [40, 40, 40]]


def test_moving_candidates_are_a_grid_and_sift_points_within_uptake() -> None:
    cube, _ = make_cube_of_blobs()

    points = find_moving_points(cube, 900, DEFAULT)

    assert len(points) <= 900
    assert cube.foreground[tuple(points.T)].all()
    sift, _ = find_sift_points(cube, DEFAULT.planes)
    is_sift = (points[:, None] == sift[None]).all(axis=2).any(axis=1)
    assert is_sift.sum() > 100
    assert (~is_sift).sum() > 400


def test_the_candidates_stay_within_their_number_and_spread_over_the_foreground() -> None:
    cube, _ = make_cube_of_blobs()
    everywhere = Cube(cube.array, np.ones_like(cube.foreground), cube.affine)

    points = find_moving_points(everywhere, 900, DEFAULT)

    assert len(points) <= 900
    for axis in range(3):
        assert points[:, axis].min() < 10
        assert points[:, axis].max() > 117
        assert np.histogram(points[:, axis], bins=4, range=(0, 128))[0].min() > 100


def test_too_little_structure_is_an_error() -> None:
    flat = Cube(np.zeros((128, 128, 128), np.float32), np.ones((128, 128, 128), bool), np.eye(4))
    nothing = Cube(flat.array, np.zeros_like(flat.foreground), np.eye(4))

    with pytest.raises(TooFewPointsError, match="0 key points in the fixed volume, 12 needed"):
        find_fixed_points(flat, 300, DEFAULT)
    with pytest.raises(TooFewPointsError, match="0 candidates"):
        find_moving_points(nothing, 300, DEFAULT)


def test_detection_does_not_depend_on_the_number_of_threads() -> None:
    cube, _ = make_cube_of_blobs()
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        alone = find_fixed_points(cube, 200, DEFAULT)
        cv2.setNumThreads(4)
        together = find_fixed_points(cube, 200, DEFAULT)
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(alone, together)


def test_the_papers_points_are_sift_points_of_axial_slices_on_both_sides() -> None:
    cube, _ = make_cube_of_blobs()
    axial, _ = find_sift_points(cube, (0,))
    everywhere, _ = find_sift_points(cube, (0, 1, 2))
    assert len(axial) < len(everywhere)

    for points in (find_fixed_points(cube, 300, PAPER), find_moving_points(cube, 300, PAPER)):
        assert len(points) <= 300
        assert {tuple(point) for point in points} <= {tuple(point) for point in axial}
