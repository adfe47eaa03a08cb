"""A person's word that a pair is to be registered again, with another profile or what the settings say now.

Flow: cli > [reprocess] > database/jobs > jobs/service
Never: the old result changed or taken back: a new job follows it, and says which. Two jobs of a pair that are open at
once: a person's word on the pair would be on the later one, and the other would wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dicomnode.database.deletions import check_kept
from dicomnode.database.engine import Database
from dicomnode.database.jobs import (
    JOB_MOVES_BY_PERSON,
    Job,
    add_job,
    fetch_job,
    fetch_jobs_of_pair,
    move_job_by_person,
)
from dicomnode.database.pairs import lock_pair
from dicomnode.errors import StateError
from dicomnode.logs import get_logger

log = get_logger()

ENDED = ("done", "failed", "review")
_UNENDED = "wait for its end; or give it up, and reprocess that one: dicomnode jobs cancel {id}"
# What to do about another job of the pair, by its state.
OPEN: Mapping[str, str] = {
    "waiting": _UNENDED,
    "running": _UNENDED,
    "retry": _UNENDED,
    "review": "decide on it first: dicomnode pairs accept {pair_id}, or pairs reject {pair_id}; or reprocess that one: "
    "dicomnode jobs reprocess {id}",
    "failed": "reprocess that one: dicomnode jobs reprocess {id}",
}


def reprocess_job(database: Database, job_id: int, now: float, profile: str = "") -> int:
    """Add a job for the pair of one that has ended, and return its id.

    One that waited for a person, in `failed` or `review`, is `done` then: the new job takes its place.

    Parameters
    ----------
    database : Database
    job_id : int
        The job that has ended.
    now : float
        UTC epoch seconds.
    profile : str
        Of `registration.profile`; empty for what the settings say when the new job runs.

    Raises
    ------
    StateError
        If there is no such job, it has not ended, its pair is not ready any more, another job of the pair has not ended
        or waits for a person, or its series were deleted; nothing changed.
    """
    with database.write() as connection:
        job = fetch_job(connection, job_id)
        if job.state not in ENDED:
            raise StateError(f"job {job_id}: it is {job.state}, {' or '.join(ENDED)} is needed to reprocess it")
        pair = lock_pair(connection, job.pair_id)
        if pair.state != "ready":
            raise StateError(f"job {job_id}: its pair {pair.id} is {pair.state}, ready is needed to reprocess it")
        _check_others(job, fetch_jobs_of_pair(connection, pair.id))
        check_kept(connection, (pair.fixed_series_id, pair.moving_series_id), f"job {job_id}")
        if job.state in JOB_MOVES_BY_PERSON:
            move_job_by_person(connection, job_id, "done", decision="reprocessed", finished_at=now)
        new_id = add_job(connection, job.pair_id, now, profile=profile, reprocess_of=job_id)
    log.info("job.reprocessed", job_id=new_id, reprocess_of=job_id, profile=profile)
    return new_id


def _check_others(job: Job, of_pair: Iterable[Job]) -> None:
    for other in of_pair:
        if other.id != job.id and other.state in OPEN:
            todo = OPEN[other.state].format(id=other.id, pair_id=other.pair_id)
            raise StateError(f"job {job.id}: job {other.id} of its pair is {other.state}; {todo}")
