"""Positions and orientation become an affine, or a reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.geometry import Numbers, SliceStack, count_at_places, crop_to_head, fit_stack
from tests.dicomnode.series_files import AXIAL, OBLIQUE, SAGITTAL, SeriesSpec

SHAPE = (64, 64)
SPACING_MM = np.array([2.0, 1.5])


def positions_of(count: int, step: Numbers, origin: tuple[float, ...] = (10.0, 20.0, 30.0)) -> Numbers:
    return np.array(origin) + np.arange(count, dtype=float)[:, None] * step


def fit(positions: Numbers, orientation: tuple[float, ...] = AXIAL) -> SliceStack:
    return fit_stack(positions, np.array(orientation), SPACING_MM, SHAPE)


def test_sagittal_stack_has_the_affine_worked_by_hand() -> None:
    # Rows run to the back (+y), columns to the feet (-z); row x column = (-1, 0, 0): k grows to the right.
    stack = fit(positions_of(30, np.array([-4.0, 0.0, 0.0]), (58.0, -60.0, 90.0)), SAGITTAL)
    expected: list[list[float]] = [
        [-4.0, 0.0, 0.0, 58.0],
        [0.0, 0.0, 1.5, -60.0],
        [0.0, -2.0, 0.0, 90.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
    np.testing.assert_allclose(stack.affine, expected, atol=1e-12)
    # By hand: k=10, j=20, i=40 lies at (58 - 40, -60 + 60, 90 - 40).
    np.testing.assert_allclose(stack.affine @ (10, 20, 40, 1), (18.0, 0.0, 50.0, 1.0), atol=1e-12)


def test_slices_are_ordered_along_the_normal_whatever_order_they_come_in() -> None:
    positions = positions_of(30, np.array([0.0, 0.0, 4.0]))[::-1]
    stack = fit(positions)
    assert stack.order.tolist() == list(range(29, -1, -1))
    np.testing.assert_allclose(stack.affine[:3, 0], (0, 0, 4))


def test_shear_stays_in_the_slice_vector() -> None:
    stack = fit(positions_of(30, np.array([0.0, 0.5, 4.0])))
    np.testing.assert_allclose(stack.affine[:3, 0], (0.0, 0.5, 4.0), atol=1e-12)
    assert stack.residual_mm < 1e-9


def test_jitter_below_a_tenth_of_the_step_is_fitted_through() -> None:
    positions = positions_of(40, np.array([0.0, 0.0, 4.0]))
    jitter = np.random.default_rng(0).uniform(-0.1, 0.1, positions.shape)
    stack = fit(positions + jitter)
    np.testing.assert_allclose(stack.affine[:3, 0], (0.0, 0.0, 4.0), atol=0.01)
    assert 0.05 < stack.residual_mm < 0.2


def test_origin_is_fitted_too_so_that_one_bad_first_slice_moves_nothing() -> None:
    positions = positions_of(40, np.array([0.0, 0.0, 4.0]))
    positions[0, 2] += 0.3
    assert abs(fit(positions).affine[2, 3] - 30.0) < 0.05


@pytest.mark.parametrize(
    ("along_mm", "reason"),
    [
        (
            np.delete(np.arange(40.0) * 4, 17),
            r"1 slice\(s\) missing: gap of 8.00 mm after k=16, 64.0 mm from the first",
        ),
        (np.delete(np.arange(40.0) * 4, [17, 18]), r"2 slice\(s\) missing: gap of 12.00 mm after k=16"),
        (np.concatenate([np.arange(20.0) * 3, 57 + np.arange(1, 20.0) * 5]), "irregular slice spacing: .* mm from its"),
        (np.repeat(np.arange(30.0) * 4, 2), "30 of 60 slices repeat a position"),
        (np.append(np.arange(30.0) * 4, 8.01), "1 of 31 slices repeat a position"),
        (np.arange(7.0) * 20, "7 slices, at least 8 are needed"),
        (np.zeros(1), "1 slice, at least 8 are needed"),
        (np.arange(19.0) * 4, r"covers 76.0 x 128.0 x 96.0 mm .*80 mm along each"),
    ],
)
def test_what_does_not_make_a_stack_is_refused_with_its_figures(along_mm: Numbers, reason: str) -> None:
    positions = np.column_stack([np.zeros_like(along_mm), np.zeros_like(along_mm), along_mm])
    with pytest.raises(SeriesRefusedError, match=reason):
        fit(positions)


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0.01, 1, 0), (1.01, 0, 0, 0, 1, 0), (0, 0, 0, 0, 1, 0), (1, 0, 0, 1, 0, 0)]
)
def test_cosines_that_are_not_orthonormal_are_refused(orientation: tuple[float, ...]) -> None:
    with pytest.raises(SeriesRefusedError, match="not orthonormal: lengths"):
        fit(positions_of(30, np.array([0.0, 0.0, 4.0])), orientation)


def test_cosines_of_three_decimals_are_read_in_every_orientation() -> None:
    rng = np.random.default_rng(3)
    for _ in range(500):
        exact = np.linalg.qr(rng.standard_normal((3, 3)))[0][:2]
        written = tuple(np.round(exact, 3).ravel())
        row, column = exact
        stack = fit(positions_of(30, 4.0 * np.cross(row, column)), written)
        np.testing.assert_allclose(stack.affine[:3, 1:3], np.column_stack([2.0 * column, 1.5 * row]), atol=2e-3)


def test_images_are_counted_at_each_place_along_the_normal() -> None:
    along_mm = [8.0, 0.0, 4.0, 4.02, 0.0, 0.01]
    positions = np.array([[10.0, 20.0 + 3 * number, height] for number, height in enumerate(along_mm)])
    assert count_at_places(positions, np.array(AXIAL)) == [3, 2, 1]


@pytest.mark.parametrize(
    ("step_mm", "orientation", "first", "last"),
    [
        ((0.0, 0.0, 4.0), AXIAL, 112, 199),
        ((0.0, 0.0, -4.0), (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), 0, 87),  # feet first: k grows towards the feet
        ((0.0, 1.0, 4.0), AXIAL, 112, 199),
        ((-4.0, 0.0, 0.0), SAGITTAL, 0, 199),
    ],
    ids=["head first", "feet first", "sheared", "sagittal"],
)
def test_a_whole_body_is_cropped_to_its_upper_350_mm(
    step_mm: tuple[float, ...], orientation: tuple[float, ...], first: int, last: int
) -> None:
    whole = fit(positions_of(200, np.array(step_mm)), orientation)
    head = crop_to_head(whole)
    assert head.order.tolist() == list(range(first, last + 1))
    np.testing.assert_allclose(head.affine @ (0, 3, 4, 1), whole.affine @ (first, 3, 4, 1), atol=1e-9)
    np.testing.assert_array_equal(head.affine[:3, :3], whole.affine[:3, :3])


def test_a_head_is_not_cropped() -> None:
    stack = fit(positions_of(87, np.array([0.0, 0.0, 4.0])))
    assert crop_to_head(stack) is stack


@given(st.permutations(range(12)))
def test_any_order_of_slices_gives_the_same_stack(order: list[int]) -> None:
    spec = SeriesSpec(orientation=OBLIQUE, shear_mm=(0.3, 0.0, 0.1))
    positions = np.array([(spec.affine() @ (k, 0, 0, 1))[:3] for k in range(12)])
    straight = fit_stack(positions, np.array(OBLIQUE), np.array([3.0, 3.5]), (32, 30))
    mixed = fit_stack(positions[order], np.array(OBLIQUE), np.array([3.0, 3.5]), (32, 30))
    assert mixed.affine.tolist() == straight.affine.tolist()
    assert [order[index] for index in mixed.order] == straight.order.tolist()


@given(st.tuples(*[st.floats(-500, 500)] * 3))
def test_index_to_mm_to_index_comes_back(index: tuple[float, ...]) -> None:
    stack = fit(positions_of(30, np.array([0.2, -0.4, 4.0])), OBLIQUE)
    there = stack.affine @ (*index, 1.0)
    np.testing.assert_allclose((np.linalg.inv(stack.affine) @ there)[:3], index, atol=1e-9)
