from __future__ import annotations

import numpy as np
import pytest

from registration.errors import InvalidVolumeError
from registration.fusion import fuse, window


def test_no_uptake_leaves_the_fixed_volume_grey() -> None:
    fixed = np.linspace(0, 100, 4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)

    fused = fuse(fixed, np.zeros_like(fixed), opacity=0.5)

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

    fused = fuse(fixed, uptake, opacity=1.0)[0, 0].astype(int)

    assert fused[60, 0] > fused[60, 2]  # inferno in the order RGB, not OpenCV's BGR
    lightness = fused @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness[40:99]) > 0).all()
    assert fused[5].tolist() == [0, 0, 0]


def test_opacity_mixes() -> None:
    fixed = np.full((1, 2, 50), 10.0, np.float32)
    fixed[0, 0] = 0
    uptake = np.full_like(fixed, 5.0)
    uptake[0, 0] = 0

    half, none = (fuse(fixed, uptake, opacity=opacity).astype(int) for opacity in (0.5, 0.0))

    full = fuse(fixed, uptake, opacity=1.0).astype(int)
    np.testing.assert_allclose(half, (none + full) / 2, atol=1)


def test_window_leaves_out_the_background_and_is_never_empty() -> None:
    array = np.concatenate([np.zeros(900), np.arange(1, 101)]).astype(np.float32)

    low, high = window(array, 0, 100)
    assert (low, high) == (1.0, 100.0)
    low, high = window(np.zeros(10, np.float32), 1, 99)
    assert high > low


@pytest.mark.parametrize(("shape", "opacity"), [((2, 2, 3), 0.5), ((2, 2, 2), 1.1), ((2, 2, 2), -0.1)])
def test_bad_input_is_refused(shape: tuple[int, ...], opacity: float) -> None:
    with pytest.raises(InvalidVolumeError):
        fuse(np.zeros((2, 2, 2), np.float32), np.zeros(shape, np.float32), opacity=opacity)
