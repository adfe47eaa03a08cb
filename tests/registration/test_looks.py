from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from registration.descriptors import Network
from registration.looks import Look, look_at_moving, match_look
from registration.preprocess import prepare_fixed, prepare_moving
from registration.problem import Problem, pose_problem
from registration.profiles import DEFAULT
from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.registration.heads import make_head

RADIUS_MM = 30.0


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Pose a whole head against a PET of its upper half."""
    pet = make_head((3.0, 2.0, 2.0), is_pet=True)
    cut = len(pet.array) // 2
    affine = pet.affine.copy()
    affine[:3, 3] += affine[:3, 0] * cut
    prepared = prepare_fixed(make_head(is_pet=False)), prepare_moving(Volume(pet.array[cut:].copy(), affine))
    return pose_problem(prepared, Network.load(device="cpu", threads=2), DEFAULT, seed=0)


@pytest.fixture(scope="module")
def look(problem: Problem) -> Look:
    return look_at_moving(problem, RigidTransform.identity())


def test_key_points_beyond_the_pet_have_no_counterpart(problem: Problem, look: Look) -> None:
    heights_mm = problem.fixed_points[:, 2]
    from_middle_mm = np.linalg.norm(problem.fixed_points, axis=1)
    is_brain = (from_middle_mm < 60) & (np.abs(problem.fixed_points[:, 0]) > 20)  # ventricles have no uptake

    assert (heights_mm < -10).sum() > 50
    assert not look.has_counterpart[heights_mm < -10].any()
    assert (is_brain & (heights_mm > 10)).any()
    assert look.has_counterpart[is_brain & (heights_mm > 10)].all()


def test_within_a_radius_only_key_points_with_a_counterpart_are_matched(problem: Problem, look: Look) -> None:
    found = match_look(problem, look, RADIUS_MM)

    assert len(found) > 20
    assert look.has_counterpart[found.fixed_index].all()
    np.testing.assert_array_equal(found.fixed, problem.fixed_points[found.fixed_index])


def test_without_a_radius_the_pose_leaves_out_no_key_point(problem: Problem, look: Look) -> None:
    blind = replace(look, has_counterpart=np.zeros_like(look.has_counterpart))

    assert len(match_look(problem, blind)) == len(match_look(problem, look)) > 20
    assert len(match_look(problem, blind, RADIUS_MM)) == 0
