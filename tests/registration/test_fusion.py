from __future__ import annotations

import numpy as np
import pytest

from registration.errors import InvalidVolumeError
from registration.fusion import COLOUR_MAPS, Windows, find_head, find_windows, fuse, make_colours, window


def test_no_uptake_leaves_the_fixed_volume_grey() -> None:
    fixed = np.linspace(0, 100, 4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)

    fused = fuse(fixed, np.zeros_like(fixed), Windows(0, 100, 1), opacity=0.5)

    assert fused.shape == (4, 5, 6, 3)
    assert fused.dtype == np.uint8
    assert (fused[..., 0] == fused[..., 1]).all()
    assert (fused[..., 0] == fused[..., 2]).all()
    assert (np.diff(fused[..., 0].astype(int).ravel()) >= 0).all()
    assert fused.max() == 255


def test_uptake_is_coloured_red_before_blue_and_brighter_with_more() -> None:
    fixed = np.zeros((1, 1, 101), np.float32)
    fixed[0, 0, 0] = 1
    uptake = np.linspace(0, 100, 101, dtype=np.float32).reshape(1, 1, -1)

    fused = fuse(fixed, uptake, Windows(0, 1, 100), opacity=1.0)[0, 0].astype(int)

    assert fused[60, 0] > fused[60, 2]  # inferno in the order RGB, not OpenCV's BGR
    lightness = fused @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness[40:99]) > 0).all()
    assert fused[5].tolist() == [0, 0, 0]


def test_opacity_mixes() -> None:
    fixed = np.full((1, 2, 50), 10.0, np.float32)
    fixed[0, 0] = 0
    uptake = np.full_like(fixed, 5.0)
    uptake[0, 0] = 0

    windows = Windows(0, 10, 5)
    half, none = (fuse(fixed, uptake, windows, opacity=opacity).astype(int) for opacity in (0.5, 0.0))

    full = fuse(fixed, uptake, windows, opacity=1.0).astype(int)
    np.testing.assert_allclose(half, (none + full) / 2, atol=1)


def make_head(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A head of 1000 to 1100 in air of 0 to 60, with uptake of 50 to 60 within and a bright spot without."""
    head = np.zeros((20, 20, 20), bool)
    head[5:15, 5:15, 5:15] = True
    fixed = np.where(head, rng.uniform(1000, 1100, head.shape), rng.uniform(0, 60, head.shape)).astype(np.float32)
    uptake = np.where(head, rng.uniform(50, 60, head.shape), 0).astype(np.float32)
    uptake[:3] = 9000.0
    return fixed, uptake


def test_windows_are_found_inside_the_head_and_no_outlier_decides_them() -> None:
    fixed, uptake = make_head(np.random.default_rng(4))
    fixed[9, 9, 9] = 50_000.0
    uptake[10, 10, 10] = 7000.0

    windows = find_windows(fixed, uptake)

    assert 1000 <= windows.fixed_low < 1005
    assert 1095 < windows.fixed_high <= 1100
    assert 55 < windows.moving_top <= 60


def test_dark_tissue_that_the_head_encloses_counts_and_specks_of_noise_do_not() -> None:
    fixed, _ = make_head(np.random.default_rng(4))
    fixed[5:15, 8:12, 8:12] = 200.0  # as fluid in a T1
    fixed[2, 2, 2] = fixed[17, 3, 16] = 1050.0
    head = find_head(fixed)
    assert head.sum() == 10**3
    assert head[5:15, 5:15, 5:15].all()
    assert find_windows(fixed, fixed).fixed_low == 200.0


def test_windows_are_never_empty() -> None:
    nothing = np.zeros((2, 2, 2), np.float32)
    windows = find_windows(nothing, nothing)
    assert windows.fixed_high > windows.fixed_low
    assert windows.moving_top > 0
    assert window(np.zeros(10, np.float32), 1, 99)[1] > 0
    outside, uptake = make_head(np.random.default_rng(4))
    uptake[3:] = 0
    assert find_windows(outside, uptake).moving_top == pytest.approx(
        9000, rel=1e-5
    )  # a PET that misses the head still shows


@pytest.mark.parametrize("name", sorted(set(COLOUR_MAPS) - {"hot"}))
def test_colours_are_as_far_apart_to_the_eye_as_their_values(name: str) -> None:
    """CIELAB lightness rises with each value, by a step that hardly varies (CIE 15:2004)."""
    linear = (make_colours(name) / 255.0) ** 2.2
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness[::8])
    assert (steps > 0).all()
    assert steps.std() < 0.3 * steps.mean()


@pytest.mark.parametrize(("shape", "opacity"), [((2, 2, 3), 0.5), ((2, 2, 2), 1.1), ((2, 2, 2), -0.1)])
def test_bad_input_is_refused(shape: tuple[int, ...], opacity: float) -> None:
    with pytest.raises(InvalidVolumeError):
        fuse(np.zeros((2, 2, 2), np.float32), np.zeros(shape, np.float32), Windows(0, 1, 1), opacity=opacity)
