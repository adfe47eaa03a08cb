"""Storage commitment that is asked of peers, as rows, alike on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from dicomnode.commitment import Reference, Report
from dicomnode.database.commitments import (
    COMMITMENT_MOVES,
    Commitment,
    claim_commitments,
    fetch_overdue,
    fetch_reported,
    fetch_sent_rows,
    fetch_uncommitted,
    finish_settled,
    give_commitment_up,
    is_commitment_owed,
    owe_again,
    owe_commitments,
    put_commitment_off,
    record_asked,
    record_committed,
    record_uncommitted,
    release_commitments,
    renew_commitment,
    take_report,
)
from dicomnode.database.engine import Database
from dicomnode.database.outbox import (
    OutboxRow,
    add_outbox_rows,
    claim_outbox,
    fetch_outbox,
    record_all_sent,
    record_sent,
    retry_outbox_row,
)
from dicomnode.database.schema import commitments, jobs, outputs, series
from dicomnode.database.snapshots import release_claims
from dicomnode.database.turns import Turn
from dicomnode.errors import LeaseLostError, StateError
from tests.rows import add_finished_job, due

NOW = 50.0


def _turn(now: float = NOW) -> Turn:
    return Turn("archive", now, lease_s=60.0, wait_at_most_s=3600.0)


def _send(database: Database, kinds: tuple[str, ...] = ("pt", "rgb"), *, owes: bool = True) -> None:
    _, output_ids = add_finished_job(database, kinds)
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    rows = claim_outbox(database, due("pacs", 40.0), 100)
    with database.write() as connection:
        record_sent(connection, rows[0], 41.0, "coerced", owes_commitment=owes)
        record_all_sent(connection, rows[1:], 41.0, owes_commitment=owes)


def _open(database: Database, now: float = NOW) -> list[str]:
    with database.write() as connection:
        return owe_commitments(connection, "pacs", "archive", now)


def _claim(database: Database, now: float = NOW, limit: int = 20) -> list[Commitment]:
    return claim_commitments(database, _turn(now), limit)


def _one(database: Database) -> Commitment:
    _send(database)
    _open(database)
    [commitment] = _claim(database)
    return commitment


def _rows(database: Database) -> list[OutboxRow]:
    with database.read() as connection:
        return fetch_outbox(connection)


def _report(database: Database, commitment: Commitment, failed: int = 0) -> Report:
    with database.read() as connection:
        named = [row.reference for row in fetch_sent_rows(connection, commitment)]
    return Report(commitment.transaction_uid, tuple(named[failed:]), dict.fromkeys(named[:failed], 0x0112))


def test_what_was_sent_of_a_job_makes_one_transaction_once_nothing_of_it_is_unsent(database: Database) -> None:
    _send(database)
    _, output_ids = add_finished_job(database, ("pt", "rgb"))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    [first, second] = claim_outbox(database, due("pacs", 40.0), 100)
    with database.write() as connection:
        record_sent(connection, first, 41.0, owes_commitment=True)

    assert (len(_open(database)), len(_open(database))) == (1, 0)
    with database.write() as connection:
        record_sent(connection, second, 42.0, owes_commitment=True)
    assert len(_open(database)) == 1

    with database.read() as connection:
        assert not is_commitment_owed(connection, "pacs")
        asked = [[row.job_id for row in fetch_sent_rows(connection, one)] for one in _claim(database)]
    assert asked == [[1, 1], [2, 2]]


def test_what_was_sent_before_commitment_was_wanted_is_never_asked_for(database: Database) -> None:
    _send(database, owes=False)

    assert _open(database) == []
    with database.read() as connection:
        assert not is_commitment_owed(connection, "pacs")


def test_several_nodes_open_and_claim_each_transaction_once(database: Database) -> None:
    for _ in range(6):
        _send(database)

    with ThreadPoolExecutor(4) as threads:
        opened = [uid for uids in threads.map(lambda _: _open(database), range(4)) for uid in uids]
        claimed = [one for some in threads.map(lambda _: _claim(database, limit=2), range(4)) for one in some]

    assert len(opened) == len(set(opened)) == 6
    assert len({one.transaction_uid for one in claimed}) == len(claimed) == 6


def test_one_that_was_taken_and_not_given_back_is_asked_under_another_uid(database: Database) -> None:
    late = _one(database)

    assert _claim(database, NOW + 60.0) == []
    [again] = _claim(database, NOW + 60.1)

    assert (again.transaction_uid != late.transaction_uid, again.attempts, again.state) == (True, 1, "owed")
    with database.write() as connection:
        assert fetch_sent_rows(connection, late) == []
        assert len(fetch_sent_rows(connection, again)) == 2
        with pytest.raises(LeaseLostError):
            record_asked(connection, late, NOW + 100.0)


def test_one_that_was_given_back_or_put_off_keeps_its_uid(database: Database) -> None:
    first = _one(database)
    with database.write() as connection:
        release_commitments(connection, [first])
    [second] = _claim(database)
    with database.write() as connection:
        put_commitment_off(connection, second, NOW + 10.0, "nobody listens there")

    assert _claim(database, NOW + 9.0) == []
    [third] = _claim(database, NOW + 10.0)
    assert {one.transaction_uid for one in (first, second, third)} == {first.transaction_uid}
    assert (third.attempts, third.reason) == (1, "nobody listens there")


def test_a_clock_that_is_put_back_neither_holds_nor_delays(database: Database) -> None:
    _send(database)
    _open(database, now=1e6)
    [late] = _claim(database, now=1e6)
    with database.write() as connection:
        put_commitment_off(connection, late, 1e6 + 3600.0, "nobody listens there")

    [again] = _claim(database, NOW)
    with database.write() as connection:
        record_asked(connection, again, 1e6)
        assert fetch_overdue(connection, "pacs", NOW, 1e7) == []
        assert [one.id for one in fetch_overdue(connection, "pacs", NOW, 3600.0)] == [again.id]


@pytest.mark.parametrize("state", list(COMMITMENT_MOVES))
def test_a_report_is_kept_in_the_states_that_take_one(database: Database, state: str) -> None:
    commitment = _one(database)
    report = _report(database, commitment, failed=1)
    with database.write() as connection:
        connection.execute(update(commitments).values(state=state))

    before = take_report(database, report, ["other", "archive"])

    assert before.state == state
    with database.read() as connection:
        found = fetch_reported(connection, "pacs")
    is_kept = "reported" in COMMITMENT_MOVES[state]
    assert [one.report for one in found] == (
        [{"committed": ["1.2.4.1.2"], "failed": {"1.2.4.1.1": 0x0112}}] if is_kept else [None] * (state == "reported")
    )


def test_a_report_by_another_peer_or_on_an_unknown_transaction_changes_nothing(database: Database) -> None:
    commitment = _one(database)
    report = _report(database, commitment)

    with pytest.raises(StateError, match="archive was asked to commit"):
        take_report(database, report, ["pacs"])
    with pytest.raises(StateError, match="nobody was asked"):
        take_report(database, Report("1.2.3", (Reference("1.2", "1.3"),), {}), ["archive"])

    with database.read() as connection:
        assert fetch_reported(connection, "pacs") == []


def test_a_report_that_comes_before_the_answer_is_recorded_stays(database: Database) -> None:
    commitment = _one(database)
    take_report(database, _report(database, commitment), ["archive"])

    with database.write() as connection:
        record_asked(connection, commitment, NOW + 100.0)
        [found] = fetch_reported(connection, "pacs")
        record_committed(connection, [row.id for row in fetch_sent_rows(connection, found)])
        finish_settled(connection, found, "2 committed")

    assert [(row.state, row.reason) for row in _rows(database)] == [("committed", "coerced"), ("committed", "")]
    assert take_report(database, _report(database, commitment), ["archive"]).state == "settled"


def test_what_is_sent_again_is_asked_for_again_and_no_old_report_counts_for_it(database: Database) -> None:
    commitment = _one(database)
    with database.write() as connection:
        for row in fetch_sent_rows(connection, commitment):
            owe_again(connection, row.id, NOW, "archive: not committed: 0x0112")
        assert fetch_sent_rows(connection, commitment) == []
    rows = claim_outbox(database, due("pacs", NOW), 100)
    with database.write() as connection:
        record_all_sent(connection, rows, NOW, owes_commitment=True)
        assert fetch_sent_rows(connection, commitment) == []

    [uid] = _open(database)
    assert uid != commitment.transaction_uid


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        ("rejected", "its result was rejected by a person"),
        ("refused", "a series that it was made of is refused"),
        ("deleted", "its file was deleted"),
    ],
)
def test_what_is_not_to_be_sent_is_not_sent_again_because_the_destination_has_it_no_more(
    database: Database, cause: str, why: str
) -> None:
    commitment = _one(database)
    with database.write() as connection:
        if cause == "rejected":
            connection.execute(update(jobs).values(decision="rejected"))
        elif cause == "refused":
            connection.execute(update(series).where(series.c.modality == "MR").values(state="refused"))
        else:
            connection.execute(update(outputs).values(deleted_at=NOW))

    with database.write() as connection:
        again = [owe_again(connection, row.id, NOW, "0x0112") for row in fetch_sent_rows(connection, commitment)]

    assert again == [False, False]
    assert [(row.state, row.reason) for row in _rows(database)] == [("dead", f"0x0112; not sent again: {why}")] * 2
    assert claim_outbox(database, due("pacs", NOW), 100) == []


def test_only_a_commitment_that_was_given_up_lets_a_person_send_again(database: Database) -> None:
    commitment = _one(database)
    [row, _] = _rows(database)
    with database.write() as connection:
        record_asked(connection, commitment, NOW)
        assert fetch_uncommitted(connection) == {}
    with (
        pytest.raises(StateError, match="it is sent, dead is needed, or sent with a reason"),
        database.write() as connection,
    ):
        retry_outbox_row(connection, row.id, NOW)
    with database.write() as connection:
        [overdue] = fetch_overdue(connection, "pacs", NOW, 3600.0)
        another = renew_commitment(connection, overdue, NOW, "no report", NOW)
        assert another is not None
        give_commitment_up(connection, another, "no report; attempt 2 was the last")
        assert fetch_uncommitted(connection) == {"pacs": 2}
        retry_outbox_row(connection, row.id, NOW)

    [again, other] = _rows(database)
    assert (again.state, again.attempts, again.commitment_id) == ("owed", 0, None)
    assert (other.state, other.reason) == ("sent", "not committed: no report; attempt 2 was the last")


def test_what_the_last_report_left_open_may_be_sent_again_by_a_person(database: Database) -> None:
    commitment = _one(database)
    with database.write() as connection:
        record_asked(connection, commitment, NOW)
    take_report(database, Report(commitment.transaction_uid, (), {}), ["archive"])
    with database.write() as connection:
        [reported] = fetch_reported(connection, "pacs")
        record_uncommitted(
            connection, [row.id for row in fetch_sent_rows(connection, reported)], "archive left it open"
        )
        finish_settled(connection, reported, "2 asked again")
        [row, _] = fetch_outbox(connection)
        retry_outbox_row(connection, row.id, NOW)

    assert [(one.state, one.commitment_id is None) for one in _rows(database)] == [("owed", True), ("sent", False)]


def test_a_restored_node_asks_under_another_transaction_uid(database: Database) -> None:
    _send(database)
    [opened] = _open(database)
    with database.write() as connection:
        release_claims(connection)  # what a restore does: the node went on after the backup, and asked

    [asked] = _claim(database)

    assert asked.transaction_uid != opened
    with database.read() as connection:
        assert len(fetch_sent_rows(connection, asked)) == 2
