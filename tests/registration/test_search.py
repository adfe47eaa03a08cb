from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from registration.descriptors import Network
from registration.evidence import SHARPEST, find_margin
from registration.pipeline import (
    MANY_INLIERS,
    TURNED_LOOKS,
    estimate_by_features,
    look_from_tops,
    look_from_turned,
    look_further,
    repeat_by_features,
)
from registration.preprocess import prepare_fixed, prepare_moving
from registration.problem import Pose, Problem, pose_problem
from registration.profiles import DEFAULT
from registration.search import (
    choose_apart,
    climb_coarsely,
    icosahedral_rotations,
    measure_coarsely,
    search_by_similarity,
    slide_starts,
    turn_starts,
    upright_rotations,
)
from registration.similarity import measure
from registration.transforms import RigidTransform
from tests.registration.heads import error_mm, make_head


def test_sixty_rotations_leave_no_rotation_further_than_45_degrees() -> None:
    rotations = icosahedral_rotations()
    assert rotations.shape == (60, 3, 3)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (60, 3, 3)), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)

    assert 40 < nearest_deg(drawn_rotations(4000), rotations).max() < 44.6


def test_no_upright_rotation_is_further_than_thirteen_degrees_from_one_on_the_lattice() -> None:
    rotations = upright_rotations()
    assert rotations.shape == (179, 3, 3)
    assert nearest_deg(rotations, np.eye(3)[None]).max() < 47

    drawn = drawn_rotations(100_000)
    upright = drawn[nearest_deg(drawn, np.eye(3)[None]) < 40]
    assert len(upright) > 1000
    assert 8 < nearest_deg(upright, rotations).max() < 13


def drawn_rotations(count: int) -> NDArray[np.float64]:
    quaternions = np.random.default_rng(0).standard_normal((count, 4))
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)


def nearest_deg(drawn: NDArray[np.float64], rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    traces = np.einsum("nij,mij->nm", drawn, rotations)
    return np.asarray(np.degrees(np.arccos(np.clip((traces.max(axis=1) - 1) / 2, -1, 1))))


@pytest.fixture(scope="module")
def problem() -> Problem:
    prepared = prepare_fixed(make_head(is_pet=False)), prepare_moving(make_head((3.0, 2.0, 2.0), is_pet=True))
    return pose_problem(prepared, Network.load(device="cpu", threads=2), DEFAULT, seed=0)


def turned(degrees: float) -> RigidTransform:
    return RigidTransform.from_parameters(np.radians([0, 0, degrees]), np.zeros(3), np.zeros(3))


def shifted(x_mm: float) -> RigidTransform:
    return RigidTransform.from_parameters(np.zeros(3), np.array([x_mm, 0.0, 0.0]), np.zeros(3))


def test_of_tops_that_lie_together_the_most_alike_is_chosen(problem: Problem) -> None:
    poses = [Pose(shifted(x_mm), alike) for x_mm, alike in ((0, 1.1), (10, 1.3), (40, 1.2), (22, 1.05))]

    assert [pose.similarity for pose in choose_apart(problem, poses, 15.0)] == [1.3, 1.2]


def test_the_margin_is_over_the_next_top_elsewhere(problem: Problem) -> None:
    tops = [Pose(shifted(x_mm), alike) for x_mm, alike in ((0, 1.3), (10, 1.25), (40, 1.1), (80, 1.05))]

    assert find_margin(problem, tops) == pytest.approx(3.0)
    assert find_margin(problem, tops[:2]) == SHARPEST
    assert find_margin(problem, [*tops, Pose(shifted(-40), 1.3)]) == 1.0


def test_a_head_far_off_along_the_body_and_turned_is_found_by_similarity(problem: Problem) -> None:
    off = RigidTransform.from_parameters(np.radians([25, -10, 20]), np.array([10.0, -5.0, 85.0]), np.zeros(3))

    best = max(search_by_similarity(problem, off), key=lambda pose: pose.similarity)

    assert error_mm(best.fixed_from_moving, turned(0)) < 5


def test_starts_come_the_most_alike_first(problem: Problem) -> None:
    for starts in (turn_starts(problem, turned(0)), slide_starts(problem.coarse, turned(0), problem.centre_mm)):
        alike = [measure(problem.coarse, start.inverse().matrix) for start in (starts[0], starts[20], starts[-1])]
        assert alike == sorted(alike, reverse=True)
        assert error_mm(starts[0], turned(0)) < 12


def test_features_look_further_where_few_matches_agree_and_not_where_many_do(problem: Problem) -> None:
    upside_down = estimate_by_features(problem, turned(150))

    found = look_further(problem, upside_down, turned(150))

    assert upside_down.inliers < MANY_INLIERS
    assert found.pose.similarity > upside_down.pose.similarity
    assert (
        error_mm(found.pose.fixed_from_moving, turned(0)) < 20 < error_mm(upside_down.pose.fixed_from_moving, turned(0))
    )
    content = replace(upside_down, inliers=MANY_INLIERS)
    assert look_further(problem, content, turned(150)) is content


def test_features_look_from_the_tops_that_climbs_ended_on(problem: Problem) -> None:
    tops = [Pose(turned(150), 1.02), Pose(turned(12), 1.01)]

    found = look_from_tops(problem, tops)

    assert min(error_mm(pose.fixed_from_moving, turned(0)) for pose in found) < 3


def test_features_find_a_head_that_is_upside_down_from_turned_starts(problem: Problem) -> None:
    best = max(look_from_turned(problem, turned(150)), key=lambda pose: pose.similarity)

    assert error_mm(best.fixed_from_moving, turned(0)) < 3


def test_features_look_from_where_the_headers_put_the_head_before_they_look_from_turned_starts(
    problem: Problem,
) -> None:
    start = turned(60)
    (from_start,) = repeat_by_features(problem, measure_coarsely(problem, start), climb_coarsely, 1)

    first = look_from_turned(problem, start)[0]

    assert all(error_mm(other, start) > 1 for other in turn_starts(problem, start)[:TURNED_LOOKS])
    np.testing.assert_array_equal(first.fixed_from_moving.matrix, from_start.pose.fixed_from_moving.matrix)
