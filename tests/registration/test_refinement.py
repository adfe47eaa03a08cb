from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from registration.preprocess import blur
from registration.refinement import COARSE, FINE, SETTLE_MM, Search, find_top, minimise, minimise_along, refine, settle
from registration.similarity import Comparison, make_comparison, measure
from registration.transforms import RigidTransform
from registration.volume import Volume


def test_a_tilted_bowl_in_six_dimensions() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    lowest = rng.uniform(-15, 15, 6)

    def bowl(point: NDArray[np.float64]) -> float:
        return float(((axes @ (point - lowest)) ** 2 * [1, 2, 3, 5, 8, 13]).sum())

    found, value = minimise(bowl, np.zeros(6), Search(step_mm=4.0, stop_mm=0.02, sweeps=20))

    np.testing.assert_allclose(found, lowest, atol=0.1)
    assert value < 0.05


@pytest.mark.parametrize("lowest", [-40.0, -3.0, 0.0, 0.7, 25.0])
def test_along_a_line(lowest: float) -> None:
    direction = np.array([0.6, 0.8])

    point, value = minimise_along(
        lambda p: (float(p @ direction) - lowest) ** 2, (np.zeros(2), lowest**2), direction, 2.0
    )

    assert point @ direction == pytest.approx(lowest, abs=0.3)
    assert value <= lowest**2


def test_a_line_search_never_ends_higher_than_it_began() -> None:
    rng = np.random.default_rng(0)
    table = rng.random(1000)
    point, value = minimise_along(
        lambda p: float(table[int(abs(p[0]) * 37) % 1000]), (np.zeros(1), float(table[0])), np.ones(1), 3.0
    )

    assert value <= table[0]
    assert value == table[int(abs(point[0]) * 37) % 1000]


CENTRE_MM = np.full(3, 78.0)


def known_pose() -> tuple[Comparison, RigidTransform, NDArray[np.float64]]:
    """A comparison, the pose that is right, and the moving points, LPS mm."""
    rng = np.random.default_rng(0)
    array = blur(rng.random((40, 40, 40), dtype=np.float32), np.full(3, 3.0))
    array = (array - array.min()) / np.ptp(array)
    volume = Volume(array, np.diag([4.0, 4.0, 4.0, 1.0]))
    truth = RigidTransform.from_parameters(np.array([0.03, -0.05, 0.04]), np.array([3.0, -2.0, 4.0]), CENTRE_MM)
    index = rng.integers(8, 32, (5000, 3))
    moving_mm = np.asarray(index * 4.0, dtype=np.float64)
    return make_comparison(truth.apply(moving_mm), array[tuple(index.T)], volume, 1.0), truth, moving_mm


def apart_mm(found: RigidTransform, truth: RigidTransform, moving_mm: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found.apply(moving_mm) - truth.apply(moving_mm), axis=1).mean())


def test_refinement_finds_a_known_pose() -> None:
    comparison, truth, moving_mm = known_pose()

    rough, _ = refine(comparison, RigidTransform.identity(), CENTRE_MM, COARSE)
    found, similarity = refine(comparison, rough, CENTRE_MM, FINE)

    assert apart_mm(found, truth, moving_mm) < 0.3
    assert similarity == pytest.approx(measure(comparison, found.inverse().matrix), abs=1e-9)


def test_settling_steps_from_near_a_top_onto_it_on_any_number_of_threads() -> None:
    comparison, truth, moving_mm = known_pose()
    near = (
        RigidTransform.from_parameters(np.array([0.006, -0.004, 0.005]), np.array([0.3, -0.3, 0.2]), CENTRE_MM) @ truth
    )

    found, on_two = (settle(comparison, near, CENTRE_MM, threads) for threads in (1, 2))

    assert apart_mm(near, truth, moving_mm) > 0.4
    assert apart_mm(found, truth, moving_mm) < 0.2
    np.testing.assert_array_equal(found.matrix, on_two.matrix)


def test_settling_sees_a_top_past_ripples_as_narrow_as_its_first_look() -> None:
    nearer, further = SETTLE_MM

    def rippled(steps_mm: NDArray[np.float64]) -> float:
        off_mm = steps_mm - np.array([0.0, 0.0, 0.8, 0.0, 0.0, 0.0])
        return float(0.04 * np.cos(2 * np.pi * (steps_mm[2] - nearer) / further) - 0.05 * off_mm @ off_mm)

    assert find_top(rippled, nearer, 1) is None
    assert find_top(rippled, further, 1) == pytest.approx([0, 0, 0.8, 0, 0, 0], abs=1e-9)


def test_settling_stays_where_there_is_no_top() -> None:
    comparison, truth, _ = known_pose()
    off = RigidTransform.from_parameters(np.zeros(3), np.array([500.0, 0.0, 0.0]), CENTRE_MM) @ truth

    assert settle(comparison, off, CENTRE_MM, 1) is off
