"""A person's word on pairs and jobs, on SQLite and PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicomnode.database.engine import Database
from dicomnode.database.jobs import Job, JobClaim, claim_job, fetch_job, fetch_latest_job, move_claimed_job
from dicomnode.database.outbox import fetch_outbox
from dicomnode.database.pairs import fetch_pair
from dicomnode.errors import StateError
from dicomnode.pairing.decisions import accept_pair, reject_pair, retry_job
from tests.rows import add_finished_job, add_ready_pair, add_waiting_job, settings_of

SETTINGS = settings_of(Path("unused"), "pacs", "archive")


def _job(database: Database, job_id: int) -> Job:
    with database.read() as connection:
        return fetch_job(connection, job_id)


def _pair_state(database: Database, pair_id: int) -> str:
    with database.read() as connection:
        return fetch_pair(connection, pair_id).state


def _owed(database: Database) -> int:
    with database.read() as connection:
        return len(fetch_outbox(connection))


def test_an_accepted_held_pair_gets_its_job(database: Database) -> None:
    pair_id = add_ready_pair(database, state="held")

    accept_pair(database, pair_id, 30.0, SETTINGS)

    with database.read() as connection:
        job = fetch_latest_job(connection, pair_id)
    assert job is not None
    assert (job.state, _pair_state(database, pair_id)) == ("waiting", "ready")


def test_a_rejected_held_pair_never_runs(database: Database) -> None:
    pair_id = add_ready_pair(database, state="held")

    reject_pair(database, pair_id, 30.0)

    assert _pair_state(database, pair_id) == "rejected"
    assert claim_job(database, 99.0, lease_s=60.0) is None
    with pytest.raises(StateError, match="it is rejected and it has no job"):
        accept_pair(database, pair_id, 31.0, SETTINGS)


def test_nothing_of_a_job_in_review_is_owed_until_it_is_accepted(database: Database) -> None:
    job_id, output_ids = add_finished_job(database, ("pt", "rgb", "reg"), state="review")
    assert _owed(database) == 0

    accept_pair(database, _job(database, job_id).pair_id, 30.0, SETTINGS)

    job = _job(database, job_id)
    assert (job.state, job.decision, job.finished_at) == ("done", "accepted", 30.0)
    assert _owed(database) == len(output_ids) * len(SETTINGS.destinations)


def test_nothing_of_a_job_in_review_is_owed_once_it_is_rejected(database: Database) -> None:
    job_id, _ = add_finished_job(database, ("pt", "rgb", "reg"), state="review")
    pair_id = _job(database, job_id).pair_id

    reject_pair(database, pair_id, 30.0)

    assert (_job(database, job_id).state, _job(database, job_id).decision) == ("done", "rejected")
    assert _pair_state(database, pair_id) == "rejected"
    with pytest.raises(StateError):
        accept_pair(database, pair_id, 31.0, SETTINGS)
    assert _owed(database) == 0


@pytest.mark.parametrize(
    "decide", [lambda d, p: accept_pair(d, p, 30.0, SETTINGS), lambda d, p: reject_pair(d, p, 30.0)]
)
def test_a_pair_that_waits_for_nobody_is_left_alone(database: Database, decide: object) -> None:
    job_id = add_waiting_job(database)
    before = _job(database, job_id)
    assert callable(decide)

    with pytest.raises(
        StateError, match="it is ready and its job is waiting; a held pair or a job in review is needed"
    ):
        decide(database, before.pair_id)

    assert _job(database, job_id) == before


def test_a_failed_job_is_tried_again_from_the_start(database: Database) -> None:
    add_waiting_job(database)
    job = claim_job(database, 20.0, lease_s=60.0)
    assert job is not None
    with database.write() as connection:
        move_claimed_job(connection, JobClaim(job.id, job.token), "failed", reason="no overlap", verdict="reject")

    retry_job(database, job.id, 30.0)

    again = _job(database, job.id)
    assert (again.state, again.attempts, again.reason, again.verdict) == ("waiting", 0, "", "")
    with pytest.raises(StateError, match="it is waiting, failed is needed"):
        retry_job(database, job.id, 31.0)
