"""The sRGB profile is one that a colour management system takes for sRGB."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

from dicomnode.outputs.colour import make_srgb_profile

Image = pytest.importorskip("PIL.Image", reason="pip install pillow")
ImageCms = pytest.importorskip("PIL.ImageCms", reason="pip install pillow")


def test_profile_is_small_even_and_says_its_size() -> None:
    profile = make_srgb_profile()
    assert len(profile) <= 1200
    assert len(profile) % 2 == 0  # VR OB
    assert int.from_bytes(profile[:4], "big") == len(profile)
    assert profile[36:40] == b"acsp"


def test_littlecms_finds_no_difference_from_its_own_srgb() -> None:
    ours = ImageCms.ImageCmsProfile(BytesIO(make_srgb_profile()))
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    changed = ImageCms.profileToProfile(Image.fromarray(colours), ours, ImageCms.createProfile("sRGB"))
    difference = np.abs(np.asarray(changed).astype(int) - colours)
    assert difference.max() <= 1
