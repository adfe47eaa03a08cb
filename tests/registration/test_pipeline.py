from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from models.train.cases import SETS, thicken
from models.train.runs import make_phantom, make_torso
from registration.confidence import LEAST_MIRROR_MARGIN_TO_ACCEPT, LEAST_SHARPNESS_TO_ACCEPT
from registration.descriptors import Network
from registration.errors import EmptyVolumeError, InvalidVolumeError, ModelError, RegistrationError
from registration.evidence import RIGHT_MATCH_MM
from registration.pipeline import Registration, register
from registration.profiles import DEFAULT, PAPER
from registration.resample import Grid, resample
from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.benchmarks.registration.cases import SYNTHETIC, CaseId, People, draw_case, make_synthetic_person
from tests.registration.heads import error_mm, make_head, place_elsewhere

TRUTH = RigidTransform.from_parameters(np.radians([10, -8, 15]), np.array([15.0, -20, 12]), np.zeros(3))


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.load(device="cpu", threads=2)


@pytest.fixture(scope="module")
def fixed() -> Volume:
    return make_head(is_pet=False)


@pytest.fixture(scope="module")
def moving() -> Volume:
    return place_elsewhere(make_head((3.0, 2.0, 2.0), is_pet=True), TRUTH)


@pytest.fixture(scope="module")
def answer(fixed: Volume, moving: Volume, network: Network) -> Registration:
    return register(fixed, moving, network)


def test_a_head_is_found_within_a_millimetre_and_the_answer_is_complete(answer: Registration, network: Network) -> None:
    assert error_mm(answer.fixed_from_moving, TRUTH) < 1.0
    assert answer.verdict != "reject"
    assert 0.0 <= answer.confidence <= 1.0
    assert answer.model_sha256 == network.sha256
    assert answer.device == "cpu"
    assert all(isinstance(value, float) for value in answer.metrics.values())
    assert set(answer.timings_s) >= {"prepare", "fixed_features", "moving_features", "polish", "judge"}


def test_matches_come_in_each_volumes_own_frame(answer: Registration) -> None:
    landed_mm = answer.fixed_from_moving.apply(answer.matches.moving)
    apart_mm = np.linalg.norm(landed_mm - answer.matches.fixed, axis=1)

    assert len(answer.matches) == answer.metrics["matches_kept"]
    assert (apart_mm <= RIGHT_MATCH_MM).mean() == pytest.approx(answer.metrics["match_share"])


def test_same_seed_same_answer_to_the_bit_on_any_number_of_threads(
    fixed: Volume, moving: Volume, answer: Registration
) -> None:
    again = register(fixed, moving, Network.load(device="cpu", threads=1))

    assert again.fixed_from_moving.matrix.tobytes() == answer.fixed_from_moving.matrix.tobytes()
    assert again.metrics == answer.metrics


@pytest.mark.parametrize(
    ("turn_deg", "shift_mm"), [((6, -9, 12), (40, -25, 60)), ((-12, 4, -7), (-80, 10, 0)), ((0, 0, 0), (13, 150, -400))]
)
def test_a_common_rigid_motion_of_both_volumes_changes_nothing(
    fixed: Volume,
    moving: Volume,
    answer: Registration,
    network: Network,
    turn_deg: tuple[float, ...],
    shift_mm: tuple[float, ...],
) -> None:
    motion = RigidTransform.from_parameters(np.radians(turn_deg), np.array(shift_mm, dtype=np.float64), np.zeros(3))

    moved = register(
        Volume(fixed.array, motion.matrix @ fixed.affine), Volume(moving.array, motion.matrix @ moving.affine), network
    )

    back = motion.inverse() @ moved.fixed_from_moving @ motion
    assert error_mm(back, answer.fixed_from_moving) < 0.3


