"""APScheduler as a clock that goes on when the machine's is put back or forward.

Flow: app > [scheduler] > APScheduler
Never: what there is to do; a job that outlives the process.

APScheduler 3 keeps for each job the moment of its next run by the wall clock, and sleeps until the first of them: a
clock that is put back by an hour would stop every job for an hour. Its own interval trigger lists each second that a
clock was put forward by before anything runs: those of a year need more memory than a node has.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger


class Every(BaseTrigger):  # type: ignore[misc]  # apscheduler has no types
    """Due so many seconds after it was last due, however late that was: a time that was missed is not made up for."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self.due_at = time.monotonic()

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:  # noqa: ARG002  theirs
        """Return when it is due next by the wall clock, and note it by the one that nobody puts back or forward."""
        self.due_at = time.monotonic() + self._interval_s
        return now + timedelta(seconds=self._interval_s)


class SteadyScheduler(BackgroundScheduler):  # type: ignore[misc]  # apscheduler has no types
    """Runs jobs whose trigger is `Every`, in threads, no job twice at once.

    A job is due by the wall clock or by the monotonic one, whichever says so first: nobody puts the monotonic one back,
    but it stands still while the machine is suspended.
    """

    def __init__(self) -> None:
        # By default APScheduler does not run what is more than a second late, as everything is after a jump.
        super().__init__(timezone=UTC, job_defaults={"misfire_grace_time": None, "max_instances": 1})
        self._jobs = MemoryJobStore()
        self.add_jobstore(self._jobs)

    def _process_jobs(self) -> float:
        """Start what is due, and return in how many seconds to look again: APScheduler's main loop calls this."""
        with self._jobstores_lock:  # a shutdown takes the jobs away
            now = datetime.now(UTC)
            for job in self.get_jobs():
                if job.next_run_time > now and job.trigger.due_at <= time.monotonic():  # the wall clock was put back
                    job.next_run_time = now
                    self._jobs.update_job(job)
            super()._process_jobs()
            due_at: float = min((job.trigger.due_at for job in self.get_jobs()), default=0.0)
        return max(due_at - time.monotonic(), 0.0)
