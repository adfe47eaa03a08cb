"""The outbox behaves alike on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress

import pytest
from sqlalchemy import Connection, Update, update

from dicomnode.database.damages import clear_damages, record_damage
from dicomnode.database.engine import Database
from dicomnode.database.jobs import reject_jobs
from dicomnode.database.outbox import (
    DAMAGED,
    Failure,
    OutboxRow,
    add_outbox_rows,
    cancel_outputs,
    claim_more,
    claim_outbox,
    count_due_rows,
    extend_leases,
    fail_due_rows,
    fetch_held_ids,
    fetch_outbox,
    fetch_outbox_row,
    record_all_sent,
    record_dead,
    record_retry,
    record_sent,
    release_rows,
    retry_dead_rows,
    retry_outbox_row,
)
from dicomnode.database.schema import jobs, outputs, series
from dicomnode.errors import LeaseLostError, StateError
from tests.rows import add_finished_job, due

KINDS = ("pt", "pt", "rgb", "rgb")


def _owe(database: Database, *destinations: str, kinds: tuple[str, ...] = KINDS) -> list[int]:
    _, output_ids = add_finished_job(database, kinds)
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, destinations, now=30.0)
    return output_ids


def _claim(database: Database, destination: str = "pacs", now: float = 40.0, limit: int = 100) -> list[OutboxRow]:
    return claim_outbox(database, due(destination, now), limit)


def _row(database: Database, row_id: int) -> OutboxRow:
    with database.read() as connection:
        return fetch_outbox_row(connection, row_id)


def test_each_output_is_owed_to_each_destination_once(database: Database) -> None:
    output_ids = _owe(database, "pacs", "archive")

    with database.write() as connection:
        assert add_outbox_rows(connection, output_ids, ["pacs"], now=31.0) == 0
        rows = fetch_outbox(connection)
    assert [(row.destination, row.output_id) for row in rows] == [
        (destination, output_id) for destination in ("archive", "pacs") for output_id in output_ids
    ]


def test_nothing_is_owed_where_there_is_no_destination(database: Database) -> None:
    _owe(database)

    with database.read() as connection:
        assert fetch_outbox(connection) == []


def test_what_was_not_sent_for_a_damaged_file_is_owed_again_once_that_is_made_again(database: Database) -> None:
    ids = _owe(database, "pacs", "archive")
    rows = [*_claim(database), *_claim(database, "archive")]
    refused, *damaged = rows
    with database.write() as connection:
        record_dead(connection, refused, "0x0122 SOP class not supported")
        for row in damaged:
            record_dead(connection, row, f"{DAMAGED}it has another SHA-256")
            record_damage(connection, "it has another SHA-256", 41.0, output_id=row.output_id)
        assert add_outbox_rows(connection, ids, ["pacs"], 50.0) == 0
        clear_damages(connection, output_ids=ids)

        assert add_outbox_rows(connection, ids, ["pacs"], 50.0) == len(ids) - 1

    states = {(row.destination, row.id): row.state for row in (_row(database, one.id) for one in rows)}
    expected = {(row.destination, row.id): "owed" if row.destination == "pacs" else "dead" for row in rows}
    assert states == {**expected, (refused.destination, refused.id): "dead"}


def test_rows_are_claimed_job_by_job(database: Database) -> None:
    first, second = _owe(database, "pacs"), _owe(database, "pacs")

    assert [row.output_id for row in _claim(database)] == [*first, *second]


@pytest.mark.parametrize("end", ["sent", "dead"])
def test_the_registration_object_is_due_once_nothing_else_of_its_job_is_unsent(database: Database, end: str) -> None:
    _owe(database, "pacs", "archive", kinds=("pt", "rgb", "reg"))
    _owe(database, "pacs", kinds=("reg",))

    rows = _claim(database)
    assert [(row.kind, row.job_id) for row in rows] == [("pt", 1), ("rgb", 1), ("reg", 2)]
    with database.write() as connection:
        record_sent(connection, rows[0], 41.0)
        record_retry(connection, rows[1], 41.5, "out of resources")
    assert _claim(database, now=41.0) == []
    [again] = _claim(database, now=42.0)
    with database.write() as connection:
        record_sent(connection, again, 42.0) if end == "sent" else record_dead(connection, again, "refused")

    assert [(row.kind, row.job_id) for row in _claim(database, now=42.0)] == [("reg", 1)]


def test_who_records_what_was_sent_claims_what_that_made_due_with_the_same_commit(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt", "rgb", "reg"))
    rows = _claim(database)

    with database.write() as connection:
        record_all_sent(connection, rows, 41.0)
        claimed = claim_more(connection, due(now=41.0), 100)

    assert [row.kind for row in claimed] == ["reg"]
    assert _claim(database, now=42.0) == []


def test_the_registration_object_first_keeps_the_rest_of_its_job_back(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt", "rgb", "reg"))
    _owe(database, "pacs", kinds=("pt",))
    first = due(order="first")

    assert [count_due_rows(database, first, at_most) for at_most in (9, 1)] == [2, 1]
    rows = claim_outbox(database, first, 100)
    assert [row.kind for row in rows] == ["reg", "pt"]
    with database.write() as connection:
        record_sent(connection, rows[0], 41.0)

    assert [row.kind for row in claim_outbox(database, first, 100)] == ["pt", "rgb"]


def test_a_clock_that_is_put_back_neither_holds_nor_delays(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt", "rgb"))
    late, held = _claim(database, now=1e6)
    with database.write() as connection:
        record_retry(connection, late, 1e6 + 3600.0, "out of resources")

    assert [row.id for row in _claim(database, now=50.0)] == [held.id, late.id]


def test_a_claim_of_part_takes_the_first_and_the_next_the_rest(database: Database) -> None:
    output_ids = _owe(database, "pacs")

    taken = [row.output_id for _ in range(3) for row in _claim(database, limit=2)]

    assert taken == output_ids


def test_concurrent_claimers_never_take_one_row_twice(database: Database) -> None:
    output_ids = [output_id for _ in range(6) for output_id in _owe(database, "pacs")]

    def claim_all(_: int) -> list[int]:
        taken = []
        while rows := _claim(database, limit=2):
            taken += [row.output_id for row in rows]
        return taken

    with ThreadPoolExecutor(6) as threads:
        taken = [output_id for of_one in threads.map(claim_all, range(6)) for output_id in of_one]

    assert sorted(taken) == sorted(output_ids)


def test_an_expired_lease_gives_the_rows_to_the_next_and_the_late_one_cannot_write(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt",))
    [late] = _claim(database, now=40.0)

    assert _claim(database, now=100.0) == []
    [held] = _claim(database, now=100.1)

    assert held.token == late.token + 1
    records: list[Callable[[Connection], None]] = [
        lambda connection: record_sent(connection, late, 101.0),
        lambda connection: record_retry(connection, late, 200.0, "no answer"),
        lambda connection: record_dead(connection, late, "refused"),
    ]
    for record in records:
        with pytest.raises(LeaseLostError), database.write() as connection:
            record(connection)
    assert _row(database, held.id) == held


def test_an_extended_lease_keeps_the_rows(database: Database) -> None:
    _owe(database, "pacs")
    lost = _claim(database, now=40.0, limit=1)
    rows = [*_claim(database, now=40.0), *lost]
    other = _claim(database, now=110.0, limit=1)

    assert extend_leases(database, rows, 200.0) == {row.id for row in rows} - {row.id for row in other}

    assert _claim(database, now=150.0) == []
    assert extend_leases(database, [], 200.0) == set()


def test_a_released_row_is_due_again_with_no_attempt_used(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt",))

    release_rows(database, _claim(database))

    [row] = _claim(database)
    assert row.attempts == 0


def test_outcomes_are_recorded_with_their_reason(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt", "rgb", "rgb"))
    sent, later, refused = _claim(database)

    with database.write() as connection:
        record_sent(connection, sent, 41.0, "a warning")
        record_retry(connection, later, 70.0, "out of resources")
        record_dead(connection, refused, "not authorised")
        rows = {row.id: row for row in fetch_outbox(connection)}

    assert [(row.state, row.reason, row.attempts, row.lease_until) for row in rows.values()] == [
        ("sent", "a warning", 1, None),
        ("retry", "out of resources", 1, None),
        ("dead", "not authorised", 1, None),
    ]
    assert rows[sent.id].sent_at == 41.0
    assert _claim(database, now=69.0) == []
    assert [row.id for row in _claim(database, now=70.0)] == [later.id]


def test_what_was_sent_together_is_recorded_together_save_for_what_another_claimed_since(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt", "rgb", "rgb"))
    lost, *kept = late = _claim(database)
    release_rows(database, [lost])
    [again] = _claim(database, now=41.0)

    with database.write() as connection:
        assert record_all_sent(connection, late, 42.0) == {row.id for row in kept}
        assert record_all_sent(connection, [], 42.0) == set()

    assert _row(database, lost.id) == again
    for row in kept:
        found = _row(database, row.id)
        assert (found.state, found.attempts, found.sent_at, found.lease_until) == ("sent", 1, 42.0, None)


def test_one_failed_association_puts_off_everything_due_to_the_destination(database: Database) -> None:
    _owe(database, "pacs", "archive")

    assert fail_due_rows(database, due(now=40.0), Failure("nobody listens", 50.0), attempts_at_most=3) == 0

    with database.read() as connection:
        rows = fetch_outbox(connection)
    pacs = [(row.state, row.attempts, row.not_before) for row in rows if row.destination == "pacs"]
    assert pacs == [("retry", 1, 50.0)] * len(KINDS)
    assert {row.state for row in rows if row.destination == "archive"} == {"owed"}


def test_used_up_attempts_end_a_row(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt",))
    fail_due_rows(database, due(now=40.0), Failure("nobody listens", 50.0), attempts_at_most=2)
    _owe(database, "pacs", kinds=("pt",))

    assert fail_due_rows(database, due(now=50.0), Failure("nobody listens", 70.0), attempts_at_most=2) == 1

    with database.read() as connection:
        assert [row.state for row in fetch_outbox(connection)] == ["dead", "retry"]


def test_a_rejected_association_ends_every_due_row(database: Database) -> None:
    _owe(database, "pacs")

    assert fail_due_rows(database, due(now=40.0), Failure("calling AE title", None), attempts_at_most=9) == len(KINDS)


def test_rows_that_are_held_or_not_due_share_no_failure(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt", "rgb", "rgb"))
    held, later = _claim(database, limit=2)
    with database.write() as connection:
        record_retry(connection, later, 500.0, "out of resources")

    fail_due_rows(database, due(now=41.0), Failure("nobody listens", 50.0), attempts_at_most=9)

    assert (_row(database, held.id), _row(database, later.id).not_before) == (held, 500.0)


def test_only_a_person_owes_a_dead_row_again(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt",))
    [row] = _claim(database)
    with database.write() as connection:
        record_dead(connection, row, "refused")
    assert _claim(database) == []

    with database.write() as connection:
        retry_outbox_row(connection, row.id, now=90.0)

    [again] = _claim(database, now=90.0)
    assert (again.state, again.attempts) == ("owed", 0)
    with pytest.raises(StateError, match="it is owed, dead is needed"), database.write() as connection:
        retry_outbox_row(connection, row.id, now=91.0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (update(jobs).values(decision="rejected"), "its result was rejected by a person$"),
        (update(series).where(series.c.modality == "PT").values(state="refused"), "made of is refused$"),
        (update(outputs).values(deleted_at=50.0), "its file was deleted; make it again: dicomnode jobs reprocess 1$"),
    ],
    ids=["rejected", "series refused", "deleted"],
)
def test_what_is_withheld_is_owed_again_on_nobodys_word(database: Database, change: Update, why: str) -> None:
    _owe(database, "pacs", kinds=("pt",))
    [row] = _claim(database)
    with database.write() as connection:
        record_dead(connection, row, "not authorised")
        connection.execute(change)

    with pytest.raises(StateError, match=f"is not sent again: .*{why}"), database.write() as connection:
        retry_outbox_row(connection, row.id, now=90.0)
    with database.write() as connection:
        assert retry_dead_rows(connection, "pacs", now=90.0) == 0
    assert _row(database, row.id).state == "dead"


@pytest.mark.parametrize(
    "retry",
    [
        lambda connection: retry_outbox_row(connection, 1, 90.0),
        lambda connection: retry_dead_rows(connection, "pacs", 90.0),
    ],
    ids=["row", "destination"],
)
@pytest.mark.parametrize("first", ["rejected", "owed again"])
def test_what_is_rejected_while_it_is_owed_again_is_not_sent(
    database: Database, retry: Callable[[Connection], object], first: str
) -> None:
    _owe(database, "pacs", kinds=("pt",))
    [row] = _claim(database)
    with database.write() as connection:
        record_dead(connection, row, "not authorised")

    def reject(connection: Connection) -> None:
        reject_jobs(connection, 1, 90.0)
        cancel_outputs(connection, row.job_id, "rejected by a person")

    def do(what: Callable[[Connection], object]) -> None:
        with suppress(StateError), database.write() as connection:
            what(connection)

    before, after = (reject, retry) if first == "rejected" else (retry, reject)
    with ThreadPoolExecutor(1) as threads:
        with database.write() as connection:
            before(connection)
            other = threads.submit(do, after)
            assert wait([other], timeout=0.3).not_done  # it waits for what is under way
        other.result(timeout=30.0)

    assert _row(database, row.id).state == "dead"


def test_what_was_on_its_way_when_it_was_given_up_is_sent_and_says_why_it_was_given_up(database: Database) -> None:
    _owe(database, "pacs", kinds=("pt", "rgb", "rgb"))
    warned, taken, left = _claim(database)
    with database.write() as connection:
        assert cancel_outputs(connection, warned.job_id, "rejected by a person") == 3
    assert fetch_held_ids(database, [warned, taken, left]) == set()

    with database.write() as connection:
        record_sent(connection, warned, 41.0, "coerced")
        assert record_all_sent(connection, [taken], 41.0) == {taken.id}
        with pytest.raises(LeaseLostError):
            record_retry(connection, left, 50.0, "busy")

    rows = [_row(database, row.id) for row in (warned, taken, left)]
    assert [(row.state, row.reason, row.sent_at) for row in rows] == [
        ("sent", "rejected by a person", 41.0),
        ("sent", "rejected by a person", 41.0),
        ("dead", "rejected by a person", None),
    ]
