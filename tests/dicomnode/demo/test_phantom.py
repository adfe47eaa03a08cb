"""The synthetic head: whole, brain-like, and another person for another seed.

Flow: pytest > [test_phantom] > phantom
Never: a likeness judged by eye; what registration needs of it is counted.
"""

from __future__ import annotations

import numpy as np
import pytest

from dicomnode.demo.phantom import BRAIN, Tissue, make_head
from tests.builders import head

ONE = 255


def litres(seed: int, *tissues: Tissue) -> float:
    return sum(float(head(seed).fractions[tissue].sum(dtype=np.int64)) for tissue in tissues) / ONE / 1e6


def test_shares_never_exceed_a_voxel() -> None:
    total = head(1).fractions.sum(axis=0, dtype=np.uint16)
    assert total.max() <= ONE + 4  # each of up to nine shares is rounded
    middle = total[115:165, 80:140, 60:140]
    assert middle.min() >= ONE - 4


def test_tissues_have_the_volumes_of_a_grown_person() -> None:
    assert 0.9 < litres(1, *BRAIN) < 1.7
    assert 0.6 < litres(1, Tissue.CORTEX) / litres(1, Tissue.WHITE) < 2.0
    assert 0.02 < litres(1, Tissue.NUCLEI) < 0.1
    assert 0.05 < litres(1, Tissue.CEREBELLUM) < 0.2
    assert 0.1 < litres(1, Tissue.FLUID) < 0.6


def test_the_head_stands_in_air_within_its_grid() -> None:
    covered = head(1).fractions.sum(axis=0, dtype=np.uint16) > ONE // 2
    assert not covered[-1].any(), "the vertex touches the grid's top"
    assert not covered[:, -1].any()
    assert not covered[:, :, 0].any()
    assert not covered[:, :, -1].any()


def test_the_same_seed_is_the_same_person_and_another_seed_another() -> None:
    again = make_head(1)
    assert (again.fractions == head(1).fractions).all()
    one, two = (head(seed).fractions[Tissue.CORTEX].astype(np.float32).ravel() for seed in (1, 2))
    assert np.corrcoef(one, two)[0, 1] < 0.6


def test_left_and_right_differ() -> None:
    cortex = head(1).fractions[Tissue.CORTEX].astype(np.float32)
    assert np.corrcoef(cortex.ravel(), cortex[:, :, ::-1].ravel())[0, 1] < 0.6


def test_the_cortex_is_folded() -> None:
    # The hull has about 0.07 m2; a grown person's folded cortex, 3 mm thick, about 0.2.
    assert litres(1, Tissue.CORTEX) * 1e6 / 3.0 > 2 * 0.07e6


def test_brain_points_lie_in_the_brain() -> None:
    person = head(1)
    points = person.brain_points(500, seed=4)
    assert points.shape == (500, 3)
    index = np.rint(np.c_[points, np.ones(500)] @ np.linalg.inv(person.affine).T)[:, :3].astype(int)
    share = sum(person.fractions[tissue][tuple(index.T)].astype(int) for tissue in BRAIN)
    assert np.asarray(share).min() > 200
    assert points.mean(axis=0) == pytest.approx([0, 5, 0], abs=15)
    assert (points == person.brain_points(500, seed=4)).all()


def test_the_affine_is_in_lps_mm() -> None:
    affine = head(1).affine
    assert (affine @ [1, 0, 0, 0]).tolist() == [0, 0, 1, 0]  # k: up
    assert (affine @ [0, 1, 0, 0]).tolist() == [0, 1, 0, 0]  # j: to the back
    assert (affine @ [0, 0, 1, 0]).tolist() == [1, 0, 0, 0]  # i: to the left
    eyes = np.argwhere(head(1).fractions[Tissue.EYE] > 128) @ affine[:3, :3].T + affine[:3, 3]
    assert eyes[:, 1].max() < -50, "the eyes are in front"
    hind = np.argwhere(head(1).fractions[Tissue.CEREBELLUM] > 128) @ affine[:3, :3].T + affine[:3, 3]
    assert hind[:, 1].mean() > 30
    assert hind[:, 2].mean() < -20
