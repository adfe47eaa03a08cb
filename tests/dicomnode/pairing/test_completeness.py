"""A series is complete by the PET's own count, or by quiet after its associations ended."""

from __future__ import annotations

import pytest

from dicomnode.database.series import Activity, OpenSeries
from dicomnode.pairing.completeness import judge_completeness
from dicomnode.settings import PairingSettings
from tests.values import MR_ROW, PET_ROW, replace_row

SETTINGS = PairingSettings(series_quiet_period_s=20.0, study_quiet_period_s=60.0)


def _judge(
    *, now: float, count: int = 10, expected: int | None = None, open_associations: int = 0, closed_at: float = 100.0
) -> tuple[bool, str]:
    row = replace_row(MR_ROW if expected is None else PET_ROW, expected_instances=expected, instance_count=count)
    activity = Activity(count, 99.0, open_associations, closed_at)
    decision = judge_completeness(OpenSeries(row, activity, activity), now, SETTINGS)
    return decision.is_complete, decision.reason


def test_a_series_without_a_count_is_complete_after_its_quiet_period() -> None:
    assert _judge(now=119.9) == (False, "10 instances, quiet for 20 s, 20 s needed")
    assert _judge(now=120.0) == (True, "10 instances, quiet for 20 s, 20 s needed")


def test_the_quiet_period_starts_when_the_association_ends() -> None:
    assert not _judge(now=125.0, closed_at=110.0)[0]


def test_an_open_association_keeps_a_series_open_for_ever() -> None:
    assert _judge(now=1e6, open_associations=1) == (False, "10 instances, an association that sends it is open")
    assert not _judge(now=1e6, expected=10, open_associations=1)[0]


def test_a_pet_is_complete_at_its_own_count_without_any_wait() -> None:
    assert _judge(now=100.0, expected=10) == (True, "10 of 10 instances, by the PET's own count")


@pytest.mark.parametrize(("now", "is_complete"), [(125.0, False), (159.9, False), (160.0, True)])
def test_a_pet_that_falls_short_is_given_the_study_s_quiet_period(now: float, is_complete: bool) -> None:
    decision = _judge(now=now, expected=11)

    assert decision[0] is is_complete
    assert "10 of 11 instances" in decision[1]


def test_a_pet_with_more_than_its_count_waits_as_any_series() -> None:
    assert [_judge(now=now, expected=9)[0] for now in (119.0, 120.0)] == [False, True]
