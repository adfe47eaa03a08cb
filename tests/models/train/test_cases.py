from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.train.anatomy import Person, split_people
from models.train.cases import SETS, CaseSet, brain_points, crop_ends, make_case
from models.train.runs import BAD_KINDS, OTHER_HEAD, WRONG_TOP, spoil
from models.train.simulate import (
    Scanner,
    Tracer,
    draw_pet_grid,
    draw_rotation,
    make_uptake,
    scan,
    take_on,
    thin_cortex,
)
from registration.preprocess import prepare_moving
from registration.transforms import RigidTransform
from registration.volume import Volume, spacing_of


@pytest.fixture(scope="module")
def person() -> Person:
    """A ball of white matter in a shell of grey in a shell of soft tissue, 4 mm voxels, off the origin."""
    k, j, i = np.indices((48, 52, 46))
    radius = np.sqrt((k - 26) ** 2 + (j - 25) ** 2 + (i - 22) ** 2)
    tissue = np.zeros((4, *radius.shape), np.uint8)
    tissue[1][radius < 13] = 255
    tissue[0][(radius >= 13) & (radius < 18)] = 255
    tissue[3][(radius >= 18) & (radius < 21)] = 255
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = 4.0
    affine[:, 3] = [-70, 20, 300, 1]
    mr = (tissue[0] * 0.7 + tissue[1] * 1.0 + tissue[3] * 0.4).astype(np.float32)
    return Person("ball", Volume(mr, affine), tissue, is_stripped=False)


def test_the_right_answer_has_no_error_and_a_shift_of_3_mm_has_3(person: Person) -> None:
    case = make_case(person, person, SETS[0], np.random.default_rng(0))
    shift = RigidTransform.from_parameters(np.zeros(3), np.array([0.0, 3.0, 0.0]), np.zeros(3))

    assert case.tre_mm(case.fixed_from_moving) == pytest.approx(0, abs=1e-9)
    assert case.tre_mm(shift @ case.fixed_from_moving) == pytest.approx(3)


def test_the_truth_lays_the_uptake_on_the_head(person: Person) -> None:
    case = make_case(person, person, CaseSet("far", (60, 60), (0, 20)), np.random.default_rng(1))

    uptake_middle = case.fixed_from_moving.apply(prepare_moving(case.moving).centre_mm[None])[0]

    # regional uptake is drawn at random, so the middle of the uptake wanders a little
    assert np.linalg.norm(uptake_middle - brain_points(person, np.random.default_rng(0)).mean(axis=0)) < 8
    assert case.fixed_from_moving.angle_deg == pytest.approx(60)


def test_cases_do_not_depend_on_one_another(person: Person) -> None:
    one, two = (make_case(person, person, SETS[2], np.random.default_rng([2, 5])) for _ in range(2))

    np.testing.assert_array_equal(one.moving.array, two.moving.array)
    np.testing.assert_array_equal(one.fixed_from_moving.matrix, two.fixed_from_moving.matrix)


def test_cropping_cuts_slices_that_hold_signal_and_keeps_places(person: Person) -> None:
    cropped = crop_ends(person.mr, 0.5, np.random.default_rng(0))

    held = np.flatnonzero(person.mr.array.any(axis=(1, 2)))
    kept = np.flatnonzero(cropped.array.any(axis=(1, 2)))
    assert len(kept) == pytest.approx(len(held) / 2, abs=2)
    at = round((cropped.affine[2, 3] - person.mr.affine[2, 3]) / 4)
    np.testing.assert_array_equal(cropped.array, person.mr.array[at : at + cropped.shape[0]])


@pytest.mark.parametrize("bad", sorted({*BAD_KINDS} - {OTHER_HEAD, WRONG_TOP}))
def test_a_spoilt_pet_is_another_one_on_the_same_grid(person: Person, bad: str) -> None:
    case = make_case(person, person, SETS[0], np.random.default_rng(0))

    spoilt = spoil(case, bad, np.random.default_rng(1))

    assert spoilt.moving.shape == case.moving.shape
    assert abs(np.corrcoef(spoilt.moving.array.ravel(), case.moving.array.ravel())[0, 1]) < 0.97


