"""Solids, their unions and random fields, against hand-worked numbers.

Flow: pytest > [test_shapes] > shapes
Never: anatomy.
"""

from __future__ import annotations

import numpy as np
import pytest

from dicomnode.demo.shapes import (
    Field,
    Points,
    blur,
    capsule,
    double,
    ellipsoid,
    fade,
    fold_sheets,
    intersect,
    sample_linear,
    smooth_noise,
    smooth_union,
    subtract,
    union,
)


def points(*places: tuple[float, float, float]) -> Points:
    x, y, z = np.array(places, np.float32).T
    return Points(x, y, z)


def field(*values: float) -> Field:
    return np.array(values, np.float32)


def test_distance_to_a_sphere_is_exact() -> None:
    there = ellipsoid(points((1, 2, 3), (11, 2, 3), (1, 2, 10.5)), (1, 2, 3), (5, 5, 5))
    assert there[1:] == pytest.approx([5.0, 2.5], abs=1e-5)
    assert there[0] <= 0


def test_an_ellipsoid_has_its_own_radius_along_each_axis() -> None:
    on_it = ellipsoid(points((3, 0, 0), (0, 5, 0), (0, 0, -7)), (0, 0, 0), (3, 5, 7))
    assert on_it == pytest.approx([0, 0, 0], abs=1e-5)


def test_a_capsule_has_round_ends_and_a_radius_that_changes_evenly() -> None:
    places = points((0, 0, -3), (4, 0, 5), (6, 0, 12))
    assert capsule(places, (0, 0, 0), (0, 0, 10), 1.0, 3.0) == pytest.approx([2.0, 2.0, 40**0.5 - 3.0], abs=1e-5)


def test_union_intersection_and_difference() -> None:
    a, b = field(-2, -2, 1), field(-1, 3, -4)
    assert union(a, b).tolist() == [-2, -2, -4]
    assert intersect(a, b).tolist() == [-1, 3, 1]
    assert subtract(a, b).tolist() == [1, -2, 4]


def test_a_smooth_union_fills_the_crease_only() -> None:
    # Equal: a quarter of the blend deeper; 4 mm apart, half way out of it: a sixteenth.
    assert smooth_union(field(1, -9, 0), field(1, 5, 4), 8.0).tolist() == [1 - 2, -9, 0 - 0.5]


def test_fade_is_half_on_the_surface() -> None:
    assert fade(field(-5, 0, 5)).tolist() == [1.0, 0.5, 0.0]


def test_double_keeps_the_voxels_and_halves_the_way_between_them() -> None:
    coarse = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    fine = double(coarse)
    assert fine.shape == (3, 3, 3)
    assert (fine[::2, ::2, ::2] == coarse).all()
    assert fine[1, 1, 1] == coarse.mean()
    assert fine[0, 0].tolist() == [0, 0.5, 1]


def test_blur_has_the_deviation_asked_for_along_each_axis() -> None:
    impulse = np.zeros((31, 33, 35), np.float32)
    impulse[15, 16, 17] = 1
    blurred = blur(impulse, (1.5, 2.0, 3.0))
    for axis, sigma in enumerate((1.5, 2.0, 3.0)):
        profile = blurred.sum(axis=tuple(other for other in range(3) if other != axis))
        place = np.arange(len(profile)) - [15, 16, 17][axis]
        assert (profile * place).sum() == pytest.approx(0, abs=1e-4)
        assert np.sqrt((profile * place**2).sum()) == pytest.approx(sigma, rel=0.01)


def test_smooth_noise_keeps_its_deviation_and_its_scale() -> None:
    noise = smooth_noise(np.random.default_rng(3), (60, 60, 60), 4.0)
    assert noise.std() == pytest.approx(1.0, abs=0.15)
    assert abs(noise.mean()) < 0.15
    crossings = (np.diff(np.sign(noise), axis=2) != 0).mean()
    assert 1 / crossings == pytest.approx(2.7 * 4.0, rel=0.2)
    assert (noise == smooth_noise(np.random.default_rng(3), (60, 60, 60), 4.0)).all()


def test_linear_sampling_by_hand() -> None:
    array = np.zeros((2, 3, 4), np.float32)
    array[1, 2, 3] = 8
    index = np.array([[1, 0.5, 1, 1], [2, 2, 1.5, 2], [3, 2.5, 3, 3.01]], np.float32)
    assert sample_linear(array, index).tolist() == [8, 2, 4, 0]


def test_fold_sheets_measure_distance_and_stand_on_the_surface() -> None:
    axis = np.arange(-40, 41, 2, dtype=np.float32)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    p = Points(x, y, z)
    ball = ellipsoid(p, (0, 0, 0), (38, 38, 38))
    sheets = fold_sheets(p, ball, 6.0, np.random.default_rng(1))
    shell = (ball < -4) & (ball > -14)
    assert 0.2 < (sheets[shell] > 0).mean() < 0.8
    gradient = np.stack(list(np.gradient(sheets, 2.0)))
    near = shell & (np.abs(sheets) < 1.5)
    assert np.median(np.linalg.norm(gradient, axis=0)[near]) == pytest.approx(1.0, abs=0.35)
    # A sheet that stands on the ball has a normal across the radius.
    radius = np.stack([z, y, x]) / np.maximum(np.sqrt(x**2 + y**2 + z**2), 1e-6)
    along = np.abs((gradient * radius).sum(axis=0)) / np.maximum(np.linalg.norm(gradient, axis=0), 1e-6)
    assert np.median(along[near]) < 0.35
