"""Every answer to C-STORE means one of three things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.send.statuses import STATUSES, classify_status


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (0x0000, "sent"),
        (0xB000, "sent"),
        (0xB006, "sent"),
        (0xB007, "sent"),
        (0x0111, "sent"),
        (0xA700, "transient"),
        (0xA7FF, "transient"),
        (0x0110, "transient"),
        (0x0213, "transient"),
        (0xA900, "permanent"),
        (0xC000, "permanent"),
        (0xCFFF, "permanent"),
        (0x0117, "permanent"),
        (0x0122, "permanent"),
        (0x0124, "permanent"),
        (0xFE00, "permanent"),
        (0xA801, "permanent"),
    ],
)
def test_a_status_means(status: int, meaning: str) -> None:
    assert classify_status(status)[0] == meaning


@given(st.integers(min_value=1, max_value=0xFFFF))
def test_every_status_but_success_has_words(status: int) -> None:
    assert classify_status(status)[1]


def test_the_ranges_do_not_overlap() -> None:
    bounds = [bound for first, last, _, _ in STATUSES for bound in (first, last)]

    assert bounds == sorted(bounds)
    assert classify_status(0)[1] == ""
