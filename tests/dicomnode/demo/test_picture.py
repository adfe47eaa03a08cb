"""The demonstration's picture: what is drawn where.

Flow: pytest > [test_picture] > picture
Never: beauty.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dicomnode.demo.picture import TILE_PX, Panels, choose_planes, write_picture
from dicomnode.outputs.panels import OUTLINE, place_of

SHAPE = (60, 70, 80)


@pytest.fixture
def panels() -> Panels:
    k, j, i = np.indices(SHAPE)
    brain = ((k - 30) ** 2 + (j - 35) ** 2 + (i - 40) ** 2 < 20**2).astype(np.float32)
    fused = np.zeros((*SHAPE, 3), np.uint8)
    fused[..., 0] = 255
    return Panels(brain * 100, np.zeros(SHAPE, np.float32), brain * 50, fused, brain, (30, 35, 40))


def tile(path: Path, row: int, column: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    picture = cv2.imread(str(path))
    assert picture is not None
    top, left = place_of(row, column, TILE_PX)
    return np.asarray(picture[top : top + TILE_PX, left : left + TILE_PX], np.uint8)


def test_each_column_shows_its_own_array(panels: Panels, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    write_picture(path, panels, "caption")
    for row in range(3):
        mr, before, after, fused, chequer = (tile(path, row, column) for column in range(5))
        centre = TILE_PX // 2
        assert mr[centre, centre].min() > 200
        assert before[centre, centre].max() == 0
        assert after[centre, centre].min() > 200
        assert fused[centre, centre].tolist() == [0, 0, 255]  # RGB red is BGR's last
        assert chequer.max() > 200
        assert (before == OUTLINE).all(axis=2).any(), "the outline of the MR's brain"


def test_the_patients_left_is_on_the_right_and_the_face_on_top(panels: Panels, tmp_path: Path) -> None:
    mr = panels.mr.copy()
    mr[45:49, 35, 38:42] = 1000  # left of the middle
    mr[28:32, 35, 28:32] = 1000  # in front of the middle
    path = tmp_path / "p.png"
    write_picture(path, replace(panels, mr=mr), "caption")
    axial = tile(path, 0, 0)[..., 0].astype(int)
    centre = TILE_PX // 2
    assert axial[centre, centre + 16] > axial[centre, centre - 16]
    assert axial[centre - 10, centre] > axial[centre + 10, centre]


def test_planes_go_through_the_brain(panels: Panels) -> None:
    moved = np.zeros((120, 130, 140), np.float32)
    moved[20:80, 30:90, 40:100] = 1
    k, j, i = choose_planes(moved)
    assert moved[k, j, i] == 1
    assert i == pytest.approx(70, abs=4)
