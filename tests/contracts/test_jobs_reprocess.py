"""A pair is registered again on a person's word: a new job beside the old result, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from dicomnode.database.commitments import owe_again
from dicomnode.database.engine import Database
from dicomnode.database.jobs import (
    JOB_MOVES,
    Job,
    JobClaim,
    add_job,
    claim_job,
    fetch_job,
    fetch_jobs,
    fetch_outputs,
    fetch_successors,
    move_claimed_job,
    record_outputs,
)
from dicomnode.database.notices import fetch_unnoted
from dicomnode.database.outbox import (
    OutboxRow,
    add_outbox_rows,
    claim_outbox,
    fetch_outbox,
    record_sent,
    retry_dead_rows,
    retry_outbox_row,
)
from dicomnode.database.pairs import lock_pair, move_pair
from dicomnode.errors import StateError
from dicomnode.jobs.reprocess import reprocess_job
from dicomnode.pairing.decisions import reject_pair
from tests.rows import add_finished_job, add_waiting_job, due, output_row


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


def _run(database: Database, state: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
    """Let a worker do the job that is due, and record these outputs."""
    job = claim_job(database, 100.0, 60.0)
    assert job is not None
    with database.write() as connection:
        move_claimed_job(connection, JobClaim(job.id, job.token), state, finished_at=101.0)
        record_outputs(connection, job.id, rows)


def _rows(database: Database) -> list[OutboxRow]:
    with database.read() as connection:
        return fetch_outbox(connection)


def test_what_is_rejected_is_not_sent_though_an_earlier_job_of_the_pair_made_it(database: Database) -> None:
    kinds = ("pt", "rgb", "reg")
    old_id, output_ids = add_finished_job(database, kinds, state="review")
    with database.write() as connection:  # outputs.review = "send"
        add_outbox_rows(connection, output_ids, ["pacs"], 30.0)
    [sent, *_] = claim_outbox(database, due(), 1)
    with database.write() as connection:
        record_sent(connection, sent, 41.0)
    new_id = reprocess_job(database, old_id, 50.0)
    _run(database, "review", [output_row(old_id, number, kind) for number, kind in enumerate(kinds, start=1)])
    assert {row.job_id for row in _rows(database)} == {old_id}

    reject_pair(database, _job(database, new_id).pair_id, 70.0)

    assert [_job(database, job_id).decision for job_id in (old_id, new_id)] == ["rejected", "rejected"]
    assert [(row.state, row.reason) for row in _rows(database)] == [
        ("sent", ""),
        ("dead", "rejected by a person"),
        ("dead", "rejected by a person"),
    ]
    dead = _rows(database)[1]
    with pytest.raises(StateError, match="its result was rejected by a person"), database.write() as connection:
        retry_outbox_row(connection, dead.id, 80.0)
    with database.write() as connection:
        assert retry_dead_rows(connection, "pacs", 80.0) == 0
        assert not owe_again(connection, sent.id, 80.0, "0x0112")
        assert fetch_unnoted(connection, "webhook") == []
    assert claim_outbox(database, due(now=1e6), 9) == []


def test_a_rejection_holds_for_what_was_accepted_before(database: Database) -> None:
    first_id, output_ids = add_finished_job(database, ("pt",))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], 30.0)
    second_id = reprocess_job(database, first_id, 50.0, "paper")
    _run(database, "review", [output_row(second_id, 1, "pt")])

    reject_pair(database, _job(database, first_id).pair_id, 70.0)

    assert [(row.job_id, row.state, row.reason) for row in _rows(database)] == [
        (first_id, "dead", "rejected by a person")
    ]


@pytest.mark.parametrize("state", ["review", "failed"])
def test_a_rejection_leaves_no_job_of_the_pair_waiting_for_a_person(database: Database, state: str) -> None:
    first_id, _ = add_finished_job(database, ("pt",), state=state)
    pair_id = _job(database, first_id).pair_id
    with database.write() as connection:  # as a node did that took a second job beside one that was open
        second_id = add_job(connection, pair_id, 50.0)
    _run(database, "review")

    reject_pair(database, pair_id, 110.0)

    found = [_job(database, job_id) for job_id in (first_id, second_id)]
    assert [(job.state, job.decision, job.finished_at) for job in found] == [("done", "rejected", 110.0)] * 2


CANCEL = "wait for its end; or give it up, and reprocess that one: dicomnode jobs cancel 2"
OPEN = {
    "waiting": CANCEL,
    "running": CANCEL,
    "retry": CANCEL,
    "review": "decide on it first: dicomnode pairs accept 1, or pairs reject 1; "
    "or reprocess that one: dicomnode jobs reprocess 2",
    "failed": "reprocess that one: dicomnode jobs reprocess 2",
}


@pytest.mark.parametrize("state", sorted(JOB_MOVES.keys() - {"done"}))
def test_no_job_is_reprocessed_while_another_of_its_pair_is_open(database: Database, state: str) -> None:
    old_id, _ = add_finished_job(database, ("pt",))
    new_id = reprocess_job(database, old_id, 50.0)
    if state == "running":
        assert claim_job(database, 60.0, 60.0) is not None
    elif state != "waiting":
        _run(database, state)

    with pytest.raises(StateError) as caught:
        reprocess_job(database, old_id, 70.0)

    assert str(caught.value) == f"job 1: job 2 of its pair is {state}; {OPEN[state]}"
    with database.read() as connection:
        assert [job.id for job in fetch_jobs(connection)] == [old_id, new_id]


def test_jobs_of_a_pair_follow_one_another_whichever_is_reprocessed(database: Database) -> None:
    first_id, _ = add_finished_job(database, ("pt",))
    second_id = reprocess_job(database, first_id, 50.0)
    _run(database, "review")
    third_id = reprocess_job(database, second_id, 70.0)
    _run(database, "done")

    fourth_id = reprocess_job(database, first_id, 90.0)

    assert (_job(database, third_id).reprocess_of, _job(database, fourth_id).reprocess_of) == (second_id, first_id)
    with database.read() as connection:
        assert [job.state for job in fetch_jobs(connection)] == ["done", "done", "done", "waiting"]


def test_who_asks_while_another_is_asking_is_told_of_its_job(database: Database) -> None:
    job_id, _ = add_finished_job(database, ("pt",))
    with ThreadPoolExecutor(1) as threads:
        with database.write() as connection:
            pair = lock_pair(connection, _job(database, job_id).pair_id)
            late = threads.submit(reprocess_job, database, job_id, 50.0)
            assert not wait([late], timeout=0.5).done
            new_id = add_job(connection, pair.id, 50.0, reprocess_of=job_id)

        with pytest.raises(StateError, match=f"job {new_id} of its pair is waiting"):
            late.result(timeout=60.0)
