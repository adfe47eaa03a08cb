from __future__ import annotations

import numpy as np
import pytest

from registration.preprocess import blur
from registration.similarity import (
    NO_SOLUTION,
    Comparison,
    joint_histogram,
    make_comparison,
    measure,
    normalised_mutual_information,
)
from registration.volume import Volume


def make_pair(seed: int = 0) -> tuple[Comparison, Volume]:
    rng = np.random.default_rng(seed)
    array = blur(rng.random((40, 40, 40), dtype=np.float32), np.full(3, 2.0))
    array = (array - array.min()) / np.ptp(array)
    volume = Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]))
    index = rng.integers(5, 35, (4000, 3))
    return make_comparison(np.asarray(index * 2.0, dtype=np.float64), 1 - array[tuple(index.T)], volume, 1.0), volume


def shifted(x: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = x
    return matrix


def test_unrelated_is_one_and_equal_is_two() -> None:
    assert normalised_mutual_information(np.ones((32, 32))) == pytest.approx(1)
    assert normalised_mutual_information(np.eye(32)) == pytest.approx(2)
    assert normalised_mutual_information(np.eye(32)[::-1]) == pytest.approx(2)
    assert normalised_mutual_information(np.array([[5.0, 0], [0, 0]])) == 1.0


def test_two_by_two_by_hand() -> None:
    counts = np.array([[4.0, 1.0], [1.0, 4.0]])
    one, joint = np.log(2), -(0.8 * np.log(0.4) + 0.2 * np.log(0.1))

    assert normalised_mutual_information(counts) == pytest.approx(2 * one / joint)


def test_histogram_counts_every_point_inside_once() -> None:
    comparison, _ = make_pair()

    counts, overlap = joint_histogram(comparison, np.eye(4))

    assert overlap == 1.0
    assert counts.sum() == pytest.approx(4000)
    np.testing.assert_allclose(counts.sum(axis=1), np.bincount(comparison.rows // 32, minlength=32))


def test_highest_where_the_volumes_agree_though_contrast_is_reversed() -> None:
    comparison, _ = make_pair()

    values = [measure(comparison, shifted(x)) for x in (-4.0, -2.0, 0.0, 2.0, 4.0)]

    assert int(np.argmax(values)) == 2
    assert values[1] > values[0]
    assert values[3] > values[4]


def test_overlap_is_the_share_of_points_inside() -> None:
    comparison, volume = make_pair()
    inside = comparison.points_mm[:, 0] + 40 < (volume.shape[0] - 0.5) * 2

    _, overlap = joint_histogram(comparison, shifted(40.0))

    assert overlap == pytest.approx(inside.mean())


def test_too_little_overlap_is_no_solution() -> None:
    comparison, _ = make_pair()

    assert measure(comparison, shifted(52.0)) > 1
    assert measure(comparison, shifted(62.0)) == NO_SOLUTION
    assert measure(comparison, shifted(500.0)) == NO_SOLUTION
