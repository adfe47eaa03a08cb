"""Questions to peers and what they answer, as rows, on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dicomnode.database.engine import Database
from dicomnode.database.priors import FoundSeries, fetch_priors, fetch_seekers, record_priors, set_prior_state
from dicomnode.database.queries import (
    Kind,
    Query,
    Subject,
    add_query,
    claim_query,
    fetch_queries,
    fetch_subject,
    finish_query,
    has_due_queries,
    put_query_off,
    record_source_count,
)
from dicomnode.database.series import fetch_series, set_series_state
from dicomnode.database.turns import Turn
from dicomnode.errors import LeaseLostError
from tests.rows import MR, PATIENT, PET, add_finished_job, receive

LEASE_S = 60.0
FOUND = FoundSeries("1.2.8", "20260201", "090000", "A1", "1.2.8.1", "MR", "t1", 176, PATIENT)


def _ask(database: Database, kind: Kind = "count", peer: str = "pacs", now: float = 10.0) -> int:
    receive(database, PET, now=1.0)
    with database.write() as connection:
        series_id = fetch_series(connection, PET.series_uid).row.id
        add_query(connection, kind, series_id, peer, now)
    return series_id


def _claim(database: Database, now: float = 20.0) -> Query:
    query = claim_query(database, Turn("pacs", now, LEASE_S, 3600.0))
    assert query is not None
    return query


def _queries(database: Database, series_id: int) -> list[Query]:
    with database.read() as connection:
        return fetch_queries(connection, [series_id])


def test_a_question_is_claimed_by_one_caller(database: Database) -> None:
    _ask(database)

    query = _claim(database)

    assert (query.kind, query.peer, query.state, query.attempts) == ("count", "pacs", "owed", 1)
    assert claim_query(database, Turn("pacs", 21.0, LEASE_S, 3600.0)) is None
    assert claim_query(database, Turn("other", 21.0, LEASE_S, 3600.0)) is None


def test_a_late_caller_cannot_record_its_answer(database: Database) -> None:
    series_id = _ask(database)
    late = _claim(database)
    again = _claim(database, 20.0 + LEASE_S + 1)

    with pytest.raises(LeaseLostError), database.write() as connection:
        finish_query(connection, late, "done", 100.0)
    with database.write() as connection:
        finish_query(connection, again, "done", 101.0, "12 instances")

    [query] = _queries(database, series_id)
    assert (query.state, query.reason, query.finished_at, query.attempts) == ("done", "12 instances", 101.0, 2)
    with pytest.raises(LeaseLostError), database.write() as connection:
        finish_query(connection, again, "failed", 102.0)


def test_a_question_that_was_put_off_is_due_later(database: Database) -> None:
    series_id = _ask(database)
    query = _claim(database)
    with database.write() as connection:
        put_query_off(connection, query, 50.0, "nobody listens")

    assert [(one.state, one.reason) for one in _queries(database, series_id)] == [("retry", "nobody listens")]
    assert [claim_query(database, Turn("pacs", now, LEASE_S, 3600.0)) is None for now in (49.0, 50.0)] == [True, False]


def test_peers_are_asked_that_something_is_due_to_be_asked_of(database: Database) -> None:
    for peer, due in (("pacs", 10.0), ("archive", 30.0)):
        _ask(database, peer=peer, now=due)

    def asked(now: float) -> list[str]:
        with database.read() as connection:
            peers = ("archive", "other", "pacs")
            return [peer for peer in peers if has_due_queries(connection, Turn(peer, now, LEASE_S, 3600.0))]

    assert asked(20.0) == ["pacs"]
    assert asked(30.0) == ["archive", "pacs"]


def test_a_clock_that_is_put_back_neither_holds_nor_delays(database: Database) -> None:
    year_s = 365 * 86400.0
    _ask(database, now=year_s)

    query = _claim(database)  # what was asked by a clock that was ahead

    with database.write() as connection:
        put_query_off(connection, query, year_s, "nobody listens")
    ahead = claim_query(database, Turn("pacs", year_s, LEASE_S, 3600.0))
    assert ahead is not None
    again = _claim(database)  # what is held by it
    with database.write() as connection:
        finish_query(connection, again, "done", 21.0)
    with pytest.raises(LeaseLostError), database.write() as connection:
        finish_query(connection, ahead, "done", year_s)


def test_a_search_is_about_the_series_here_and_a_fetch_about_the_prior(database: Database) -> None:
    series_id = _ask(database, "priors")
    search = _claim(database)
    with database.write() as connection:
        record_priors(connection, search, [FOUND])
        [prior] = fetch_priors(connection, series_id)
        add_query(connection, "fetch", series_id, "pacs", 30.0, prior_id=prior.id)
        finish_query(connection, search, "done", 30.0)
    fetch = _claim(database, 31.0)

    with database.read() as connection:
        assert fetch_subject(connection, search) == Subject("1.2.3.2", PET.series_uid, PET.study_date, "PT", PATIENT)
        assert fetch_subject(connection, fetch) == Subject("1.2.8", "1.2.8.1", "20260201", "MR", PATIENT)


def test_what_is_here_or_was_found_or_made_here_is_no_prior(database: Database) -> None:
    series_id = _ask(database, "priors")
    receive(database, MR, now=1.0)
    job_id, _ = add_finished_job(database, ("pt",))
    search = _claim(database)
    found = [FOUND, *(replace(FOUND, series_uid=uid) for uid in (MR.series_uid, f"1.2.4.{job_id}"))]

    with database.write() as connection:
        assert [record_priors(connection, search, found) for _ in range(2)] == [1, 0]
        [prior] = fetch_priors(connection, series_id)

    assert (prior.peer, prior.state, prior.series.row.state) == ("pacs", "found", "found")
    assert (prior.series.row.series_uid, prior.series.patient) == (FOUND.series_uid, PATIENT)


def test_a_count_belongs_to_the_series_and_a_prior_s_to_what_is_fetched(database: Database) -> None:
    series_id = _ask(database, "priors")
    receive(database, MR, now=1.0)
    counted = replace(FOUND, series_uid="1.2.3.5.1", instance_count=30)
    with database.write() as connection:
        record_source_count(connection, series_id, 12)
    search = _claim(database)
    with database.write() as connection:
        record_priors(connection, search, [counted])
    receive(database, replace(MR, study=5), now=2.0)

    with database.read() as connection:
        rows = [fetch_series(connection, uid).row for uid in (PET.series_uid, MR.series_uid, counted.series_uid)]
    assert [row.source_count for row in rows] == [12, None, 30]


def test_a_prior_is_chosen_when_no_search_runs_and_the_next_when_the_last_was_of_no_use(database: Database) -> None:
    def seekers(now: float = 0.0) -> list[int]:
        with database.read() as connection:
            return fetch_seekers(connection, now, 2)

    series_id = _ask(database, "priors")
    search = _claim(database)
    with database.write() as connection:
        record_priors(connection, search, [replace(FOUND, series_uid=f"1.2.3.{n}.1") for n in (7, 8, 9)])
        assert fetch_seekers(connection, 0.0, 2) == []
        finish_query(connection, search, "done", 30.0)
        set_series_state(connection, series_id, "complete")
        set_series_state(connection, series_id, "unpaired")
    assert seekers() == [series_id]
    with database.write() as connection:
        add_query(connection, "priors", series_id, "archive", 30.0)
    assert seekers() == []  # another peer was not asked yet
    down = claim_query(database, Turn("archive", 30.0, LEASE_S, 3600.0))
    assert down is not None
    with database.write() as connection:
        put_query_off(connection, down, 3600.0, "nobody listens")
    assert seekers() == [series_id]  # it is not waited for
    with database.write() as connection:
        first, second, third = (prior.id for prior in fetch_priors(connection, series_id))
        for prior_id, state in ((first, "chosen"), (second, "lost"), (third, "lost")):
            set_prior_state(connection, prior_id, state, "")
        add_query(connection, "fetch", series_id, "pacs", 31.0, prior_id=first)
    assert seekers() == []  # it is being fetched
    fetch = _claim(database, 32.0)
    with database.write() as connection:
        finish_query(connection, fetch, "done", 40.0)
    assert [seekers(now) for now in (39.0, 41.0)] == [[], [series_id]]  # it may still be on its way, or did not come
    receive(database, replace(MR, study=7), now=45.0)
    assert seekers(50.0) == []  # it is being received
    with database.write() as connection:
        record_priors(connection, replace(search, peer="archive"), [replace(FOUND, series_uid="1.2.3.11.1")])
    assert seekers(50.0) == []  # though the peer that was down has answered
    with database.write() as connection:
        set_prior_state(connection, fetch_priors(connection, series_id)[-1].id, "refused", "")
    with database.write() as connection:
        set_series_state(connection, fetch_series(connection, "1.2.3.7.1").row.id, "refused", "a localizer")
    assert seekers(50.0) == [series_id]
    with database.write() as connection:
        set_prior_state(connection, second, "chosen", "")
    assert seekers(50.0) == []  # two were chosen
