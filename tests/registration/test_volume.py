from __future__ import annotations

import numpy as np
import pytest

from registration.errors import InvalidVolumeError
from registration.volume import Volume

AFFINE = np.array([[0.0, 0.0, 0.5, 10.0], [0.0, 2.0, 0.0, 20.0], [3.0, 0.0, 0.0, 30.0], [0.0, 0.0, 0.0, 1.0]])


def test_spacing_shape_and_centre_by_hand() -> None:
    volume = Volume(np.zeros((3, 5, 9), np.float32), AFFINE)

    assert volume.shape == (3, 5, 9)
    assert volume.spacing_mm.tolist() == [3.0, 2.0, 0.5]
    # middle index (1, 2, 4): x = 10 + 0.5 * 4, y = 20 + 2 * 2, z = 30 + 3 * 1
    assert volume.centre_mm.tolist() == [12.0, 24.0, 33.0]
    np.testing.assert_allclose(volume.index_from_mm @ volume.affine, np.eye(4), atol=1e-12)


def test_array_and_affine_are_read_only_and_the_callers_stay_as_they_were() -> None:
    array, affine = np.zeros((2, 2, 2), np.float32), np.eye(4)
    volume = Volume(array, affine)

    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        volume.affine[0, 0] = 2
    assert array.flags.writeable
    assert affine.flags.writeable
    assert np.shares_memory(array, volume.array)


@pytest.mark.parametrize(
    ("array", "affine", "words"),
    [
        (np.zeros((2, 2)), np.eye(4), "three axes"),
        (np.zeros((2, 0, 2)), np.eye(4), "three axes"),
        (np.zeros((2, 2, 2)), np.eye(3), r"\(4, 4\)"),
        (np.zeros((2, 2, 2)), np.diag([1.0, np.nan, 1, 1]), "finite"),
        (np.zeros((2, 2, 2)), np.diag([1.0, 0.0, 1, 1]), "mm3"),
        (np.zeros((2, 2, 2)), np.diag([1.0, 1.0, 1, 2]), "last row"),
    ],
)
def test_what_is_no_volume_is_refused(array: np.ndarray, affine: np.ndarray, words: str) -> None:
    with pytest.raises(InvalidVolumeError, match=words):
        Volume(array, affine)
