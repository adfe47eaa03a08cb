from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.matching import distances, match
from registration.profiles import DEFAULT, PAPER


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def scattered(count: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(5)] * 3), axis=-1).reshape(-1, 3)[:count]
    return np.asarray(grid * 25.0, dtype=np.float64), unit(rng.standard_normal((count, 32)))


def test_equal_descriptors_are_matched_to_their_places() -> None:
    points, descriptors = scattered(60)
    order = np.random.default_rng(1).permutation(60)

    matches = match((points, descriptors), (points[order] + 100, descriptors[order]), DEFAULT.rule)

    assert len(matches) == 60
    np.testing.assert_allclose(matches.moving - matches.fixed, 100, atol=1e-3)
    np.testing.assert_array_equal(points[matches.fixed_index], matches.fixed)


def test_a_runner_up_elsewhere_that_looks_the_same_rules_a_match_out() -> None:
    points, descriptors = scattered(60)
    twin = descriptors.copy()
    twin[7] = twin[30]

    matches = match((points, descriptors), (points, twin), DEFAULT.rule)

    assert 30 not in matches.fixed_index
    assert 7 not in matches.fixed_index
    assert len(matches) == 58


def test_a_runner_up_nearby_does_not_and_the_match_lies_between_the_two() -> None:
    points, descriptors = scattered(60)
    moving = np.concatenate([points, points[[30]] + [6.0, 0, 0]])

    matches = match((points, descriptors), (moving, descriptors[[*range(60), 30]]), DEFAULT.rule)

    at = int(np.flatnonzero(matches.fixed_index == 30)[0])
    np.testing.assert_allclose(matches.moving[at] - points[30], [3, 0, 0], atol=1e-3)


def test_a_match_must_be_the_candidates_best_too() -> None:
    points, descriptors = scattered(40)
    far = np.array([[900.0, 0, 0]])
    rival = unit(descriptors[[5]] + 0.3 * unit(np.random.default_rng(3).standard_normal((1, 32))))

    matches = match(
        (np.concatenate([points, far]), np.concatenate([descriptors, rival])), (points, descriptors), DEFAULT.rule
    )

    assert 5 in matches.fixed_index
    assert 40 not in matches.fixed_index


def test_candidates_beyond_the_radius_are_not_looked_at() -> None:
    points, descriptors = scattered(60)
    order = np.random.default_rng(1).permutation(60)

    matches = match((points, descriptors), (points, descriptors[order]), DEFAULT.rule, radius_mm=20.0)

    assert (np.linalg.norm(matches.moving - matches.fixed, axis=1) <= 20).all()
    assert (
        np.linalg.norm(match((points, descriptors), (points, descriptors[order]), DEFAULT.rule).moving - points, axis=1)
        > 20
    ).any()


def test_no_key_point_has_no_match() -> None:
    points, descriptors = scattered(60)

    assert len(match((points[:0], descriptors[:0]), (points, descriptors), DEFAULT.rule)) == 0


def test_distances_by_hand() -> None:
    found = distances(np.array([[0.0, 0, 0], [1, 1, 1]]), np.array([[3.0, 4, 0]]))

    np.testing.assert_allclose(found, [[5.0], [np.sqrt(4 + 9 + 1)]])


def test_the_papers_rule_holds_a_neighbour_for_a_runner_up_and_takes_the_very_candidate() -> None:
    points, descriptors = scattered(60)
    moving = np.concatenate([points, points[[30]] + [6.0, 0, 0]])

    matches = match((points, descriptors), (moving, descriptors[[*range(60), 30]]), PAPER.rule)

    assert 30 not in matches.fixed_index
    np.testing.assert_array_equal(matches.moving, matches.fixed)
