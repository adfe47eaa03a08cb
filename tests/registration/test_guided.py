from __future__ import annotations

import numpy as np
import pytest

from registration.descriptors import Network
from registration.errors import TooFewPointsError
from registration.estimation import fit
from registration.guided import FURTHEST_STEPS, STEP_VOXELS, TOLERANCE_MM, guide, match_nearby
from registration.looks import FeatureEstimate
from registration.preprocess import CUBE_SPACING_MM, prepare_fixed, prepare_moving
from registration.problem import Pose, Problem, pose_problem
from registration.profiles import DEFAULT
from registration.similarity import measure
from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.registration.heads import error_mm, make_head

HERE = RigidTransform.identity()
OFF = RigidTransform.from_parameters(np.radians([2, -1, 2]), np.array([3.0, -2, 3]), np.zeros(3))


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.load(device="cpu", threads=2)


@pytest.fixture(scope="module")
def problem(network: Network) -> Problem:
    return pose_of(make_head(is_pet=False), network)


def pose_of(fixed: Volume, network: Network, moving: Volume | None = None) -> Problem:
    """Pose a problem whose answer is the identity."""
    prepared = prepare_fixed(fixed), prepare_moving(moving or make_head((3.0, 2.0, 2.0), is_pet=True))
    return pose_problem(prepared, network, DEFAULT, seed=0)


def estimate_at(problem: Problem, pose: RigidTransform) -> FeatureEstimate:
    """Return what features would have said, had they found this pose."""
    return FeatureEstimate(Pose(pose, measure(problem.coarse, pose.inverse().matrix)), None, 0)


def test_matches_point_from_a_pose_that_is_off_to_the_one_that_is_right(problem: Problem) -> None:
    matches = match_nearby(problem, OFF)

    wanted_mm = OFF.apply(matches.fixed) - matches.fixed  # the answer is the identity
    found_mm = matches.moving - matches.fixed
    share = (wanted_mm * found_mm).sum(axis=1) / (wanted_mm**2).sum(axis=1)
    assert len(matches) > 60
    assert np.average(share, weights=matches.weights) > 0.3  # these heads have few folds
    assert np.abs(found_mm).max() <= FURTHEST_STEPS * STEP_VOXELS * CUBE_SPACING_MM + 1e-9
    assert (matches.weights > 0).all()
    np.testing.assert_array_equal(matches.fixed, problem.fixed_points[matches.fixed_index])


def test_the_guided_round_brings_a_pose_nearer(problem: Problem) -> None:
    found = guide(problem, estimate_at(problem, OFF))

    assert error_mm(found.pose.fixed_from_moving, HERE) < 0.8 * error_mm(OFF, HERE)
    assert found.pose.similarity == measure(problem.coarse, found.pose.fixed_from_moving.inverse().matrix)


def test_a_round_that_makes_the_volumes_less_alike_is_not_kept(problem: Problem) -> None:
    right = estimate_at(problem, HERE)

    moved = fit(match_nearby(problem, HERE), HERE, TOLERANCE_MM).fixed_from_moving
    assert measure(problem.fine, moved.inverse().matrix) < measure(problem.fine, HERE.matrix)
    assert guide(problem, right).pose.fixed_from_moving is HERE


def test_the_end_of_a_field_of_view_draws_no_match_to_where_the_estimate_put_it(network: Network) -> None:
    whole = make_head(is_pet=False)
    affine = whole.affine.copy()
    affine[2, 3] += 2.0 * 45
    cut = pose_of(Volume(whole.array[45:], affine), network)
    shifted = RigidTransform.from_parameters(np.zeros(3), np.array([0.0, 0, 5]), np.zeros(3))

    matches = match_nearby(cut, shifted)

    near_the_end = matches.fixed[:, 2] < affine[2, 3] + 40
    moved_mm = np.average((matches.moving - matches.fixed)[near_the_end, 2], weights=matches.weights[near_the_end])
    assert near_the_end.sum() > 20
    assert moved_mm > 1.5  # of the 5 it lies too high; uncut patches would hold it where it is


def test_key_points_beside_the_uptake_are_refused(problem: Problem) -> None:
    away = RigidTransform.from_parameters(np.zeros(3), np.array([0.0, 0, 240]), np.zeros(3))

    with pytest.raises(TooFewPointsError, match="key points on the moving volume, 6 needed"):
        match_nearby(problem, away)
    assert guide(problem, estimate_at(problem, away)).pose.fixed_from_moving is away
