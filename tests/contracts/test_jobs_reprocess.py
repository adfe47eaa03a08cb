"""A pair is registered again on a person's word: a new job beside the old result, on SQLite and PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicomnode.database.engine import Database
from dicomnode.database.jobs import (
    Job,
    claim_job,
    fetch_job,
    fetch_outputs,
    fetch_successors,
    record_outputs,
)
from dicomnode.database.outbox import add_outbox_rows
from dicomnode.database.pairs import move_pair
from dicomnode.errors import StateError
from dicomnode.jobs.reprocess import reprocess_job
from tests.rows import add_finished_job, add_waiting_job, output_row


def _job(database: Database, job_id: int) -> Job:
    with database.read() as connection:
        return fetch_job(connection, job_id)


@pytest.mark.parametrize("state", ["done", "review", "failed"])
def test_a_new_job_follows_the_old_one_which_waits_for_nobody_any_more(database: Database, state: str) -> None:
    old_id, _ = add_finished_job(database, ("pt",), state=state)

    new_id = reprocess_job(database, old_id, 50.0, "paper")

    old, new = _job(database, old_id), _job(database, new_id)
    assert (new.state, new.pair_id, new.profile, new.reprocess_of) == ("waiting", old.pair_id, "paper", old_id)
    assert (old.state, old.decision) == ("done", "" if state == "done" else "reprocessed")
    with database.read() as connection:
        assert fetch_successors(connection, old_id) == [new_id]
        assert len(fetch_outputs(connection, old_id)) == 1


def test_a_job_that_has_not_ended_is_not_reprocessed(database: Database) -> None:
    job_id = add_waiting_job(database)

    with pytest.raises(StateError, match="it is waiting, done or failed or review is needed"):
        reprocess_job(database, job_id, 50.0)
    with pytest.raises(StateError, match="job 99: there is no job"):
        reprocess_job(database, 99, 50.0)


def test_a_rejected_pair_is_not_reprocessed(database: Database) -> None:
    job_id, _ = add_finished_job(database, ())
    with database.write() as connection:
        move_pair(connection, _job(database, job_id).pair_id, "rejected", "by a person")

    with pytest.raises(StateError, match="is rejected, ready is needed"):
        reprocess_job(database, job_id, 50.0)


@pytest.mark.parametrize("was_owed", [True, False])
def test_the_same_result_again_keeps_what_was_owed_and_takes_over_what_was_not(
    database: Database, was_owed: bool
) -> None:
    old_id, [output_id] = add_finished_job(database, ("pt",), state="review")
    if was_owed:
        with database.write() as connection:
            add_outbox_rows(connection, [output_id], ["pacs"], 30.0)
    new_id = reprocess_job(database, old_id, 50.0)
    assert claim_job(database, 60.0, 60.0) is not None
    again = {**output_row(old_id, 1, "pt", Path("outputs") / str(new_id) / "pt-0001.dcm"), "sha256": "1" * 64}

    with database.write() as connection:
        assert record_outputs(connection, new_id, [again]) == [output_id]
        of_old, of_new = fetch_outputs(connection, old_id), fetch_outputs(connection, new_id)

    assert ([one.sha256[0] for one in of_old], [one.sha256[0] for one in of_new]) == (
        (["0"], []) if was_owed else ([], ["1"])
    )
