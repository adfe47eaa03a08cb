"""A person's word on a pair or a job: the only way out of `held`, `review` and `failed`.

Flow: cli > [decisions] > database/pairs, database/jobs, database/outbox > jobs|send
Never: a decision by the node itself; anything sent of what a person rejected.
"""

from __future__ import annotations

from dicomnode.database.engine import Database
from dicomnode.database.jobs import add_job, fetch_latest_job, fetch_outputs, move_job_by_person
from dicomnode.database.pairs import fetch_pair, move_pair
from dicomnode.errors import StateError
from dicomnode.logs import get_logger
from dicomnode.routes import owe_results
from dicomnode.settings import Settings

log = get_logger()


def accept_pair(database: Database, pair_id: int, now: float, settings: Settings) -> None:
    """Say that a held pair is right, or that a registration in review may be sent.

    Parameters
    ----------
    database : Database
        A held pair becomes `ready` and gets a job; a job in review becomes `done` and its outputs are owed.
    pair_id : int
        The pair.
    now : float
        UTC epoch seconds.
    settings : Settings
        They say who gets results.

    Raises
    ------
    StateError
        If there is no such pair, or nothing about it waits for a person; nothing changed.
    """
    with database.write() as connection:
        pair = fetch_pair(connection, pair_id)
        job = fetch_latest_job(connection, pair_id)
        if pair.state == "held":
            move_pair(connection, pair_id, "ready", "accepted by a person")
            add_job(connection, pair_id, now)
        elif pair.state == "ready" and job is not None and job.state == "review":
            move_job_by_person(connection, job.id, "done", decision="accepted", finished_at=now)
            made = [(output.id, output.kind) for output in fetch_outputs(connection, job.id)]
            owe_results(connection, pair_id, "review", made, (settings, now))
        else:
            raise _nothing_waits(pair_id, pair.state, None if job is None else job.state)
    log.info("pairing.accepted", pair_id=pair_id)


def reject_pair(database: Database, pair_id: int, now: float) -> None:
    """Say that a held pair is wrong, or that a registration in review must not be sent: nothing of it ever is.

    Raises
    ------
    StateError
        If there is no such pair, or nothing about it waits for a person; nothing changed.
    """
    with database.write() as connection:
        pair = fetch_pair(connection, pair_id)
        job = fetch_latest_job(connection, pair_id)
        is_in_review = job is not None and job.state == "review"
        if pair.state != "held" and not is_in_review:
            raise _nothing_waits(pair_id, pair.state, None if job is None else job.state)
        move_pair(connection, pair_id, "rejected", "rejected by a person")
        if job is not None and is_in_review:
            move_job_by_person(connection, job.id, "done", decision="rejected", finished_at=now)
    log.info("pairing.rejected", pair_id=pair_id)


def retry_job(database: Database, job_id: int, now: float) -> None:
    """Let a failed job be tried again from the start; raises `StateError` if there is none or it has not failed."""
    with database.write() as connection:
        move_job_by_person(
            connection, job_id, "waiting", reason="", attempts=0, not_before=now, verdict="", finished_at=None
        )
    log.info("job.asked_again", job_id=job_id)


def _nothing_waits(pair_id: int, pair_state: str, job_state: str | None) -> StateError:
    of_job = "it has no job" if job_state is None else f"its job is {job_state}"
    return StateError(f"pair {pair_id}: it is {pair_state} and {of_job}; a held pair or a job in review is needed")
