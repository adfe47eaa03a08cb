"""Keeps worker processes busy with jobs: claims, leases, deadlines, and what happens when a worker dies.

Flow: pairing > database/jobs > [jobs/service] > jobs/worker > database/outbox > send
Never: a job run in this process; a job that is lost because its worker, or this process, was killed.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

from dicomnode.database.engine import Database
from dicomnode.database.jobs import (
    ClaimOrder,
    Job,
    JobClaim,
    claim_job,
    extend_lease,
    fetch_expired_claims,
    fetch_lost_claims,
    give_job_back,
)
from dicomnode.errors import DatabaseUnavailableError, DicomnodeError, LeaseLostError, WorkerLostError
from dicomnode.jobs.failure import record_failure
from dicomnode.jobs.limits import read_resident_bytes
from dicomnode.jobs.retry import find_longest_wait_s
from dicomnode.jobs.worker import start_worker, warm_up, work_on
from dicomnode.logs import get_logger
from dicomnode.settings import Settings
from dicomnode.steps import Step, reach

log = get_logger()

Clock = Callable[[], float]
START_AGAIN_S = 10.0  # after a process that ended before it was given a job
LOAD_AT_MOST_S = 600.0  # until a process has loaded the network: then it hangs


@dataclass
class _Run:
    """A job in a worker, by when it must have ended, monotonic seconds, and until when it is leased, UTC epoch ones."""

    job: Job
    future: Future[None]
    end_by: float
    lease_until: float

    @property
    def claim(self) -> JobClaim:
        return JobClaim(self.job.id, self.job.token)


class _Worker:
    """One worker process and the job it has: a process of its own, so that killing one harms no other job."""

    def __init__(self, settings: Settings, monotonic: Clock) -> None:
        self.settings = settings
        self.run: _Run | None = None
        self._monotonic = monotonic
        self._jobs = 0  # that this process has been given
        self._executor: Executor | None = None
        self._start()

    def is_ready(self) -> bool:
        """Say whether the process can be given a job; one that died, or could not start, is started again.

        So none is claimed, and has an attempt less, for a process that is not there.
        """
        since_start_s = self._monotonic() - self._started_at
        if self._warm_up is not None and not self._warm_up.done():  # it loads the network
            if since_start_s > LOAD_AT_MOST_S:
                self.replace()
            return False
        if any(process.is_alive() for process in self._processes()):
            return True
        if since_start_s >= START_AGAIN_S:
            log.error("job.worker_not_there", reason="its process died idle, or could not start; it is started again")
            self.replace()
        return False

    def submit(self, job: Job, settings: Settings, end_by: float) -> None:
        """Give the process a job that is leased; raises BrokenProcessPool where it died since it was ready."""
        assert self._executor is not None  # noqa: S101  `is_ready` was asked
        self.settings = settings
        future = self._executor.submit(work_on, job, settings)
        self._jobs += 1
        self.run = _Run(job, future, end_by, job.lease_until or 0.0)

    def recycle(self) -> None:
        """Replace a process that has had its share of jobs: what libraries do not give back ends with it."""
        if self._jobs >= self.settings.jobs.recycle_after:
            log.info("job.worker_recycled", jobs=self._jobs)
            self.replace()

    def replace(self) -> None:
        """Kill the process and start another."""
        self.kill()
        self._jobs = 0
        self._start()

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        for process in self._processes():
            process.kill()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def resident_bytes(self) -> int:
        """Return the memory that the process holds, bytes."""
        return sum(read_resident_bytes(process.pid) for process in self._processes() if process.pid is not None)

    def _processes(self) -> list[BaseProcess]:
        # As `ProcessPoolExecutor.kill_workers` of Python 3.14 does; None once the executor is shut down.
        return list((getattr(self._executor, "_processes", None) or {}).values())

    def _start(self) -> None:
        """Start a process, which loads the network; none is there where the machine has no room for it."""
        self._started_at = self._monotonic()
        self._executor = self._warm_up = None
        context = multiprocessing.get_context("spawn")
        try:
            executor = ProcessPoolExecutor(1, mp_context=context, initializer=start_worker, initargs=(self.settings,))
            self._executor = executor
            self._warm_up = executor.submit(warm_up, self.settings.registration)
        except OSError as error:
            log.error("job.worker_not_started", reason=str(error.strerror))
        else:
            self._warm_up.add_done_callback(_log_warm_up)


class JobService:
    """The worker processes of this node; `step` is called by a clock, never by two threads at once.

    How long a job runs is told by another clock, `monotonic`: one that nobody puts back or forward.
    """

    def __init__(self, settings: Settings, database: Database, clock: Clock, monotonic: Clock = time.monotonic) -> None:
        self._settings = settings
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._workers: list[_Worker] = []

    def start(self) -> None:
        """Start the worker processes; they load the network while the node goes on."""
        self._workers = [_Worker(self._settings, self._monotonic) for _ in range(self._settings.jobs.workers)]

    def reload(self, settings: Settings) -> None:
        """Use other settings from the next job on; running jobs keep theirs."""
        self._settings = settings

    def step(self) -> None:
        """Look after what runs, take back what others lost, and give every idle worker a job that is due."""
        claims = [worker.run.claim for worker in self._workers if worker.run is not None]
        lost = fetch_lost_claims(self._database, claims) if claims else set()
        for worker in self._workers:
            if worker.run is not None and worker.run.job.id in lost:
                self._settle_lost(worker, worker.run)
            elif worker.run is not None:
                self._look_after(worker, worker.run)
        own = {worker.run.job.id for worker in self._workers if worker.run is not None}
        for job in fetch_expired_claims(self._database, self._clock(), self._settings.jobs.lease_s):
            if job.id not in own:
                self._fail(job, WorkerLostError(f"its worker gave no sign for {self._settings.jobs.lease_s:.0f} s"))
        self._fit_workers()
        for worker in self._workers:
            if worker.run is None and worker.is_ready() and not self._start_next(worker):
                break

    def stop(self, deadline_s: float) -> None:
        """Let running jobs finish for `deadline_s` seconds, put the others back to `waiting`, and end every process."""
        wait([worker.run.future for worker in self._workers if worker.run is not None], timeout=deadline_s)
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            if worker.run is not None:
                self._give_back(worker.run)
        self._workers = []

    def _look_after(self, worker: _Worker, run: _Run) -> None:
        """Settle a job that ended, keep the lease of one that runs, and end one that runs too long."""
        now, settings = self._clock(), self._settings.jobs
        if run.future.done():
            worker.run = None
            self._settle(worker, run)
            worker.recycle()
        elif self._monotonic() > run.end_by:
            self._end(worker, run, f"it ran for more than {settings.deadline_s:.0f} s and was ended")
        elif (held_bytes := worker.resident_bytes()) > settings.memory_bytes:
            self._end(worker, run, f"it held {held_bytes} bytes, may hold {settings.memory_bytes} and was ended")
        elif not settings.lease_s / 2 <= run.lease_until - now <= settings.lease_s:  # due, or the clock was put back
            try:
                extend_lease(self._database, run.claim, now + settings.lease_s)
                run.lease_until = now + settings.lease_s
            except LeaseLostError:
                self._settle_lost(worker, run)

    def _end(self, worker: _Worker, run: _Run, reason: str) -> None:
        """End a worker that takes more than it may; its job has had an attempt."""
        worker.run = None
        worker.replace()
        self._fail(run.job, WorkerLostError(reason))

    def _settle(self, worker: _Worker, run: _Run) -> None:
        error = run.future.exception()
        if isinstance(error, BrokenProcessPool):
            worker.replace()
            self._fail(run.job, WorkerLostError("its worker process died"))
        elif error is not None:  # its end could not be recorded: the lease runs out and it is tried again
            log.warning("job.not_recorded", job_id=run.job.id, reason=type(error).__name__)

    def _settle_lost(self, worker: _Worker, run: _Run) -> None:
        """End a worker whose job is not its own any more, unless it has just recorded the end itself."""
        worker.run = None
        done, _ = wait([run.future], timeout=1.0)
        if done:
            self._settle(worker, run)
            worker.recycle()
        else:
            log.warning("job.lost", job_id=run.job.id)
            worker.replace()

    def _start_next(self, worker: _Worker) -> bool:
        """Give an idle worker the next job that is due; False when there is none."""
        now = self._clock()
        job = claim_job(self._database, now, self._settings.jobs.lease_s, _find_order(self._settings))
        if job is None:
            return False
        log.info("job.started", job_id=job.id, pair_id=job.pair_id, attempt=job.attempts)
        reach(Step.CLAIMED, job_id=job.id)
        try:
            worker.submit(job, self._settings, self._monotonic() + self._settings.jobs.deadline_s)
        except BrokenProcessPool:  # it died since it was ready
            give_job_back(self._database, JobClaim(job.id, job.token))
        return True

    def _fit_workers(self) -> None:
        """Follow a changed number of workers, without touching one that has a job."""
        surplus = len(self._workers) - self._settings.jobs.workers
        for worker in [worker for worker in self._workers if worker.run is None][: max(surplus, 0)]:
            worker.kill()
            self._workers.remove(worker)
        self._workers += [_Worker(self._settings, self._monotonic) for _ in range(-surplus)]

    def _fail(self, job: Job, error: WorkerLostError) -> None:
        record_failure(self._database, job, error, self._settings.jobs, self._clock())

    def _give_back(self, run: _Run) -> None:
        try:
            give_job_back(self._database, run.claim)
        except LeaseLostError:
            return  # it ended, and recorded that itself
        except DatabaseUnavailableError as error:  # the lease runs out, and it is tried again
            log.warning("job.not_given_back", job_id=run.job.id, reason=str(error))
            return
        log.info("job.given_back", job_id=run.job.id)


def _find_order(settings: Settings) -> ClaimOrder:
    """Return in which order the settings want jobs to run; of peers with one AE title, the most urgent counts."""
    priorities: dict[str, int] = {}
    for peer in settings.peers:
        priorities[peer.ae_title] = max(peer.priority, priorities.get(peer.ae_title, peer.priority))
    return ClaimOrder(settings.jobs.order, priorities, find_longest_wait_s(settings.jobs))


def _log_warm_up(future: Future[None]) -> None:
    error = None if future.cancelled() else future.exception()
    if isinstance(error, DicomnodeError):
        log.error("job.warm_up_failed", reason=str(error))
