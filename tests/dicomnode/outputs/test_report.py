"""The report: what is drawn where, for any orientation of the slices and any verdict, of nobody by name.

Flow: pytest > [test_report] > report, report_tiles
Never: beauty; how good a registration is.
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dicomnode.errors import StorageFailedError
from dicomnode.outputs.panels import OUTLINE, Image, place_of
from dicomnode.outputs.planes import SIZE_PX
from dicomnode.outputs.report import HEADLINE_PX, draw_report, write_report
from dicomnode.outputs.report_tiles import COLUMNS, OUTSIDE
from dicomnode.outputs.report_words import DOUBT, VERDICTS
from registration.confidence import Verdict
from registration.matching import Matches
from registration.pipeline import Registration
from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.dicomnode.outputs.known_requests import make_registration

Points = NDArray[np.float64]

MIDDLE_MM = np.array([8.0, -25.0, 40.0])
HEAD_MM, LESION_MM = 70.0, 14.0
# One in each plane through the middle of the head: x to the left, y to the back, z to the head's top.
LESIONS_MM = {"axial": (30, -25, 0), "coronal": (35, 0, 20), "sagittal": (0, 35, -15)}
# Where they are in the pictures: to the right and down.
SHOWN_PX = {"axial": (30, -25), "coronal": (35, -20), "sagittal": (35, 15)}
ROWS = list(LESIONS_MM)
# Steps of k, j, i through the patient, mm.
AXIAL = np.array([[0.0, 0, 3], [0, 3, 0], [3, 0, 0]]).T
SAGITTAL = np.array([[-4.0, 0, 0], [0, 0, -2.5], [0, 2.5, 0]]).T
OBLIQUE = RigidTransform.from_parameters(np.radians([25, -20, 35]), np.zeros(3), np.zeros(3)).rotation @ SAGITTAL
MOTION = RigidTransform.from_parameters(np.radians([0, 0, 90]), np.array([9.0, 4, 5]), MIDDLE_MM)


def make_volume(steps: Points = AXIAL, fixed_from_volume: RigidTransform | None = None) -> Volume:
    """Make a ball of a head with three bright lesions, on a grid round it; in another frame if one is given."""
    volume_from_fixed = (fixed_from_volume or RigidTransform.identity()).inverse()
    shape = tuple(int(190 / step) for step in np.linalg.norm(steps, axis=0))
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = volume_from_fixed.apply(MIDDLE_MM[None])[0] - steps @ ((np.array(shape) - 1) / 2)
    places = volume_from_fixed.inverse().apply(np.moveaxis(np.indices(shape), 0, -1) @ steps.T + affine[:3, 3])
    array = np.where(np.linalg.norm(places - MIDDLE_MM, axis=-1) < HEAD_MM, 100, 0)
    for lesion_mm in LESIONS_MM.values():
        array[np.linalg.norm(places - MIDDLE_MM - lesion_mm, axis=-1) < LESION_MM] = 400
    return Volume(array.astype(np.float32), affine)


def draw(fixed: Volume, moving: Volume, registration: Registration) -> Image:
    return draw_report(fixed, moving, registration, reason="because", opacity=0.5)


def tile(report: Image, row: str, title: str) -> Image:
    top, left = place_of(ROWS.index(row), [name for name, _ in COLUMNS].index(title), SIZE_PX)
    return report[top : top + SIZE_PX, left : left + SIZE_PX]


def find_lesion(image: Image) -> Points:
    """Return how far right and down of the middle the brightest patch of the head is, pixels."""
    head = image[50:190, 50:190].min(axis=2).astype(int)
    down, right = np.nonzero(head > 200)
    assert len(down) > 300
    return np.array([right.mean(), down.mean()]) - (140 - 1) / 2


def find_colours(image: Image) -> set[str]:
    """Return whether the blue of near matches or the orange of far ones is in an image."""
    blue_over_red = image[..., 0].astype(int) - image[..., 2]
    return {name for name, found in (("near", blue_over_red > 60), ("far", blue_over_red < -60)) if found.any()}


@pytest.fixture(scope="module")
def report() -> Image:
    moving = make_volume(fixed_from_volume=MOTION)
    return draw(make_volume(), moving, make_registration(MOTION))


@pytest.mark.parametrize("steps", [AXIAL, SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
def test_what_is_at_the_patients_left_is_on_the_right_however_the_slices_lie(steps: Points) -> None:
    shown = draw(make_volume(steps), make_volume(), make_registration(RigidTransform.identity()))
    for row, place in SHOWN_PX.items():
        assert find_lesion(tile(shown, row, "MR")) == pytest.approx(place, abs=2)
        assert find_lesion(tile(shown, row, "PET after")) == pytest.approx(place, abs=2)


def test_the_pet_is_shown_where_its_header_and_where_the_transform_lay_it(report: Image) -> None:
    assert find_lesion(tile(report, "axial", "PET after")) == pytest.approx(SHOWN_PX["axial"], abs=2)
    # Back by (9, 4), then by a quarter turn: left and back become back and right, (x, y) becomes (y, -x).
    by_header = (-25 - 4, -(30 - 9))
    assert find_lesion(tile(report, "axial", "PET before")) == pytest.approx(by_header, abs=2)


def test_every_panel_shows_its_own(report: Image) -> None:
    for row in ROWS:
        grey, fused, board, contours = (
            tile(report, row, title)[60:180, 60:180].astype(int)
            for title in ("MR", "fused", "chequerboard", "PET contours on MR")
        )
        assert np.ptp(grey, axis=2).max() == 0
        assert np.ptp(fused, axis=2).max() > 60
        right, down = SHOWN_PX[row]
        blue, _, red = fused[60 + down, 60 + right]
        assert red > blue + 20, "yellow where uptake is high, in OpenCV's order"
        is_board_grey = np.ptp(board, axis=2) == 0
        assert 0.3 < is_board_grey.mean() < 0.8
        assert (np.ptp(contours, axis=2) > 60).sum() > 50
        for title in ("PET before", "PET after"):
            inside_letters = tile(report, row, title)[40:200, 40:200]
            assert (inside_letters == OUTLINE).all(axis=2).sum() > 300, "the outline of the MR's head"


def test_where_a_volume_ends_is_not_shown_as_black() -> None:
    narrow = make_volume()
    narrow = Volume(narrow.array[:, :, :40], narrow.affine)  # the patient's right side alone
    shown = draw(make_volume(), narrow, make_registration(RigidTransform.identity()))
    after = tile(shown, "axial", "PET after")
    assert (after[150, 200] == OUTSIDE).all()
    assert not (after[150, 100] == OUTSIDE).all()


def test_matches_are_drawn_from_key_point_to_where_the_transform_takes_their_candidate() -> None:
    fixed = np.array([[-20.0, 10, 0], [-20, -40, 0], [10, 30, 40]]) + MIDDLE_MM
    landed = fixed + np.array([[6.0, 0, 0], [40, 0, 0], [0, 0, 0]])
    matches = Matches(fixed, MOTION.inverse().apply(landed), np.ones(3), np.arange(3))
    registration = replace(make_registration(MOTION), matches=matches)
    shown = draw(make_volume(), make_volume(fixed_from_volume=MOTION), registration)
    image = tile(shown, "axial", "matches")

    def find_around(right: float, down: float) -> set[str]:
        x, y = round((SIZE_PX - 1) / 2 + right), round((SIZE_PX - 1) / 2 + down)
        return find_colours(image[y - 3 : y + 4, x - 3 : x + 4])

    assert find_around(-20, 10) == {"near"}
    assert find_around(-20, -40) == {"far"}
    assert find_around(0, -40) == {"far"}, "the line goes on to where it lands"
    assert find_around(20, -40) == {"far"}
    assert find_around(30, -40) == set(), "and ends there"
    assert find_around(10, 30) == set(), "40 mm above the plane"
    top, left = place_of(0, len(COLUMNS) - 1, SIZE_PX)
    assert find_colours(shown[:top, left:]) == {"near", "far"}, "the legend"


@pytest.mark.parametrize("verdict", ["accept", "review", "reject"])
def test_every_verdict_is_written_large_in_its_colour(verdict: Verdict) -> None:
    volume = make_volume()
    shown = draw(volume, volume, make_registration(RigidTransform.identity(), verdict))
    headline = shown[place_of(3, 0, SIZE_PX)[0] :][:HEADLINE_PX]
    left, _, right = np.split(headline, 3, axis=1)
    assert (left == VERDICTS[verdict][0]).all(axis=2).sum() > 200
    assert (right == DOUBT).all(axis=2).sum() > 200, "not for diagnosis"


def test_nothing_that_knows_the_patient_comes_near_it() -> None:
    hints = get_type_hints(draw_report)
    assert hints == {
        "fixed": Volume,
        "moving": Volume,
        "registration": Registration,
        "reason": str,
        "opacity": float,
        "colour_map": str,
        "return": Image,
    }
    program = "import sys, dicomnode.outputs.report; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "'registration.pipeline'" in done.stdout
    assert "'pydicom'" not in done.stdout


def test_planes_alone_are_read_and_never_whole_volumes() -> None:
    j, i = np.indices((500, 500)) - 250
    disc = (j**2 + i**2 < 180**2).astype(np.float32) * 100
    whole = Volume(np.broadcast_to(disc, (500, 500, 500)), np.diag([0.4, 0.4, 0.4, 1.0]))  # 500 MB if it were copied
    tracemalloc.start()
    draw(whole, whole, make_registration(RigidTransform.identity()))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 60e6


def test_the_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    volume, registration = make_volume(), make_registration(RigidTransform.identity())
    write_report(tmp_path / "r.png", volume, volume, registration, reason="because", opacity=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["r.png"]
    picture = cv2.imread(str(tmp_path / "r.png"))
    assert picture is not None
    assert (picture == draw(volume, volume, registration)).all()
    with pytest.raises(StorageFailedError, match=r"none/r\.png could not be written: No such file"):
        write_report(tmp_path / "none" / "r.png", volume, volume, registration, reason="because", opacity=0.5)
