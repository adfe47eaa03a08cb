"""Rows that are over end by their age, and no other does, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dicomnode.commitment import Reference, Report, Request
from dicomnode.database.commitment_requests import claim_requests, finish_request, record_request
from dicomnode.database.commitments import (
    Commitment,
    claim_commitments,
    fetch_reported,
    fetch_sent_rows,
    finish_settled,
    give_commitment_up,
    owe_commitments,
    record_asked,
    record_committed,
    take_report,
)
from dicomnode.database.deletions import NewDeletion, add_deletion, fetch_deletions
from dicomnode.database.engine import Database
from dicomnode.database.history import RULES, count_rows, end_rows
from dicomnode.database.notices import (
    Cause,
    DueNotice,
    claim_notice,
    fetch_unnoted,
    finish_notice,
    note_causes,
    owe_notice,
)
from dicomnode.database.outbox import claim_outbox, fetch_outbox, record_all_sent
from dicomnode.database.priors import FoundSeries, fetch_priors, record_priors, set_prior_state
from dicomnode.database.queries import add_query, claim_query, finish_query
from dicomnode.database.series import fetch_series
from dicomnode.database.turns import Turn
from dicomnode.housekeeping import history
from dicomnode.housekeeping.history import end_history, find_age
from dicomnode.housekeeping.retention import delete_due, remove_doomed
from dicomnode.housekeeping.service import HousekeepingService
from dicomnode.pairing.decisions import retry_job
from dicomnode.settings import NodeSettings, Settings
from dicomnode.settings_keeping import KeepSettings, RetentionSettings
from tests.house import DAY_S, House, fetch_all
from tests.receiving import ROOT
from tests.rows import PATIENT, due

SOON = KeepSettings(days=2)
FILES = RetentionSettings(paired=SOON, unpaired=SOON, outputs=SOON, conflicts=SOON)
LONG_S = 500 * DAY_S
FOUND = FoundSeries("1.2.8", "20260201", "090000", "A1", "1.2.8.1", "MR", "t1", 176, PATIENT)


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "root", database) as opened:
        yield opened


def clean(house: House) -> None:
    """Let two days pass and the files go."""
    house.now += 3 * DAY_S
    delete_due(house.database, house.store, Settings(retention=FILES), house.now, lambda: 10**12)
    assert remove_doomed(house.database, house.store, house.now)


def end(house: House, limit: int = 1000) -> dict[str, int]:
    """End what was over before now."""
    with house.database.write() as connection:
        return dict(end_rows(connection, house.now, limit))


def count(house: House, *tables: str) -> list[int]:
    """Return how many rows some tables have."""
    rows = fetch_all(house.database)
    return [len(rows[table]) for table in tables]


def make_another(house: House, number: int = 900) -> None:
    """Add what is newest in every table, so that what came before is not: the newest row always stays."""
    series_uid = house.receive("MR", number)
    with house.database.write() as connection:
        series_id = fetch_series(connection, series_uid).row.id
        add_deletion(connection, NewDeletion("leftovers", "0", "another", 0), [], house.now)
        add_query(connection, "priors", series_id, "another", house.now)
        note_causes(connection, "webhook", [Cause("disk", f"disk {number}", 0.0)], house.now)
        owe_notice(connection, "webhook", "disk", house.now, 0.0)
        record_request(connection, "another", Request("1.9.9", (Reference("1.2", "1.3"),)), house.now, 10)
    house.finish(house.pair(number)[0], owed_to=("another",))
    rows = claim_outbox(house.database, due("another", house.now), 10)
    with house.database.write() as connection:
        record_all_sent(connection, rows, house.now, owes_commitment=True)
        owe_commitments(connection, "another", "another", house.now)


def ask(house: House, database: Database) -> Commitment:
    """Send what a job makes, and ask that it be kept; return the transaction."""
    house.finish(house.pair(1)[0])
    rows = claim_outbox(database, due(now=house.now), 10)
    with database.write() as connection:
        record_all_sent(connection, rows, house.now, owes_commitment=True)
        owe_commitments(connection, "pacs", "archive", house.now)
    [claimed] = claim_commitments(database, Turn("archive", house.now, 60.0, 3600.0), 10)
    with database.write() as connection:
        record_asked(connection, claimed, house.now + 60.0)
    return claimed


def search(house: House, series_uid: str, *found: FoundSeries) -> None:
    """Ask a peer for priors of a series; it has some, which are not needed."""
    with house.database.write() as connection:
        series_id = fetch_series(connection, series_uid).row.id
        add_query(connection, "priors", series_id, "pacs", house.now)
    query = claim_query(house.database, Turn("pacs", house.now, 60.0, 3600.0))
    assert query is not None
    with house.database.write() as connection:
        record_priors(connection, query, found or [FOUND])
        for prior in fetch_priors(connection, series_id):
            set_prior_state(connection, prior.id, "lost", "not needed")
        finish_query(connection, query, "done", house.now)


def test_what_was_once_deleted_and_brought_ends_and_what_it_was_stays_known(house: House) -> None:
    house.finish(house.pair(1)[0])
    house.deliver()
    clean(house)
    before = fetch_all(house.database)
    house.now += LONG_S
    make_another(house)

    assert end(house) == {"deletions": 3, "associations": len(before["associations"])}

    after = fetch_all(house.database)
    for table in ("patients", "studies", "series", "pairs", "jobs", "outputs", "outbox"):
        assert [row for row in after[table] if row in before[table]] == before[table]


def test_what_is_young_stays(house: House) -> None:
    house.settle(house.receive("MR", 50), "unpaired")
    clean(house)
    make_another(house)
    with house.database.write() as connection:
        assert end_rows(connection, house.now - 3 * DAY_S, 1000) == {}
        assert end_rows(connection, house.now + 1.0, 1000) == {"deletions": 1, "associations": 1}


def test_an_association_stays_with_what_it_brought_and_until_it_ends(house: House) -> None:
    house.receive("MR", 50)
    house.now += LONG_S
    make_another(house)
    assert end(house) == {}


def test_a_deletion_stays_until_its_files_are_gone(house: House) -> None:
    house.settle(house.receive("MR", 50), "unpaired")
    house.now += 3 * DAY_S
    delete_due(house.database, house.store, Settings(retention=FILES), house.now, lambda: 10**12)
    house.now += LONG_S
    make_another(house)
    assert "deletions" not in end(house)
    assert count(house, "deletions") == [2]


def test_a_transaction_ends_once_it_is_settled_and_what_it_was_about_stays_committed(
    house: House, database: Database
) -> None:
    asked = ask(house, database)
    house.now += LONG_S
    make_another(house)
    assert "commitments" not in end(house)
    with database.read() as connection:
        rows = fetch_sent_rows(connection, asked)
    take_report(database, Report(asked.transaction_uid, tuple(row.reference for row in rows), {}), ["archive"])
    assert "commitments" not in end(house)

    with database.write() as connection:
        record_committed(connection, [row.id for row in rows])
    assert "commitments" not in end(house)
    with database.write() as connection:
        [reported] = fetch_reported(connection, "pacs")
        finish_settled(connection, reported, "2 committed")

    assert end(house)["commitments"] == 1
    with database.read() as connection:
        found = [(row.state, row.commitment_id) for row in fetch_outbox(connection) if row.destination == "pacs"]
    assert found == [("committed", None)] * 2


def test_a_transaction_that_was_given_up_stays_while_something_is_sent_and_not_committed(
    house: House, database: Database
) -> None:
    asked = ask(house, database)
    with database.write() as connection:
        give_commitment_up(connection, asked, "it does not answer")
    house.now += LONG_S
    make_another(house)
    assert "commitments" not in end(house)


def test_a_request_of_a_peer_ends_once_it_is_reported(house: House, database: Database) -> None:
    with database.write() as connection:
        record_request(connection, "scanner", Request("1.9", (Reference("1.2", "1.3"),)), house.now, 10)
    house.now += LONG_S
    make_another(house)
    assert "commitment_requests" not in end(house)
    [request] = claim_requests(database, Turn("scanner", house.now, 60.0, 3600.0), 10)
    with database.write() as connection:
        finish_request(connection, request, "reported", house.now, "")
    assert end(house)["commitment_requests"] == 1


@pytest.mark.parametrize("state", ["sent", "dead"])
def test_a_notice_ends_with_what_it_was_about_once_nobody_needs_it(
    house: House, database: Database, state: str
) -> None:
    job_id = house.finish(house.pair(1)[0], state="failed", owed_to=())
    with database.write() as connection:
        note_causes(connection, "webhook", fetch_unnoted(connection, "webhook"), house.now)
        owe_notice(connection, "webhook", "job_failed", house.now, 900.0)
        note_causes(connection, "email", [Cause("disk", "the storage root", 5.0)], house.now)
        owe_notice(connection, "email", "disk", house.now, 900.0)  # is owed to the end
    house.now += LONG_S
    make_another(house)
    assert "notices" not in end(house)
    notice = claim_notice(database, DueNotice("webhook", house.now, 60.0, 3600.0))
    assert notice is not None
    with database.write() as connection:
        finish_notice(connection, notice, state, house.now)
    # The job has failed still: were it forgotten that somebody was told, it would be told again.
    assert "notices" not in end(house)
    retry_job(database, job_id, house.now)

    assert end(house)["notices"] == 1

    with database.read() as connection:
        assert fetch_unnoted(connection, "webhook") == []
    assert count(house, "notices", "notice_causes") == [2, 2]


def test_questions_and_priors_end_with_the_series_they_were_for(house: House, database: Database) -> None:
    seeker, kept = house.receive("PT", 60), house.receive("PT", 61)
    search(house, seeker)
    search(house, kept)
    house.settle(seeker, "unpaired")
    clean(house)
    house.now += LONG_S
    make_another(house)

    ended = end(house)

    assert (ended["queries"], ended["priors"]) == (1, 1)
    with database.read() as connection:
        assert len(fetch_priors(connection, fetch_series(connection, kept).row.id)) == 1


def test_a_prior_stays_with_the_question_with_the_series_that_seeks_it_and_with_itself(
    house: House, database: Database
) -> None:
    seeker = house.receive("PT", 60)
    house.settle(seeker, "unpaired")
    house.now += LONG_S
    search(house, seeker, FOUND, *(replace(FOUND, series_uid=f"{ROOT}.{number}") for number in (70, 71)))
    house.receive("MR", 70)
    clean(house)
    search(house, house.receive("PT", 80), replace(FOUND, series_uid="1.2.8.2"))  # the newest prior
    with database.write() as connection:  # they are as old as their series, and the question is young
        assert "priors" not in end_rows(connection, house.now - 30 * DAY_S, 1000)
    house.now += LONG_S
    make_another(house)

    assert end(house, limit=1)["priors"] == 1
    house.receive("PT", 60)
    house.settle(seeker, "unpaired")
    house.now += LONG_S
    assert "priors" not in end(house)  # of the two that are left, one is wanted again by what came again
    clean(house)
    assert end(house)["priors"] == 1
    with database.read() as connection:
        [left] = fetch_priors(connection, fetch_series(connection, seeker).row.id)
    assert left.series.row.series_uid == f"{ROOT}.70"  # it was fetched, and is here


def test_a_series_that_was_deleted_is_a_prior_that_an_archive_has(house: House, database: Database) -> None:
    deleted, kept = (house.receive("MR", number) for number in (50, 51))
    house.settle(deleted, "unpaired")
    clean(house)
    seeker = house.receive("PT", 60)
    search(house, seeker, *(replace(FOUND, series_uid=uid) for uid in (deleted, kept)))
    with database.read() as connection:
        priors = fetch_priors(connection, fetch_series(connection, seeker).row.id)
    assert [prior.series.row.series_uid for prior in priors] == [deleted]


def test_the_newest_row_of_a_table_stays_so_that_no_number_is_given_twice(house: House, database: Database) -> None:
    for number in (50, 51):
        house.settle(house.receive("MR", number), "unpaired")
    clean(house)
    [_, last] = [row["id"] for row in fetch_all(database)["deletions"]]
    house.now += LONG_S

    assert end(house) == {"deletions": 1, "associations": 1}

    with database.write() as connection:
        add_deletion(connection, NewDeletion("leftovers", "0", "another", 0), [], house.now)
    assert [row["id"] for row in fetch_all(database)["deletions"]] == [last, last + 1]


def test_rows_end_a_few_at_a_time_and_it_is_noted_how_many(
    house: House, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "ROWS_AT_ONCE", 2)
    for number in range(50, 55):
        house.settle(house.receive("MR", number), "unpaired")
    clean(house)
    house.now += LONG_S
    settings = RetentionSettings(history_days=400)

    assert [end_history(database, settings, house.now) for _ in range(3)] == [True, True, False]

    with database.read() as connection:
        reasons = Counter(one.reason for one in fetch_deletions(connection) if one.kind == "history")
    assert reasons == {
        "retention.history_days = 400: 2 deletions, 2 associations": 2,
        "retention.history_days = 400: 1 deletions": 1,
    }


def test_it_can_be_counted_beforehand_what_goes_and_what_stays(house: House, database: Database) -> None:
    for number in (50, 51):
        house.settle(house.receive("MR", number), "unpaired")
    clean(house)
    house.now += LONG_S
    with database.read() as connection:
        counted = {one.table: (one.going, one.staying) for one in count_rows(connection, house.now)}
        never = {one.table: (one.going, one.staying) for one in count_rows(connection, None)}
    assert counted == {rule.table.name: (0, 0) for rule in RULES} | {"deletions": (1, 1), "associations": (1, 1)}
    assert never == {rule.table.name: (0, 0) for rule in RULES} | {"deletions": (0, 2), "associations": (0, 2)}


def test_how_old_rows_become_is_said_by_the_settings() -> None:
    assert find_age(RetentionSettings(), 1e9) == 1e9 - 400 * DAY_S
    assert find_age(RetentionSettings(history_days=0.5), 1e9) == 1e9 - DAY_S  # nothing younger than its hold goes
    assert find_age(RetentionSettings(history_days=0), 1e9) is None


@pytest.mark.parametrize("days", [0.0, 400.0])
def test_a_node_that_lives_long_ends_rows_by_default_and_a_clock_that_jumps_ends_none(
    house: House, days: float
) -> None:
    for number in (50, 51):
        house.settle(house.receive("MR", number), "unpaired")
    clean(house)
    moments = {"monotonic": 0.0}
    node = Settings(node=NodeSettings(storage_root=house.root), retention=RetentionSettings(history_days=days))
    service = HousekeepingService(node, house.database, house.clock, lambda: moments["monotonic"])

    def live(hours: int) -> list[int]:
        for _ in range(hours):
            house.now += 3600.0
            moments["monotonic"] += 3600.0
            service.step()
        return count(house, "associations")

    assert live(30) == [2]
    house.now += LONG_S  # put forward
    assert live(20) == [2]
    house.now -= LONG_S
    assert live(30) == [2]
    house.now, moments["monotonic"] = house.now + LONG_S, moments["monotonic"] + LONG_S  # time that has passed
    assert live(2) == [1 if days else 2]
