from __future__ import annotations

import numpy as np
import pytest

from registration.preprocess import blur
from registration.similarity import (
    BLOCK,
    NO_SOLUTION,
    Comparison,
    joint_histogram,
    make_comparison,
    measure,
    normalised_mutual_information,
    thin_out,
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


def test_a_point_counts_in_the_bins_round_its_intensities_by_how_near_it_is_to_each() -> None:
    volume = Volume(np.full((3, 3, 3), 0.5, dtype=np.float32), np.eye(4))
    comparison = make_comparison(np.ones((1, 3)), np.array([0.25], dtype=np.float32), volume, 1.0, bins=4)

    counts, _ = joint_histogram(comparison, np.eye(4))

    moving = 128 / 255 * 3  # in 8 bits, in bins of 0 to 3
    expected = np.outer([0.25, 0.75, 0.0, 0.0], [0.0, 2 - moving, moving - 1, 0.0])
    np.testing.assert_allclose(counts, expected, atol=1e-6)


def test_the_brightest_counts_in_the_last_bin() -> None:
    volume = Volume(np.ones((3, 3, 3), dtype=np.float32), np.eye(4))

    counts, _ = joint_histogram(
        make_comparison(np.ones((1, 3)), np.array([1.2], dtype=np.float32), volume, 0.8, bins=4), np.eye(4)
    )

    assert counts[3, 3] == counts.sum() == 1


def test_more_points_than_one_block_count_as_one_block_and_the_rest_do() -> None:
    _, volume = make_pair()
    index = np.random.default_rng(1).integers(0, 40, (BLOCK + 500, 3))

    whole, first, rest = (
        joint_histogram(make_comparison(np.float64(2) * at, volume.array[tuple(at.T)], volume, 1.0), shifted(30.0))
        for at in (index, index[:BLOCK], index[BLOCK:])
    )

    np.testing.assert_allclose(whole[0], first[0] + rest[0], atol=1e-6)
    assert whole[1] * len(index) == pytest.approx(first[1] * BLOCK + rest[1] * 500)
    assert 0.5 < whole[1] < 0.9


def test_thinned_out_a_comparison_has_the_first_of_its_points_alone() -> None:
    comparison, _ = make_pair()

    few = thin_out(comparison, 100)

    assert joint_histogram(few, np.eye(4))[0].sum() == pytest.approx(100)
    np.testing.assert_array_equal(few.points_mm, comparison.points_mm[:, :100])


def test_highest_where_the_volumes_agree_though_contrast_is_reversed() -> None:
    comparison, _ = make_pair()

    values = [measure(comparison, shifted(x)) for x in (-4.0, -2.0, 0.0, 2.0, 4.0)]

    assert int(np.argmax(values)) == 2
    assert values[1] > values[0]
    assert values[3] > values[4]


def test_overlap_is_the_share_of_points_inside() -> None:
    comparison, volume = make_pair()
    inside = comparison.points_mm[0] + 40 < (volume.shape[0] - 0.5) * 2

    _, overlap = joint_histogram(comparison, shifted(40.0))

    assert overlap == pytest.approx(inside.mean())


def test_too_little_overlap_is_no_solution() -> None:
    comparison, _ = make_pair()

    assert measure(comparison, shifted(52.0)) > 1
    assert measure(comparison, shifted(62.0)) == NO_SOLUTION
    assert measure(comparison, shifted(500.0)) == NO_SOLUTION
