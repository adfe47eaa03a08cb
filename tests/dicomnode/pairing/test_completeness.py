"""A series is complete by a count, by a storage commitment request, or by quiet after its associations ended."""

from __future__ import annotations

import pytest

from dicomnode.database.series import Activity, OpenSeries
from dicomnode.pairing.completeness import judge_completeness, should_ask_source
from dicomnode.settings import PairingSettings
from tests.values import MR_ROW, PET_ROW, replace_row

SETTINGS = PairingSettings(series_quiet_period_s=20.0, study_quiet_period_s=60.0)
IDLE_STUDY = Activity(10, 99.0, 0, 100.0, 0)


def _open(
    *,
    count: int = 10,
    expected: int | None = None,
    source_count: int | None = None,
    open_associations: int = 0,
    closed_at: float = 100.0,
    commitment_requested: int = 0,
    study: Activity = IDLE_STUDY,
    asked_at: float | None = None,
) -> OpenSeries:
    row = MR_ROW if expected is None else PET_ROW
    seen = replace_row(row, expected_instances=expected, instance_count=count, source_count=source_count)
    activity = Activity(count, 99.0, open_associations, closed_at, commitment_requested)
    return OpenSeries(seen, activity, study, asked_at)


def _judge(series: OpenSeries, now: float) -> tuple[bool, str]:
    decision = judge_completeness(series, now, SETTINGS)
    return decision.is_complete, decision.reason


def test_a_series_without_a_count_is_complete_after_its_quiet_period() -> None:
    assert _judge(_open(), 119.9) == (False, "10 instances, quiet for 20 s, 20 s needed")
    assert _judge(_open(), 120.0) == (True, "10 instances, quiet for 20 s, 20 s needed")


def test_a_clock_that_was_put_back_by_years_keeps_no_series_open() -> None:
    assert _judge(_open(closed_at=1e9), 130.0) == (True, "10 instances, quiet since the clock was put back")
    assert not _judge(_open(closed_at=149.0), 130.0)[0]  # by less than the quiet period: that is waited for twice


def test_the_quiet_period_starts_when_the_association_ends() -> None:
    assert not _judge(_open(closed_at=110.0), 125.0)[0]


@pytest.mark.parametrize(
    "series",
    [
        _open(open_associations=1),
        _open(open_associations=1, expected=10),
        _open(open_associations=1, source_count=10),
        _open(open_associations=1, commitment_requested=10),
    ],
    ids=["quiet", "its own count", "the source's count", "commitment"],
)
def test_an_open_association_keeps_a_series_open_for_ever(series: OpenSeries) -> None:
    assert _judge(series, 1e6) == (False, "10 instances, an association that sends it is open")


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        (_open(expected=10), "10 of 10 instances, by the PET's own count"),
        (_open(source_count=10), "10 of 10 instances, by the source's count"),
        (_open(commitment_requested=10), "10 instances, storage commitment was requested for all of them"),
        (_open(expected=89, commitment_requested=10), "10 instances, storage commitment was requested for all of them"),
    ],
)
def test_a_count_that_is_reached_or_an_end_marker_ends_a_series_without_any_wait(
    series: OpenSeries, reason: str
) -> None:
    assert _judge(series, 100.0) == (True, reason)


def test_a_commitment_request_for_some_of_the_instances_is_no_end() -> None:
    assert not _judge(_open(commitment_requested=9), 100.0)[0]


@pytest.mark.parametrize(("expected", "source_count"), [(11, None), (None, 11), (10, 11), (11, 10)])
def test_one_that_falls_short_of_a_count_is_given_the_study_s_quiet_period(
    expected: int | None, source_count: int | None
) -> None:
    series = _open(expected=expected, source_count=source_count)

    assert [_judge(series, now)[0] for now in (125.0, 159.9, 160.0)] == [False, False, True]
    by = "the PET's own count" if expected == 11 else "the source's count"
    assert _judge(series, 125.0)[1] == f"10 of 11 instances by {by}, the study quiet for 25 s, 60 s needed"


def test_the_study_is_not_quiet_while_another_series_of_it_is_sent() -> None:
    sent, lately = Activity(20, 99.0, 1, 100.0, 0), Activity(20, 130.0, 0, 131.0, 0)

    assert _judge(_open(expected=11, study=sent), 1e6) == (
        False,
        "10 of 11 instances by the PET's own count, the study is still sent",
    )
    assert [_judge(_open(expected=11, study=lately), now)[0] for now in (160.0, 191.0)] == [False, True]


def test_one_with_more_than_its_count_waits_as_any_series() -> None:
    assert [_judge(_open(expected=9), now)[0] for now in (119.0, 120.0)] == [False, True]


@pytest.mark.parametrize(
    ("series", "now", "is_asked"),
    [
        (_open(), 109.9, False),
        (_open(), 110.0, True),
        (_open(open_associations=1), 1e6, False),
        (_open(asked_at=110.0), 115.0, False),
        (_open(asked_at=99.5), 115.0, True),
    ],
    ids=["too early", "half the quiet period", "still sent", "asked already", "asked before the last instances"],
)
def test_the_source_is_asked_once_after_each_silence(series: OpenSeries, now: float, is_asked: bool) -> None:
    assert should_ask_source(series, now, SETTINGS) is is_asked
