"""Jobs under any interleaving of workers, crashes, persons and clocks: the half of `test_work_machine` that is theirs.

Flow: Hypothesis > [job_machine: a model beside the database] > database/jobs, jobs/reprocess
Never: a step that only the model takes; what the database did is compared after each one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import delete

from dicomnode.database.engine import Database
from dicomnode.database.jobs import (
    ClaimOrder,
    Job,
    JobClaim,
    cancel_job,
    claim_job,
    extend_lease,
    fetch_expired_claims,
    fetch_jobs,
    give_job_back,
    move_claimed_job,
    move_job_by_person,
)
from dicomnode.database.schema import metadata
from dicomnode.errors import LeaseLostError, WorkerLostError
from dicomnode.jobs.failure import record_failure
from dicomnode.jobs.reprocess import reprocess_job
from dicomnode.jobs.retry import find_longest_wait_s
from dicomnode.settings import JobSettings
from tests.rows import add_waiting_job

LEASE_S = 60.0
SETTINGS = JobSettings(attempts=3, retry_first_s=10.0)
ORDER = ClaimOrder(wait_at_most_s=find_longest_wait_s(SETTINGS))
AMONG = st.integers(min_value=0, max_value=2)
OPEN = ("waiting", "running", "retry")


@dataclass
class Held:
    """What a worker believes it holds."""

    key: int
    token: int

    @property
    def claim(self) -> JobClaim:
        """The right to write to it."""
        return JobClaim(self.key, self.token)


class JobMachine(RuleBasedStateMachine):
    """Three workers over one database."""

    database: ClassVar[Database]

    def __init__(self) -> None:
        super().__init__()
        with self.database.write() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))
        self.now = 1000.0
        self.jobs: dict[int, str] = {}  # state by id
        self.tokens: dict[int, int] = {}
        self.attempts: dict[int, int] = {}
        self.leases: dict[int, float] = {}
        self.chains: dict[int, int] = {}  # the first job of its pair, by id
        self.workers: dict[int, Held] = {}
        self.late: list[Held] = []  # claims of workers that were given up, or hang

    # --- the clock and the outside

    @rule(seconds=st.sampled_from([11.0, 61.0, 5000.0, -30.0, -1e6]))
    def move_clock(self, seconds: float) -> None:
        self.now = max(self.now + seconds, 1.0)

    @precondition(lambda self: len(self.jobs) < 4)
    @rule()
    def add_job(self) -> None:
        job_id = add_waiting_job(self.database, self.now)
        self._learn_job(job_id, chain=job_id)

    # --- workers

    @rule(worker=AMONG)
    def claim(self, worker: int) -> None:
        if worker in self.workers:
            return
        job = claim_job(self.database, self.now, LEASE_S, ORDER)
        if job is None:
            return
        assert self.jobs[job.id] in ("waiting", "retry")
        assert job.token == self.tokens[job.id] + 1, "each claim raises the token by one"
        self.jobs[job.id], self.tokens[job.id], self.leases[job.id] = "running", job.token, self.now + LEASE_S
        self.attempts[job.id] += 1
        self.workers[worker] = Held(job.id, job.token)

    @rule(worker=AMONG)
    def beat(self, worker: int) -> None:
        if held := self.workers.get(worker):
            if self._try(held, lambda: extend_lease(self.database, held.claim, self.now + LEASE_S)):
                self.leases[held.key] = self.now + LEASE_S
            else:
                del self.workers[worker]

    @rule(worker=AMONG)
    def give_back(self, worker: int) -> None:
        held = self.workers.pop(worker, None)
        if held and self._try(held, lambda: give_job_back(self.database, held.claim)):
            self.jobs[held.key] = "waiting"
            self.attempts[held.key] -= 1

    @rule(worker=AMONG)
    def hang(self, worker: int) -> None:
        if worker in self.workers:
            self.late.append(self.workers.pop(worker))

    @precondition(lambda self: self.late)
    @rule(number=AMONG)
    def come_late(self, number: int) -> None:
        held = self.late[number % len(self.late)]

        def record() -> None:
            with self.database.write() as connection:
                move_claimed_job(connection, held.claim, "failed", reason="late")

        if self._try(held, record):
            self.jobs[held.key] = "failed"

    @rule(worker=AMONG, other=AMONG)
    def overtake(self, worker: int, other: int) -> None:
        """Let a worker hang until its job is given to another."""
        self.hang(worker)
        self.now += LEASE_S + 1.0
        self.take_back()
        self.now += ORDER.wait_at_most_s
        self.claim(other)

    @rule()
    def take_back(self) -> None:
        expired = fetch_expired_claims(self.database, self.now, LEASE_S)
        over = {
            key
            for key, state in self.jobs.items()
            if state == "running" and not self.now <= self.leases[key] <= self.now + 2 * LEASE_S
        }
        assert {job.id for job in expired} == over
        for job in expired:
            record_failure(self.database, job, WorkerLostError("no sign"), SETTINGS, self.now)
            self.jobs[job.id] = "failed" if job.attempts >= SETTINGS.attempts else "retry"

    # --- persons

    @rule(number=AMONG)
    def decide(self, number: int) -> None:
        waiting = sorted(key for key, state in self.jobs.items() if state in ("failed", "review"))
        if waiting:
            key = waiting[number % len(waiting)]
            state = "waiting" if self.jobs[key] == "failed" else "done"
            with self.database.write() as connection:
                move_job_by_person(connection, key, state, attempts=0, not_before=self.now)
            self.jobs[key] = state
            self.attempts[key] = 0

    @precondition(lambda self: len(self.jobs) < 6)
    @rule(number=AMONG)
    def reprocess(self, number: int) -> None:
        """Have a pair registered again none of whose other jobs is open or waits for a person."""
        unsettled = {self.chains[key]: key for key, state in self.jobs.items() if state != "done"}
        ended = [key for key, state in self.jobs.items() if state not in OPEN]
        ready = sorted(key for key in ended if unsettled.get(self.chains[key], key) == key)
        if ready:
            key = ready[number % len(ready)]
            self._learn_job(reprocess_job(self.database, key, self.now), chain=self.chains[key])
            self.jobs[key] = "done"

    @rule(number=AMONG)
    def cancel(self, number: int) -> None:
        open_jobs = sorted(key for key, state in self.jobs.items() if state in OPEN)
        if open_jobs:
            key = open_jobs[number % len(open_jobs)]
            with self.database.write() as connection:
                cancel_job(connection, key, "cancelled by a person", self.now)
            self.jobs[key] = "failed"
            self.tokens[key] += 1

    # --- what always holds

    @invariant()
    def the_jobs_are_as_the_model(self) -> None:
        with self.database.read() as connection:
            found: dict[int, Job] = {job.id: job for job in fetch_jobs(connection)}
        assert {key: job.state for key, job in found.items()} == self.jobs
        assert {key: job.token for key, job in found.items()} == self.tokens
        assert {key: job.attempts for key, job in found.items()} == self.attempts
        leases = {key: self.leases[key] for key, state in self.jobs.items() if state == "running"}
        assert {key: job.lease_until for key, job in found.items() if job.lease_until is not None} == leases

    def _learn_job(self, key: int, chain: int) -> None:
        self.jobs[key], self.tokens[key], self.attempts[key], self.chains[key] = "waiting", 0, 0, chain

    def _try(self, held: Held, write: Callable[[], None]) -> bool:
        """Write as the holder of a job; the token alone says whether that is allowed."""
        is_current = self.tokens[held.key] == held.token and self.jobs[held.key] == "running"
        try:
            write()
        except LeaseLostError:
            assert not is_current
            return False
        assert is_current, "a late worker wrote"
        return True
