"""What may go, what has to stay and why, and which goes first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dicomnode.database.retained import ConflictFacts, JobFacts, OutputFacts, PairFacts, SeriesFacts
from dicomnode.housekeeping.rules import (
    DAY_S,
    HOUR_S,
    Subject,
    choose,
    explain_stay,
    judge_conflict,
    judge_outputs,
    judge_series,
)
from dicomnode.settings_keeping import KeepSettings, RetentionSettings

NOW = 1e9
SENT = JobFacts(1, "done", "", NOW - 50.0, {"sent": 3}, NOW - 40.0)
PAIRED = SeriesFacts(1, "1.2.3", "paired", NOW - 100.0, 10, 1000, None, 0, (PairFacts(7, "ready", (SENT,)),))


def with_job(**values: object) -> SeriesFacts:
    return replace(PAIRED, pairs=(PairFacts(7, "ready", (replace(SENT, **values),)),))  # type: ignore[arg-type]  # any


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (replace(PAIRED, state="receiving"), "it is receiving"),
        (replace(PAIRED, state="complete"), "it is complete"),
        (replace(PAIRED, open_questions=1), "a peer is being asked about it"),
        (replace(PAIRED, pairs=(PairFacts(7, "held", ()),)), "pair 7 waits for a person"),
        (with_job(state="waiting"), "job 1: it is waiting"),
        (with_job(state="running"), "job 1: it is running"),
        (with_job(state="retry"), "job 1: it is tried again"),
        (with_job(state="review"), "job 1: it waits for a person"),
        (with_job(outbox={"sent": 2, "owed": 1}), "job 1: 1 of it are owed"),
        (with_job(outbox={"sent": 2, "retry": 1}), "job 1: 1 of it are owed"),
        (with_job(outbox={"sent": 2, "dead": 1}), "job 1: 1 of it were refused and wait for a person"),
    ],
)
def test_what_is_owed_in_use_or_in_question_has_to_stay(facts: SeriesFacts, why: str) -> None:
    subject = judge_series(facts)
    assert (subject.kind, subject.why_kept) == ("", why)
    everything = KeepSettings(days=0.001, count=1, bytes=1)
    kinds: dict[str, Any] = dict.fromkeys(
        ("paired", "unpaired", "refused", "failed", "outputs", "conflicts"), everything
    )
    settings = RetentionSettings(hold_hours=1, free_start_bytes=2, free_stop_bytes=2, **kinds)
    assert choose([subject, subject], settings, NOW * 2, missing_bytes=10**9) == ()


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (PAIRED, "paired"),
        (with_job(outbox={"sent": 1, "committed": 2}), "paired"),
        (with_job(state="failed", outbox={}), "failed"),
        (with_job(outbox={}), "failed"),  # registered, and owed to nobody
        (replace(PAIRED, pairs=(PairFacts(7, "rejected", ()),)), "failed"),
        (replace(PAIRED, state="unpaired", pairs=()), "unpaired"),
        (replace(PAIRED, state="refused", pairs=()), "refused"),
    ],
)
def test_a_series_goes_as_what_became_of_it(facts: SeriesFacts, kind: str) -> None:
    assert judge_series(facts).kind == kind


def test_a_series_is_as_young_as_the_last_that_was_made_of_it_or_sent() -> None:
    assert judge_series(PAIRED).since == NOW - 40.0
    assert judge_series(with_job(last_sent_at=None)).since == NOW - 50.0
    assert judge_series(replace(PAIRED, pairs=())).since == NOW - 100.0


@pytest.mark.parametrize(
    ("job", "kind", "why"),
    [
        (SENT, "outputs", ""),
        (replace(SENT, outbox={"sent": 1, "owed": 1}), "", "1 of it are owed"),
        (replace(SENT, outbox={"sent": 1, "dead": 1}), "", "1 of it were refused and wait for a person"),
        (replace(SENT, outbox={"committed": 1, "uncommitted": 2}), "", "2 of it are not committed yet"),
        (replace(SENT, outbox={"dead": 3}, decision="rejected"), "failed", ""),
        (replace(SENT, outbox={}, decision="reprocessed"), "failed", ""),
        (replace(SENT, outbox={}), "", "no destination was owed it: it is nowhere else"),
        (replace(SENT, state="review", outbox={}), "", "it waits for a person"),
        (replace(SENT, state="failed", outbox={}), "", "it waits for a person"),
    ],
)
def test_outputs_go_once_every_destination_has_them_or_a_person_rejected_them(
    job: JobFacts, kind: str, why: str
) -> None:
    subject = judge_outputs(OutputFacts(job, 3, 3000, None))
    assert (subject.kind, subject.why_kept) == (kind, why)


def of_kind(kind: str, number: int, age_s: float, size_bytes: int = 100) -> Subject:
    return Subject("series", number, str(number), kind, "", NOW - age_s, 1, size_bytes)


def names(subjects: list[Subject], settings: RetentionSettings, missing_bytes: int = 0) -> list[str]:
    return [verdict.subject.name for verdict in choose(subjects, settings, NOW, missing_bytes)]


def test_by_default_nothing_ever_goes() -> None:
    subjects = [of_kind(kind, 1, 1e9) for kind in ("paired", "unpaired", "refused", "failed", "outputs", "conflicts")]
    assert names(subjects, RetentionSettings()) == []
    assert not RetentionSettings().is_asked_for


def test_age_count_and_bytes_let_the_oldest_of_a_kind_go_first() -> None:
    subjects = [of_kind("unpaired", day, day * DAY_S + 1.0) for day in range(2, 8)] + [of_kind("refused", 9, 9 * DAY_S)]
    assert names(subjects, RetentionSettings(unpaired=KeepSettings(days=5))) == ["7", "6", "5"]
    assert names(subjects, RetentionSettings(unpaired=KeepSettings(count=4))) == ["7", "6"]
    assert names(subjects, RetentionSettings(unpaired=KeepSettings(bytes=550))) == ["7"]
    assert names(subjects, RetentionSettings(unpaired=KeepSettings(days=6, count=4))) == ["7", "6"]


def test_nothing_younger_than_its_hold_goes_whatever_else_is_set() -> None:
    subjects = [of_kind("paired", 1, 23 * HOUR_S), of_kind("paired", 2, 25 * HOUR_S)]
    assert names(subjects, RetentionSettings(paired=KeepSettings(days=0.1, count=1, bytes=1)), 10**9) == ["2"]


def test_a_nearly_full_disk_takes_the_oldest_that_is_delivered_and_nothing_else() -> None:
    subjects = [of_kind(kind, number, (9 - number) * DAY_S) for number, kind in enumerate(("unpaired", "refused"))]
    subjects += [of_kind("conflicts", 2, 8 * DAY_S), of_kind("failed", 3, 8 * DAY_S)]
    subjects += [of_kind("outputs", 4, 5 * DAY_S), of_kind("paired", 5, 4 * DAY_S), of_kind("outputs", 6, 3 * DAY_S)]
    settings = RetentionSettings(free_start_bytes=1, free_stop_bytes=1)
    assert names(subjects, settings, missing_bytes=1) == ["4"]
    assert names(subjects, settings, missing_bytes=101) == ["4", "5"]
    assert names(subjects, settings, missing_bytes=10**9) == ["4", "5", "6"]


def test_what_was_promised_to_a_peer_stays_for_ever_or_as_long_as_the_settings_say() -> None:
    promised = [
        judge_series(replace(PAIRED, last_received_at=NOW - 9 * DAY_S, committed_at=NOW - 7 * DAY_S, pairs=())),
        judge_outputs(
            OutputFacts(replace(SENT, last_sent_at=None, finished_at=NOW - 9 * DAY_S), 3, 30, NOW - 7 * DAY_S)
        ),
    ]
    bounds: dict[str, Any] = dict.fromkeys(("failed", "outputs"), KeepSettings(days=1, count=1, bytes=1))

    def stay(days: float) -> set[str]:
        settings = RetentionSettings(free_start_bytes=1, free_stop_bytes=1, committed_days=days, **bounds)
        going = {verdict.subject for verdict in choose(promised, settings, NOW, missing_bytes=10**9)}
        return {explain_stay(one, settings, NOW) for one in promised if one not in going}

    words = "a peer was told that it is kept safe (storage commitment): "
    assert stay(0.0) == {f"{words}for ever"}
    assert stay(7.0) == {f"{words}retention.committed_days = 7"}
    assert stay(6.9) == set()


def test_what_goes_by_age_counts_towards_a_nearly_full_disk() -> None:
    subjects = [of_kind("unpaired", 1, 9 * DAY_S), of_kind("paired", 2, 8 * DAY_S)]
    assert names(subjects, RetentionSettings(unpaired=KeepSettings(days=5)), missing_bytes=100) == ["1"]


def test_what_came_while_the_clock_was_years_ahead_goes_by_count_as_the_youngest() -> None:
    subjects = [of_kind("unpaired", 1, -3650 * DAY_S), of_kind("unpaired", 2, 3 * DAY_S), of_kind("unpaired", 3, 60.0)]
    assert names(subjects, RetentionSettings(unpaired=KeepSettings(days=1))) == ["2"]
    assert names([subjects[0]] * 2, RetentionSettings(unpaired=KeepSettings(count=1))) == ["1"]


def test_an_instance_with_other_content_is_as_old_as_its_arrival() -> None:
    subject = judge_conflict(ConflictFacts(3, "a.dcm", 10, NOW - 9 * DAY_S))
    assert names([subject], RetentionSettings(conflicts=KeepSettings(days=8))) == ["a.dcm"]
    assert names([subject], RetentionSettings(conflicts=KeepSettings(days=10))) == []