def test_axis_order_grid_and_intensity_scale_do_not_matter(
    fixed: Volume, moving: Volume, answer: Registration, network: Network
) -> None:
    fine = regrid(fixed, 0.9)
    turned = Volume(
        np.transpose(fine.array, (2, 0, 1))[::-1] * np.float32(7),
        fine.affine[:, [2, 0, 1, 3]] @ np.diag([-1.0, 1, 1, 1]) + shift_of_first(fine),
    )
    regridded = regrid(moving, 0.8)

    found = register(turned, Volume(regridded.array * np.float32(0.001), regridded.affine), network)

    assert error_mm(found.fixed_from_moving, answer.fixed_from_moving) < 0.3


def regrid(volume: Volume, share: float) -> Volume:
    """Return the volume on voxels that are smaller by this share."""
    affine = volume.affine.copy()
    affine[:3, :3] *= share
    k, j, i = (int((n - 1) / share) + 1 for n in volume.shape)
    return Volume(resample(volume, Grid(affine, (k, j, i)), RigidTransform.identity()), affine)


def shift_of_first(volume: Volume) -> np.ndarray:
    """Return what must be added to the affine's last column when the i axis, put first, is reversed."""
    shift = np.zeros((4, 4))
    shift[:3, 3] = volume.affine[:3, 2] * (volume.shape[2] - 1)
    return shift


