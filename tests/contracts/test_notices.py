"""What people are to be told, as rows, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dicomnode.commitment import Report
from dicomnode.database.commitments import (
    Commitment,
    claim_commitments,
    fetch_overdue,
    fetch_reported,
    fetch_sent_rows,
    finish_settled,
    give_commitment_up,
    owe_commitments,
    record_asked,
    record_committed,
    record_refused,
    record_uncommitted,
    take_report,
)
from dicomnode.database.engine import Database
from dicomnode.database.jobs import JobClaim, claim_job, fetch_job, move_claimed_job
from dicomnode.database.notices import (
    SUBJECTS_AT_MOST,
    Cause,
    DueNotice,
    Notice,
    claim_notice,
    fetch_notice,
    fetch_notices,
    fetch_owable_kinds,
    fetch_unnoted,
    finish_notice,
    is_notice_due,
    note_causes,
    owe_notice,
    put_notice_off,
    retry_notice,
)
from dicomnode.database.outbox import (
    Failure,
    add_outbox_rows,
    claim_outbox,
    fail_due_rows,
    fetch_outbox,
    record_all_sent,
    record_dead,
    record_sent,
    retry_outbox_row,
)
from dicomnode.database.turns import Turn
from dicomnode.errors import LeaseLostError, StateError
from dicomnode.pairing.decisions import reject_pair, retry_job
from tests.rows import MR, PET, add_finished_job, add_ready_pair, add_waiting_job, due

WINDOW_S = 900.0
DISK = Cause("disk", "the storage root", 5.0)


def _fail_job(database: Database, state: str = "failed", now: float = 20.0) -> int:
    job = claim_job(database, now, 60.0)
    assert job is not None
    with database.write() as connection:
        move_claimed_job(connection, JobClaim(job.id, job.token), state, reason="slice gap 6.2 mm", finished_at=now)
    return job.id


def _new(database: Database, channel: str = "webhook", now: float = 100.0) -> list[tuple[str, str]]:
    """Note what is new for a channel, and return it as (kind, subject)."""
    with database.write() as connection:
        causes = fetch_unnoted(connection, channel)
        note_causes(connection, channel, causes, now)
    return [(cause.kind, cause.subject) for cause in causes]


def _note(database: Database, *causes: Cause, channel: str = "webhook", now: float = 100.0) -> None:
    with database.write() as connection:
        note_causes(connection, channel, causes, now)


def _owe(database: Database, now: float = 100.0, kind: str = "disk", channel: str = "webhook") -> int | None:
    with database.write() as connection:
        return owe_notice(connection, channel, kind, now, WINDOW_S)


def _due(now: float = 100.0, channel: str = "webhook") -> DueNotice:
    return DueNotice(channel, now, 60.0, 3600.0)


def _claim(database: Database, now: float = 100.0) -> Notice:
    notice = claim_notice(database, _due(now))
    assert notice is not None
    return notice


def _state(database: Database, notice_id: int) -> tuple[str, str]:
    with database.read() as connection:
        notice = fetch_notice(connection, notice_id)
    return notice.state, notice.reason


def test_each_row_that_needs_a_person_is_noted_once_for_each_channel(database: Database) -> None:
    add_waiting_job(database)
    failed = _fail_job(database)
    add_waiting_job(database)
    review = _fail_job(database, "review")
    held = add_ready_pair(database, replace(MR, study=7), replace(PET, study=8), state="held")
    add_waiting_job(database)
    expected = [("review", f"job {review}"), ("job_failed", f"job {failed}"), ("review", f"pair {held}")]
    assert _new(database) == expected
    assert _new(database) == []
    assert _new(database, "email") == expected


def test_a_job_that_fails_again_after_a_person_retried_it_is_noted_again(database: Database) -> None:
    add_waiting_job(database)
    job_id = _fail_job(database)
    assert _new(database) == [("job_failed", f"job {job_id}")]
    retry_job(database, job_id, 30.0)
    assert _new(database) == []
    _fail_job(database, now=40.0)
    assert _new(database) == [("job_failed", f"job {job_id}")]


def test_a_delivery_that_dies_again_after_a_person_retried_it_is_noted_again(database: Database) -> None:
    _, output_ids = add_finished_job(database, ("pt",))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    (row,) = claim_outbox(database, due(), 10)
    with database.write() as connection:
        record_dead(connection, row, "refused")
    assert _new(database) == [("delivery_dead", f"outbox row {row.id}")]
    with database.write() as connection:
        retry_outbox_row(connection, row.id, now=50.0)
    fail_due_rows(database, due(now=200.0), Failure("rejected", None), 200)  # nobody claimed it: its token is as before
    assert _new(database) == [("delivery_dead", f"outbox row {row.id}")]


def test_what_a_person_rejects_is_not_told_to_be_undelivered(database: Database) -> None:
    job_id, output_ids = add_finished_job(database, ("pt", "rgb"), state="review")
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    assert _new(database) == [("review", f"job {job_id}")]
    [sent] = claim_outbox(database, due(), 1)
    with database.write() as connection:
        record_sent(connection, sent, 41.0, owes_commitment=True)
    with database.read() as connection:
        pair_id = fetch_job(connection, job_id).pair_id
    reject_pair(database, pair_id, 42.0)
    with database.write() as connection:
        assert [row.state for row in fetch_outbox(connection)] == ["sent", "dead"]
        [_] = owe_commitments(connection, "pacs", "archive", 50.0)
    [commitment] = claim_commitments(database, Turn("archive", 50.0, 60.0, 3600.0), 1)
    with database.write() as connection:
        give_commitment_up(connection, commitment, "it does no storage commitment")
    assert _new(database) == []


def _send_and_ask(database: Database, now: float) -> Commitment:
    """Send what is owed, and ask for its commitment once."""
    rows = claim_outbox(database, due(now=now), 10)
    with database.write() as connection:
        record_all_sent(connection, rows, now, owes_commitment=True)
        owe_commitments(connection, "pacs", "archive", now)
    [commitment] = claim_commitments(database, Turn("archive", now, 60.0, 3600.0), 10)
    with database.write() as connection:
        record_asked(connection, commitment, now + 10.0)
    return commitment


def _settle(database: Database, commitment: Commitment) -> None:
    """Take the report that says nothing of what was asked, and leave that open for good."""
    take_report(database, Report(commitment.transaction_uid, (), {}), ["archive"])
    with database.write() as connection:
        [reported] = fetch_reported(connection, "pacs")
        record_uncommitted(connection, [row.id for row in fetch_sent_rows(connection, reported)], "left open")
        finish_settled(connection, reported, "1 asked again")


def _give_up(database: Database, _: Commitment) -> None:
    with database.write() as connection:
        [overdue] = fetch_overdue(connection, "pacs", 1e4, 3600.0)
        give_commitment_up(connection, overdue, "no report; attempt 1 was the last")


@pytest.mark.parametrize("end", [_give_up, _settle])
def test_what_is_sent_and_not_committed_for_good_is_noted_and_again_after_a_person_sent_it_again(
    database: Database, end: Callable[[Database, Commitment], None]
) -> None:
    add_waiting_job(database)
    _fail_job(database, "done")
    job_id, output_ids = add_finished_job(database, ("pt", "rgb"))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    commitment = _send_and_ask(database, 40.0)
    assert _new(database) == []  # its report is waited for
    end(database, commitment)
    assert _new(database) == [("not_committed", f"job {job_id}")]
    assert _new(database) == []

    with database.write() as connection:
        for row in fetch_outbox(connection):
            retry_outbox_row(connection, row.id, now=200.0)
    end(database, _send_and_ask(database, 200.0))

    assert _new(database) == [("not_committed", f"job {job_id}")]


def test_what_a_person_sent_again_is_not_told_for_what_the_peer_refused_beside_it(database: Database) -> None:
    _, output_ids = add_finished_job(database, ("pt", "rgb"))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    commitment = _send_and_ask(database, 40.0)
    with database.write() as connection:
        [left_open, refused] = [row.id for row in fetch_outbox(connection)]
        record_refused(connection, refused, "0x0122")
    _settle(database, commitment)
    with database.write() as connection:
        retry_outbox_row(connection, left_open, now=200.0)

    assert _new(database) == [("delivery_dead", f"outbox row {refused}")]


def test_what_is_committed_late_needs_nobody_any_more(database: Database) -> None:
    _, output_ids = add_finished_job(database, ("pt",))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    commitment = _send_and_ask(database, 40.0)
    _settle(database, commitment)
    with database.read() as connection:
        named = tuple(row.reference for row in fetch_sent_rows(connection, commitment))

    take_report(database, Report(commitment.transaction_uid, named, {}), ["archive"])

    assert _new(database) == []
    with database.write() as connection:
        [reported] = fetch_reported(connection, "pacs")
        record_committed(connection, [row.id for row in fetch_sent_rows(connection, reported)])
        finish_settled(connection, reported, "1 committed")
        assert [row.state for row in fetch_outbox(connection)] == ["committed"]
    assert _new(database) == []
    assert take_report(database, Report(commitment.transaction_uid, named, {}), ["archive"]).state == "settled"


def test_what_comes_together_goes_in_one_notice_that_names_the_first_and_counts_all(database: Database) -> None:
    causes = [Cause("delivery_dead", f"outbox row {number}", 1.0) for number in range(1, 31)]
    _note(database, *causes)
    _note(database, *causes, now=101.0)  # and seen again
    notice_id = _owe(database, kind="delivery_dead")
    notice = _claim(database)
    assert (notice.id, notice.kind, notice.count, notice.first_at) == (notice_id, "delivery_dead", 30, 100.0)
    assert notice.subjects == tuple(f"outbox row {number}" for number in range(1, SUBJECTS_AT_MOST + 1))


def _send(database: Database, notice: Notice, now: float = 101.0) -> None:
    with database.write() as connection:
        finish_notice(connection, notice, "sent", now)


def test_one_notice_of_a_kind_is_owed_in_a_window(database: Database) -> None:
    _note(database, DISK)
    assert _owe(database, now=100.0) is not None
    _send(database, _claim(database))
    _note(database, replace(DISK, occurrence=6.0), replace(DISK, occurrence=7.0), now=102.0)
    assert _owe(database, now=100.0 + WINDOW_S - 1.0) is None
    with database.read() as connection:
        assert fetch_owable_kinds(connection, "webhook", 100.0 + WINDOW_S - 1.0, WINDOW_S) == []
        assert fetch_owable_kinds(connection, "webhook", 100.0 + WINDOW_S, WINDOW_S) == ["disk"]
    assert _owe(database, now=100.0 + WINDOW_S) is not None
    assert _claim(database, 100.0 + WINDOW_S).count == 2


def test_another_kind_and_another_channel_have_windows_of_their_own(database: Database) -> None:
    _note(database, DISK, Cause("review", "job 1", 1.0))
    _note(database, DISK, channel="email")
    assert None not in (_owe(database), _owe(database, kind="review"), _owe(database, channel="email"))


def test_nothing_is_added_to_a_notice_that_has_been_tried(database: Database) -> None:
    _note(database, DISK)
    _owe(database)
    notice = _claim(database)
    with database.write() as connection:
        put_notice_off(connection, notice, 110.0, "no answer")
    _note(database, replace(DISK, occurrence=6.0))
    assert _owe(database, now=100.0 + 2 * WINDOW_S) is None  # the one before is still to be sent
    assert _claim(database, 120.0).count == 1  # who got it, and whose answer was lost, knows all of it


def test_a_clock_that_is_put_back_keeps_nothing_from_being_told(database: Database) -> None:
    _note(database, DISK)
    _owe(database, now=9000.0)
    _send(database, _claim(database, 9000.0), 9001.0)
    _note(database, replace(DISK, occurrence=6.0), now=9001.0)
    assert _owe(database, now=100.0) is not None


def test_no_notice_is_owed_of_nothing(database: Database) -> None:
    assert _owe(database) is None
    with database.read() as connection:
        assert fetch_notices(connection) == []


def test_several_nodes_note_and_owe_once(database: Database) -> None:
    add_waiting_job(database)
    _fail_job(database)

    def node(_: int) -> int | None:
        with database.write() as connection:
            note_causes(connection, "webhook", fetch_unnoted(connection, "webhook"), 100.0)
        return _owe(database, kind="job_failed")

    with ThreadPoolExecutor(4) as threads:
        owed = [notice_id for notice_id in threads.map(node, range(12)) if notice_id is not None]
    assert len(owed) == 1
    with database.read() as connection:
        assert [notice.count for notice in fetch_notices(connection)] == [1]


def test_a_notice_is_claimed_by_one_sender_and_again_when_the_lease_is_over(database: Database) -> None:
    _note(database, DISK)
    _owe(database)
    notice = _claim(database)
    assert (notice.state, notice.attempts, notice.token) == ("owed", 1, 1)
    with database.read() as connection:
        assert not is_notice_due(connection, _due(150.0))
        assert not is_notice_due(connection, _due(161.0, "email"))
        assert is_notice_due(connection, _due(161.0))
    assert claim_notice(database, _due(150.0)) is None
    assert _claim(database, 161.0).token == 2
    with pytest.raises(LeaseLostError, match=f"notice {notice.id}: token 1 does not hold it"), database.write() as late:
        finish_notice(late, notice, "sent", 162.0)
    assert _state(database, notice.id) == ("owed", "")


def test_a_notice_that_failed_waits_and_ends_dead_until_a_person_retries_it(database: Database) -> None:
    _note(database, DISK)
    _owe(database)
    notice = _claim(database)
    with database.write() as connection:
        put_notice_off(connection, notice, 200.0, "no answer")
    assert _state(database, notice.id) == ("retry", "no answer")
    assert claim_notice(database, _due(199.0)) is None
    again = _claim(database, 200.0)
    assert again.attempts == 2
    with pytest.raises(StateError, match="it is retry, dead is needed"), database.write() as connection:
        retry_notice(connection, notice.id, 201.0)
    with database.write() as connection:
        finish_notice(connection, again, "dead", 201.0, "404")
    assert claim_notice(database, _due(9000.0)) is None
    with database.write() as connection:
        retry_notice(connection, notice.id, 300.0)
    assert (_state(database, notice.id)[0], _claim(database, 300.0).attempts) == ("owed", 1)


def test_a_wait_set_by_a_clock_that_was_put_back_is_over(database: Database) -> None:
    _note(database, DISK)
    _owe(database)
    notice = _claim(database)
    with database.write() as connection:
        put_notice_off(connection, notice, 1e6, "no answer")
    assert claim_notice(database, _due(1e6 - 3599.0)) is None
    assert claim_notice(database, _due(1e6 - 3601.0)) is not None


def test_an_unknown_number_is_named(database: Database) -> None:
    with pytest.raises(StateError, match="notice 7: there is no notice with this number"), database.read() as found:
        fetch_notice(found, 7)
