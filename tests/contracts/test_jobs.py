"""The queue of jobs behaves alike on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from dicomnode.database.engine import Database
from dicomnode.database.jobs import (
    JOB_MOVES,
    JOB_MOVES_BY_PERSON,
    ClaimOrder,
    Job,
    JobClaim,
    cancel_job,
    claim_job,
    end_superseded_jobs,
    extend_lease,
    fetch_expired_claims,
    fetch_job,
    fetch_jobs,
    fetch_latest_job,
    fetch_lost_claims,
    fetch_outputs,
    give_job_back,
    move_claimed_job,
    move_job_by_person,
    record_outputs,
    record_progress,
)
from dicomnode.errors import LeaseLostError, StateError
from tests.rows import add_waiting_job, output_row


def _claim(database: Database, now: float = 20.0) -> Job:
    job = claim_job(database, now, lease_s=60.0)
    assert job is not None
    return job


def _of(job: Job) -> JobClaim:
    return JobClaim(job.id, job.token)


def _now(database: Database, job_id: int) -> Job:
    with database.read() as connection:
        return fetch_job(connection, job_id)


def test_a_claim_takes_the_oldest_job_and_leases_it(database: Database) -> None:
    first, second = add_waiting_job(database, now=10.0), add_waiting_job(database, now=11.0)

    job = _claim(database, now=20.0)

    assert (job.id, job.state, job.attempts, job.token, job.lease_until) == (first, "running", 1, 1, 80.0)
    assert _claim(database).id == second
    assert claim_job(database, 20.0, lease_s=60.0) is None


def test_a_job_is_not_claimed_before_it_is_due(database: Database) -> None:
    add_waiting_job(database, now=100.0)

    assert claim_job(database, 99.0, lease_s=60.0) is None
    assert claim_job(database, 100.0, lease_s=60.0) is not None


def test_the_newest_is_claimed_first_where_that_is_wanted(database: Database) -> None:
    ids = [add_waiting_job(database, now=10.0 + number) for number in range(3)]

    taken = [claim_job(database, 20.0, 60.0, ClaimOrder("newest")) for _ in ids]

    assert [job.id for job in taken if job is not None] == ids[::-1]


def test_who_sent_the_series_decides_before_age(database: Database) -> None:
    ordinary, urgent = add_waiting_job(database, now=10.0), add_waiting_job(database, now=11.0, calling_ae="STROKE")
    low = add_waiting_job(database, now=9.0, calling_ae="RESEARCH")
    order = ClaimOrder(priorities={"STROKE": 5, "RESEARCH": -5})

    taken = [claim_job(database, 20.0, 60.0, order) for _ in range(3)]

    assert [job.id for job in taken if job is not None] == [urgent, ordinary, low]


def test_a_job_that_failed_before_is_claimed_after_those_that_did_not(database: Database) -> None:
    poison, other = add_waiting_job(database, now=10.0), add_waiting_job(database, now=11.0)
    first = _claim(database)
    with database.write() as connection:
        move_claimed_job(connection, _of(first), "retry", not_before=15.0)

    assert [_claim(database).id, _claim(database).id] == [other, poison]


def test_a_clock_that_is_put_back_neither_holds_nor_delays_a_job(database: Database) -> None:
    waiting, held = add_waiting_job(database, now=1e6), add_waiting_job(database, now=2e6)
    first = _claim(database, now=1e6)
    with database.write() as connection:
        move_claimed_job(connection, _of(first), "retry", not_before=1e6 + 40.0)
    _claim(database, now=2e6)

    job = claim_job(database, 20.0, 60.0, ClaimOrder(wait_at_most_s=40.0))

    assert job is not None
    assert job.id == waiting
    assert [one.id for one in fetch_expired_claims(database, 20.0, lease_s=60.0)] == [held]


def test_concurrent_claimers_never_take_one_job_twice(database: Database) -> None:
    ids = {add_waiting_job(database) for _ in range(12)}

    def claim_all(_: int) -> list[int]:
        taken = []
        while (job := claim_job(database, 20.0, lease_s=60.0)) is not None:
            taken.append(job.id)
        return taken

    with ThreadPoolExecutor(6) as threads:
        taken = [job_id for ids_of_one in threads.map(claim_all, range(6)) for job_id in ids_of_one]

    assert sorted(taken) == sorted(ids)


def test_a_late_worker_cannot_write_past_the_next_claim(database: Database) -> None:
    add_waiting_job(database)
    late = _claim(database)
    with database.write() as connection:
        move_claimed_job(connection, _of(late), "retry", not_before=20.0, reason="its worker process died")
    now_held = _claim(database)

    assert (now_held.id, now_held.token, now_held.attempts) == (late.id, 2, 2)
    with pytest.raises(LeaseLostError):
        extend_lease(database, _of(late), 999.0)
    with pytest.raises(LeaseLostError):
        record_progress(database, _of(late), "register", 50)
    with pytest.raises(LeaseLostError), database.write() as connection:
        move_claimed_job(connection, _of(late), "done")
    assert _now(database, late.id) == now_held


def test_what_a_transaction_did_before_a_lost_lease_is_undone(database: Database) -> None:
    add_waiting_job(database)
    job = _claim(database)

    def record_late() -> None:
        with database.write() as connection:
            record_outputs(connection, job.id, [output_row(job.id, 1, "pt")])
            move_claimed_job(connection, JobClaim(job.id, job.token - 1), "done")

    with pytest.raises(LeaseLostError):
        record_late()

    with database.read() as connection:
        assert fetch_outputs(connection, job.id) == []


def test_an_extended_lease_does_not_expire(database: Database) -> None:
    add_waiting_job(database)
    job = _claim(database, now=20.0)

    assert [one.id for one in fetch_expired_claims(database, now=81.0, lease_s=60.0)] == [job.id]
    extend_lease(database, _of(job), 140.0)
    assert fetch_expired_claims(database, now=81.0, lease_s=60.0) == []


def test_a_job_that_is_given_back_has_not_used_an_attempt(database: Database) -> None:
    add_waiting_job(database)
    job = _claim(database)
    record_progress(database, _of(job), "register", 40)

    give_job_back(database, _of(job))

    back = _now(database, job.id)
    assert (back.state, back.attempts, back.lease_until, back.percent) == ("waiting", 0, None, 0)
    assert _claim(database).token == 2


def test_progress_is_readable_while_the_job_runs(database: Database) -> None:
    add_waiting_job(database)
    job = _claim(database)

    record_progress(database, _of(job), "register", 40)

    assert (_now(database, job.id).stage, _now(database, job.id).percent) == ("register", 40)


@pytest.mark.parametrize("state", sorted(JOB_MOVES["running"]))
def test_a_running_job_may_make_every_move_of_the_table(database: Database, state: str) -> None:
    add_waiting_job(database)
    job = _claim(database)

    with database.write() as connection:
        move_claimed_job(connection, _of(job), state, not_before=50.0)

    assert (_now(database, job.id).state, _now(database, job.id).lease_until) == (state, None)


def test_a_move_that_is_not_in_the_table_is_refused(database: Database) -> None:
    add_waiting_job(database)
    job = _claim(database)

    with pytest.raises(StateError, match="running does not become running"), database.write() as connection:
        move_claimed_job(connection, _of(job), "running")


@pytest.mark.parametrize(
    ("state", "to"), [(old, new) for old in ("failed", "review") for new in sorted(JOB_MOVES_BY_PERSON[old])]
)
def test_a_person_leaves_failed_and_review(database: Database, state: str, to: str) -> None:
    add_waiting_job(database)
    job = _claim(database)
    with database.write() as connection:
        move_claimed_job(connection, _of(job), state)
        moved = move_job_by_person(connection, job.id, to, decision="accepted")

    assert (moved.state, moved.decision) == (to, "accepted")


def test_a_person_cannot_move_a_job_that_needs_none(database: Database) -> None:
    job_id = add_waiting_job(database)

    with pytest.raises(StateError, match="it is waiting, failed is needed"), database.write() as connection:
        move_job_by_person(connection, job_id, "waiting")
    with pytest.raises(StateError, match="no job with this number"), database.write() as connection:
        move_job_by_person(connection, job_id + 1, "waiting")


@pytest.mark.parametrize("state", ["waiting", "running", "retry"])
def test_a_job_that_has_not_ended_is_cancelled_and_its_worker_cannot_write(database: Database, state: str) -> None:
    add_waiting_job(database)
    job, claim = (held := _claim(database)), _of(held)
    if state != "running":
        with database.write() as connection:
            move_claimed_job(connection, claim, state, not_before=30.0)
    else:
        assert fetch_lost_claims(database, [claim]) == set()

    with database.write() as connection:
        cancel_job(connection, job.id, "cancelled", 25.0)

    ended = _now(database, job.id)
    assert (ended.state, ended.reason, ended.lease_until, ended.finished_at) == ("failed", "cancelled", None, 25.0)
    assert ended.token == job.token + 1
    assert claim_job(database, 1000.0, lease_s=60.0) is None
    assert fetch_lost_claims(database, [claim]) == {job.id}
    with pytest.raises(LeaseLostError):
        extend_lease(database, claim, 99.0)
    with pytest.raises(StateError, match="it is failed, retry or running or waiting"), database.write() as connection:
        cancel_job(connection, job.id, "cancelled", 26.0)


def test_a_claim_is_lost_once_another_worker_has_the_job(database: Database) -> None:
    add_waiting_job(database)
    late = _claim(database)
    give_job_back(database, _of(late))
    again = _claim(database)

    assert fetch_lost_claims(database, [_of(late)]) == {late.id}
    assert fetch_lost_claims(database, [_of(again)]) == set()


def test_only_jobs_that_have_not_started_are_superseded(database: Database) -> None:
    running, waiting = add_waiting_job(database, now=10.0), add_waiting_job(database, now=11.0)
    _claim(database)
    pair_ids = [_now(database, job_id).pair_id for job_id in (running, waiting)]

    with database.write() as connection:
        assert end_superseded_jobs(connection, pair_ids, "superseded", now=30.0) == 1

    assert [_now(database, job_id).state for job_id in (running, waiting)] == ["running", "done"]


def test_outputs_are_recorded_once_and_in_their_order(database: Database) -> None:
    add_waiting_job(database)
    job = _claim(database)
    rows = [output_row(job.id, number, kind) for number, kind in enumerate(("pt", "rgb", "reg"))]

    with database.write() as connection:
        ids = record_outputs(connection, job.id, rows)
        assert record_outputs(connection, job.id, rows) == ids
        assert [output.kind for output in fetch_outputs(connection, job.id)] == ["pt", "rgb", "reg"]


def test_jobs_are_listed_by_state_and_by_pair(database: Database) -> None:
    first, second = add_waiting_job(database, now=10.0), add_waiting_job(database, now=11.0)
    job = _claim(database)

    with database.read() as connection:
        assert [one.id for one in fetch_jobs(connection)] == [first, second]
        assert [one.id for one in fetch_jobs(connection, ["waiting"])] == [second]
        latest = fetch_latest_job(connection, job.pair_id)
        assert latest is not None
        assert latest.id == first
        assert fetch_latest_job(connection, pair_id=999) is None
