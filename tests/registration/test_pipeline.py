from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from registration.confidence import ACCEPT_FROM, LEAST_SHARPNESS_TO_ACCEPT
from registration.descriptors import Network
from registration.errors import EmptyVolumeError, InvalidVolumeError, RegistrationError
from registration.pipeline import Registration, register
from registration.resample import Grid, resample
from registration.transforms import RigidTransform
from registration.volume import Volume
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


def test_same_seed_same_answer_to_the_bit_on_any_number_of_threads(
    fixed: Volume, moving: Volume, answer: Registration
) -> None:
    again = register(fixed, moving, Network.load(device="cpu", threads=1))

    assert again.fixed_from_moving.matrix.tobytes() == answer.fixed_from_moving.matrix.tobytes()
    assert again.metrics == answer.metrics


def test_a_common_rigid_motion_of_both_volumes_changes_nothing(
    fixed: Volume, moving: Volume, answer: Registration, network: Network
) -> None:
    motion = RigidTransform.from_parameters(np.radians([6, -9, 12]), np.array([40.0, -25, 60]), np.zeros(3))

    moved = register(
        Volume(fixed.array, motion.matrix @ fixed.affine), Volume(moving.array, motion.matrix @ moving.affine), network
    )

    back = motion.inverse() @ moved.fixed_from_moving @ motion
    assert error_mm(back, answer.fixed_from_moving) < 0.3


def test_axis_order_grid_and_intensity_scale_do_not_matter(
    fixed: Volume, moving: Volume, answer: Registration, network: Network
) -> None:
    turned = Volume(
        np.transpose(fixed.array, (2, 0, 1))[::-1] * np.float32(7),
        fixed.affine[:, [2, 0, 1, 3]] @ np.diag([-1.0, 1, 1, 1]) + shift_of_first(fixed),
    )
    affine = moving.affine.copy()
    affine[:3, :3] *= 0.8
    finer = Grid(affine, (82, 125, 125))
    regridded = Volume(resample(moving, finer, RigidTransform.identity()) * np.float32(0.001), affine)

    found = register(turned, regridded, network)

    assert error_mm(found.fixed_from_moving, answer.fixed_from_moving) < 0.3


def shift_of_first(volume: Volume) -> np.ndarray:
    """Return what must be added to the affine's last column when the i axis, put first, is reversed."""
    shift = np.zeros((4, 4))
    shift[:3, 3] = volume.affine[:3, 2] * (volume.shape[2] - 1)
    return shift


def test_progress_is_told_stage_by_stage_up_to_the_whole(fixed: Volume, moving: Volume, network: Network) -> None:
    told: list[tuple[str, float]] = []

    answer = register(fixed, moving, network, progress=lambda stage, share: told.append((stage, share)))

    assert [stage for stage, _ in told] == list(answer.timings_s)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_pet_of_another_head_is_not_accepted_though_every_other_signal_agrees(
    fixed: Volume, answer: Registration, network: Network
) -> None:
    other = place_elsewhere(make_head((3.0, 2.0, 2.0), is_pet=True, seed=1), TRUTH)

    found = register(fixed, other, network)

    assert answer.verdict == "accept"
    assert found.verdict == "review"
    assert found.confidence > ACCEPT_FROM
    assert found.metrics["sharpness"] < LEAST_SHARPNESS_TO_ACCEPT < answer.metrics["sharpness"]


def test_a_pet_of_noise_is_not_accepted(fixed: Volume, moving: Volume, network: Network) -> None:
    noise = np.random.default_rng(0).random(moving.shape, dtype=np.float32)
    try:
        answer = register(fixed, Volume(noise, moving.affine), network)
    except RegistrationError:
        return
    assert answer.verdict != "accept"


Spoil = Callable[[Volume], Volume]


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda volume: Volume(np.zeros_like(volume.array), volume.affine), EmptyVolumeError),
        (lambda volume: Volume(np.full_like(volume.array, 42), volume.affine), EmptyVolumeError),
        (lambda volume: Volume(np.where(volume.array > 900, np.nan, volume.array), volume.affine), InvalidVolumeError),
        (lambda volume: Volume(volume.array[:2, :2, :2], volume.affine), EmptyVolumeError),
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