def test_progress_is_told_stage_by_stage_up_to_the_whole(fixed: Volume, moving: Volume, network: Network) -> None:
    told: list[tuple[str, float]] = []
    sums: set[int] = set()  # into how many parts the linear algebra cuts a sum, which rounds by it

    def watch(stage: str, share: float) -> None:
        told.append((stage, share))
        sums.update(found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas")

    answer = register(fixed, moving, network, progress=watch)

    assert sums == {1}
    assert [stage for stage, _ in told] == list(answer.timings_s)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_features_alone_find_a_head_with_folds_and_nothing_is_polished(network: Network) -> None:
    _, case = draw_case(CaseId(SETS[0], 0), People(SYNTHETIC, make_synthetic_person, "synthetic people"))

    alone = register(case.fixed, case.moving, network, profile=replace(DEFAULT, last="guided"))

    assert not alone.is_calibrated
    assert "polish" not in alone.timings_s
    assert "guided" in alone.timings_s
    assert alone.metrics["feature_to_final_mm"] < 1e-6
    assert case.tre_mm(alone.fixed_from_moving) < 2.0


def test_the_papers_profile_runs_whole_and_accepts_nothing(fixed: Volume, moving: Volume) -> None:
    near = Volume(moving.array, TRUTH.matrix @ moving.affine)
    alexnet = Network.load(PAPER.network, device="cpu", threads=2)

    answer = register(fixed, near, alexnet, profile=PAPER)

    assert answer.verdict != "accept"
    assert not answer.is_calibrated
    assert answer.model_sha256 == alexnet.sha256
    assert alexnet.describe(np.zeros((2, 3, 64, 64), np.float32), is_moving=True).shape == (2, 4096)


def test_the_network_of_another_profile_is_refused(fixed: Volume, moving: Volume, network: Network) -> None:
    with pytest.raises(ModelError, match="network cnn_sift given, the profile paper needs alexnet"):
        register(fixed, moving, network, profile=PAPER)


def test_a_pet_of_another_head_is_not_accepted_and_sharpness_tells_it(
    fixed: Volume, answer: Registration, network: Network
) -> None:
    other = place_elsewhere(make_head((3.0, 2.0, 2.0), is_pet=True, seed=1), TRUTH)

    found = register(fixed, other, network)

    assert found.verdict != "accept"
    assert found.metrics["sharpness"] < LEAST_SHARPNESS_TO_ACCEPT < answer.metrics["sharpness"]
    assert 0.25 < found.metrics["early_fall"] < answer.metrics["early_fall"] < 0.6


def test_a_mirrored_pet_is_told_by_its_mirror_image(
    answer: Registration, fixed: Volume, moving: Volume, network: Network
) -> None:
    mirrored = register(fixed, Volume(np.ascontiguousarray(moving.array[:, :, ::-1]), moving.affine), network)

    assert mirrored.metrics["mirror_margin"] < 0.95
    assert answer.metrics["mirror_margin"] > LEAST_MIRROR_MARGIN_TO_ACCEPT


NOT_OF_THIS_HEAD: dict[str, Callable[[Volume], NDArray[np.float32]]] = {
    "noise": lambda pet: np.random.default_rng(0).random(pet.shape, dtype=np.float32),
    "mirrored": lambda pet: np.ascontiguousarray(pet.array[:, :, ::-1]),
    "phantom": lambda pet: make_phantom(pet, np.random.default_rng(0)),
    "torso": lambda pet: make_torso(pet, np.random.default_rng(0)),
}


@pytest.mark.parametrize("name", NOT_OF_THIS_HEAD)
def test_what_is_no_pet_of_this_head_is_not_accepted(
    fixed: Volume, moving: Volume, network: Network, name: str
) -> None:
    try:
        answer = register(fixed, Volume(NOT_OF_THIS_HEAD[name](moving), moving.affine), network)
    except RegistrationError:
        return
    assert answer.verdict != "accept"


def test_more_starts_are_tried_in_doubt_alone(answer: Registration, fixed: Volume, network: Network) -> None:
    upside_down = RigidTransform.from_parameters(np.radians([150, 0, 0]), np.zeros(3), np.zeros(3))
    moving = place_elsewhere(make_head((3.0, 2.0, 2.0), is_pet=True), upside_down)

    found = register(fixed, moving, network)

    assert "turned_features" not in answer.timings_s
    assert "turned_features" in found.timings_s
    assert error_mm(found.fixed_from_moving, upside_down) < 1.0


HARD: dict[str, Callable[[Volume, Volume], tuple[Volume, Volume]]] = {
    "PET cropped": lambda mr, pet: (mr, Volume(pet.array[24:], pet.affine @ shift_of_index(24))),
    "MR slab": lambda mr, pet: (Volume(mr.array[40:80], mr.affine @ shift_of_index(40)), pet),
    "MR slices of 6 mm": lambda mr, pet: (thicken(mr, 6.0), pet),
    "low counts": lambda mr, pet: (mr, add_noise(pet, 0.25)),
    "PET without scalp": lambda mr, pet: (mr, Volume(np.where(pet.array > 250, pet.array, 0), pet.affine)),
}


@pytest.mark.parametrize("name", HARD)
def test_what_is_hard_is_registered_too(fixed: Volume, moving: Volume, network: Network, name: str) -> None:
    mr, pet = HARD[name](fixed, moving)

    assert error_mm(register(mr, pet, network).fixed_from_moving, TRUTH) < 2.0


def shift_of_index(first: int) -> NDArray[np.float64]:
    """Return what an affine is multiplied by when so many slices go at its beginning."""
    shift = np.eye(4)
    shift[0, 3] = first
    return shift


def add_noise(volume: Volume, share: float) -> Volume:
    """Add noise of this share of the brightest, as a scan of few counts has it."""
    noise = np.random.default_rng(3).standard_normal(volume.shape, dtype=np.float32)
    level = np.float32(share * np.percentile(volume.array, 99))
    return Volume(np.maximum(volume.array + noise * level, 0), volume.affine)


Spoil = Callable[[Volume], Volume]


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda volume: Volume(np.zeros_like(volume.array), volume.affine), EmptyVolumeError),
        (lambda volume: Volume(np.full_like(volume.array, 42), volume.affine), EmptyVolumeError),
        (lambda volume: Volume(np.where(volume.array > 900, np.nan, volume.array), volume.affine), InvalidVolumeError),
        (lambda volume: Volume(volume.array[:2, :2, :2], volume.affine), EmptyVolumeError),
        (lambda volume: Volume(np.where(volume.array > 200, -2.5, -10), volume.affine), InvalidVolumeError),
    ],
)
@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_volumes_without_a_head_are_refused_by_name(
    fixed: Volume, moving: Volume, network: Network, spoil: Spoil, kind: type[Exception], which: str
) -> None:
    volumes = {"fixed": fixed, "moving": moving}
    volumes[which] = spoil(volumes[which])

    with pytest.raises(kind, match=which):
        register(volumes["fixed"], volumes["moving"], network)