def test_uptake_follows_the_tracer(person: Person) -> None:
    rng = np.random.default_rng(0)
    uptake = make_uptake(person.tissue, np.full(3, 4.0), Tracer(grey=1.0, white=0.3, fluid=0.05, soft=0.1), rng)

    grey, white, soft = (np.median(uptake[person.tissue[at] == 255]) for at in (0, 1, 3))
    assert grey == pytest.approx(1.0, abs=0.3)
    assert white / grey == pytest.approx(0.3, abs=0.1)
    assert soft / grey == pytest.approx(0.1, abs=0.06)


def test_a_scanner_blurs_by_its_point_spread_and_keeps_the_sum() -> None:
    uptake = np.zeros((41, 41, 41), np.float32)
    uptake[20, 20, 20] = 1000

    seen = scan(uptake, np.full(3, 1.0), Scanner(fwhm_mm=6.0, noise=0.0), np.random.default_rng(0))

    assert seen.sum() == pytest.approx(1000, rel=0.01)
    assert seen[23, 20, 20] / seen[20, 20, 20] == pytest.approx(0.5, abs=0.02)


def test_atrophy_takes_cortex_beside_fluid_and_nothing_else(person: Person) -> None:
    tissue = person.tissue.copy()
    tissue[2, :24], tissue[0, :24], tissue[1, :24], tissue[3, :24] = 255, 0, 0, 0  # below, all is fluid
    mr = (tissue[0] * 0.7 + tissue[1] * 1.0 + tissue[2] * 0.2).astype(np.float32)

    worn, thinned = thin_cortex(mr, tissue, np.full(3, 4.0), 0.5)

    assert (thinned.sum(axis=0, dtype=int) == tissue.sum(axis=0, dtype=int)).all()
    np.testing.assert_array_equal(thinned[[1, 3]], tissue[[1, 3]])
    lost = (tissue[0].astype(int) - thinned[0]) / 255
    beside = 0.62  # twice the share of a Gaussian of one voxel that lies more than half a voxel away
    assert lost[24][tissue[0, 24] == 255].mean() == pytest.approx(0.5 * beside, abs=0.03)
    assert lost[30:].max() == 0
    expected = mr * (1 - lost * (1 - 0.2 / 0.7))  # where half of the cortex is fluid, so is its signal
    np.testing.assert_allclose(worn, expected, rtol=1e-3)


def test_a_pet_is_seen_on_voxels_of_its_own_and_keeps_its_place(person: Person) -> None:
    pet = Volume(person.tissue[0].astype(np.float32), person.mr.affine)
    grids = [draw_pet_grid(pet.centre_mm, np.random.default_rng(seed)) for seed in range(8)]

    for grid in grids:
        seen = take_on(pet, grid)

        k, j, i = spacing_of(seen.affine)
        assert 2.0 <= k <= 5.0
        assert 1.5 <= j == i <= 4.0
        assert np.linalg.norm(find_middle(seen) - find_middle(pet)) < 0.5
    assert len({tuple(spacing_of(grid.affine)) for grid in grids}) == len(grids)


def find_middle(volume: Volume) -> NDArray[np.float64]:
    """Return the centre of the intensity, LPS mm."""
    index = np.argwhere(volume.array > 0)
    points = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return np.asarray(np.average(points, axis=0, weights=volume.array[tuple(index.T)]))


def test_a_rotation_is_by_the_angle_asked_for() -> None:
    rotation = draw_rotation((33, 33), np.random.default_rng(0))

    assert np.degrees(np.arccos((np.trace(rotation) - 1) / 2)) == pytest.approx(33)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_people_are_split_by_person_with_some_of_every_large_source_held_out() -> None:
    names = [f"a-{n:02}" for n in range(12)] + [f"b-{n}" for n in range(6)] + ["c-0", "d-0"]

    training, held_out = split_people(names)

    assert sorted(training + held_out) == sorted(names)
    assert not set(training) & set(held_out)
    assert sum(name.startswith("a") for name in held_out) == 4
    assert sum(name.startswith("b") for name in held_out) == 2
    assert {"c-0", "d-0"} <= set(training)
