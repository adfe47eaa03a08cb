"""Records what becomes of a job whose attempt failed.

Flow: jobs/worker, jobs/service > [failure] > jobs/retry, database/jobs
Never: a rule (`retry` holds it); a job that another worker claimed meanwhile.
"""

from __future__ import annotations

from dicomnode.database.engine import Database
from dicomnode.database.jobs import Job, JobClaim, move_claimed_job
from dicomnode.errors import LeaseLostError
from dicomnode.jobs.retry import decide_after_failure
from dicomnode.logs import get_logger
from dicomnode.settings import JobSettings

log = get_logger()


def record_failure(database: Database, job: Job, error: Exception, settings: JobSettings, now: float) -> None:
    """Move a running job to `retry` or `failed`, unless it is not this claim's any more.

    Parameters
    ----------
    database : Database
        Raises `DatabaseUnavailableError` when it cannot be reached; the job is still `running` then.
    job : Job
        As it was claimed.
    error : Exception
        What the attempt ended with.
    settings : JobSettings
        The attempts there are, and the waits.
    now : float
        UTC epoch seconds.
    """
    after = decide_after_failure(error, job.attempts, now, settings)
    finished_at = now if after.state == "failed" else None
    values = {"reason": after.reason, "not_before": after.not_before, "finished_at": finished_at}
    try:
        with database.write() as connection:
            move_claimed_job(connection, JobClaim(job.id, job.token), after.state, **values)
    except LeaseLostError:
        log.warning("job.lost", job_id=job.id)
    else:
        log.info("job.moved", job_id=job.id, state=after.state, reason=after.reason)
