"""A clock that is moved is noticed: at once by a process that runs, and by one that starts."""

from __future__ import annotations

import pytest

from dicomnode.housekeeping.clock import Moment, find_move_s

BEFORE = Moment(1e9, 500.0)
YEAR_S = 365 * 86400.0


@pytest.mark.parametrize("seconds", [0.0, 60.0, 3600.0, 10 * YEAR_S])
def test_time_that_passes_is_no_move(seconds: float) -> None:
    assert find_move_s(Moment(1e9 + seconds, 500.0 + seconds), BEFORE, 1e9) is None


@pytest.mark.parametrize("moved_s", [10 * YEAR_S, -10 * YEAR_S, 3600.0, -3600.0])
def test_a_wall_clock_that_leaves_the_other_behind_was_moved(moved_s: float) -> None:
    assert find_move_s(Moment(1e9 + 60.0 + moved_s, 560.0), BEFORE, 1e9) == moved_s


def test_a_clock_that_is_put_right_by_seconds_was_not_moved() -> None:
    assert find_move_s(Moment(1e9 + 90.0, 560.0), BEFORE, 1e9) is None


def test_a_process_that_starts_compares_with_what_the_last_one_saw() -> None:
    assert find_move_s(Moment(1e9 + 3600.0, 5.0), None, 1e9) is None
    assert find_move_s(Moment(1e9 + YEAR_S, 5.0), None, 1e9) == YEAR_S
    assert find_move_s(Moment(1e9 - YEAR_S, 5.0), None, 1e9) == -YEAR_S


def test_the_first_look_of_all_believes_nothing_yet() -> None:
    assert find_move_s(BEFORE, None, None) == 0.0
