"""Jobs and the outbox under any interleaving of workers, senders, crashes, persons and clocks, on both databases.

Flow: Hypothesis > [machine: a model beside the database] > database/jobs, database/outbox
Never: a step that only the model takes; what the database did is compared after each one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete

from dicomnode.database.engine import Database
from dicomnode.database.jobs import (
    JOB_MOVES,
    ClaimOrder,
    Job,
    JobClaim,
    cancel_job,
    claim_job,
    extend_lease,
    fetch_expired_claims,
    fetch_jobs,
    move_claimed_job,
    move_job_by_person,
    record_outputs,
)
from dicomnode.database.outbox import (
    OutboxRow,
    add_outbox_rows,
    claim_outbox,
    fetch_outbox,
    record_dead,
    record_retry,
    record_sent,
    retry_outbox_row,
)
from dicomnode.database.schema import metadata
from dicomnode.errors import LeaseLostError, WorkerLostError
from dicomnode.jobs.failure import record_failure
from dicomnode.jobs.retry import find_longest_wait_s
from dicomnode.settings import JobSettings
from tests.rows import add_waiting_job, due, output_row

LEASE_S = 60.0
SETTINGS = JobSettings(attempts=3, retry_first_s=10.0)
ORDER = ClaimOrder(wait_at_most_s=find_longest_wait_s(SETTINGS))
KINDS = ("pt", "rgb", "reg")
AMONG = st.integers(min_value=0, max_value=2)


@dataclass
class Held:
    """What a worker or a sender believes it holds."""

    key: int
    token: int


class PowerFailedError(Exception):
    """The process dies before its transaction is committed."""


class WorkMachine(RuleBasedStateMachine):
    """Three workers and three senders over one database."""

    database: ClassVar[Database]

    def __init__(self) -> None:
        super().__init__()
        with self.database.write() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))
        self.now = 1000.0
        self.jobs: dict[int, str] = {}  # state by id
        self.tokens: dict[int, int] = {}
        self.leases: dict[int, float] = {}
        self.workers: dict[int, Held] = {}
        self.late: list[Held] = []  # claims of workers that were given up, or hang
        self.rows: dict[int, str] = {}
        self.row_tokens: dict[int, int] = {}
        self.senders: dict[int, list[OutboxRow]] = {}

    # --- the clock and the outside

    @initialize()
    def begin_with_work(self) -> None:
        """Owe what one job made, and have another to do."""
        self.add_job()
        self.claim(0)
        self.finish(0, "done", fails=False)
        self.add_job()

    @rule(seconds=st.sampled_from([11.0, 61.0, 5000.0, -30.0, -1e6]))
    def move_clock(self, seconds: float) -> None:
        self.now = max(self.now + seconds, 1.0)

    @precondition(lambda self: len(self.jobs) < 4)
    @rule()
    def add_job(self) -> None:
        job_id = add_waiting_job(self.database, self.now)
        self.jobs[job_id], self.tokens[job_id] = "waiting", 0

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
        self.workers[worker] = Held(job.id, job.token)

    @rule(worker=AMONG)
    def beat(self, worker: int) -> None:
        if held := self.workers.get(worker):
            if self._try(held, lambda: extend_lease(self.database, _claim(held), self.now + LEASE_S)):
                self.leases[held.key] = self.now + LEASE_S
            else:
                del self.workers[worker]

    @rule(worker=AMONG, state=st.sampled_from(sorted(JOB_MOVES["running"])), fails=st.booleans())
    def finish(self, worker: int, state: str, fails: bool) -> None:
        held = self.workers.get(worker)
        if held is None:
            return

        def record() -> None:
            with self.database.write() as connection:
                move_claimed_job(connection, _claim(held), state, not_before=self.now + 10.0)
                if state == "done":
                    rows = [output_row(held.key, number, kind) for number, kind in enumerate(KINDS)]
                    add_outbox_rows(connection, record_outputs(connection, held.key, rows), ["pacs"], self.now)
                if fails:
                    raise PowerFailedError

        try:
            is_recorded = self._try(held, record)
        except PowerFailedError:
            self.late.append(self.workers.pop(worker))
            return
        del self.workers[worker]
        if is_recorded:
            self.jobs[held.key] = state
            self._learn_new_rows()

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
                move_claimed_job(connection, _claim(held), "failed", reason="late")

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

    @rule(number=AMONG)
    def cancel(self, number: int) -> None:
        open_jobs = sorted(key for key, state in self.jobs.items() if state in ("waiting", "running", "retry"))
        if open_jobs:
            key = open_jobs[number % len(open_jobs)]
            with self.database.write() as connection:
                cancel_job(connection, key, "cancelled by a person", self.now)
            self.jobs[key] = "failed"
            self.tokens[key] += 1

    @rule(number=AMONG)
    def owe_again(self, number: int) -> None:
        dead = sorted(key for key, state in self.rows.items() if state == "dead")
        if dead:
            key = dead[number % len(dead)]
            with self.database.write() as connection:
                retry_outbox_row(connection, key, self.now)
            self.rows[key] = "owed"

    # --- senders

    @rule(sender=AMONG, limit=st.integers(min_value=1, max_value=4), late_s=st.sampled_from([0.0, 61.0]))
    def take(self, sender: int, limit: int, late_s: float) -> None:
        self.now += late_s
        unsent = {row.id for row in self._fetch_rows() if row.state in ("owed", "retry")}
        rows = claim_outbox(self.database, due(now=self.now), limit)
        for row in rows:
            assert row.id in unsent
            assert row.token == self.row_tokens[row.id] + 1
            self.row_tokens[row.id] = row.token
            others = [one for one in self._fetch_rows() if one.job_id == row.job_id and one.id != row.id]
            if row.kind == "reg":
                assert not any(one.state in ("owed", "retry") for one in others), "it refers to what is not there"
        self.senders[sender] = rows  # what it had before is forgotten, as in a crash

    @rule(sender=AMONG, outcome=st.sampled_from(["sent", "retry", "dead"]))
    def record(self, sender: int, outcome: str) -> None:
        if not self.senders.get(sender):
            return
        row = self.senders[sender].pop(0)
        # What a destination has taken is sent, though it was given up while it was on its way.
        states = ("owed", "retry", "dead") if outcome == "sent" else ("owed", "retry")
        is_current = self.row_tokens[row.id] == row.token and self.rows[row.id] in states
        try:
            with self.database.write() as connection:
                if outcome == "sent":
                    record_sent(connection, row, self.now)
                elif outcome == "retry":
                    record_retry(connection, row, self.now + 100.0, "busy")
                else:
                    record_dead(connection, row, "refused")
        except LeaseLostError:
            assert not is_current
        else:
            assert is_current, "only who claimed a row last may say what became of it"
            self.rows[row.id] = outcome

    # --- what always holds

    @invariant()
    def the_database_is_as_the_model(self) -> None:
        with self.database.read() as connection:
            found: dict[int, Job] = {job.id: job for job in fetch_jobs(connection)}
        assert {key: job.state for key, job in found.items()} == self.jobs
        assert {key: job.token for key, job in found.items()} == self.tokens
        assert all((job.lease_until is not None) == (job.state == "running") for job in found.values())
        rows = self._fetch_rows()
        assert {row.id: row.state for row in rows} == self.rows
        assert len({(row.output_id, row.destination) for row in rows}) == len(rows)

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

    def _fetch_rows(self) -> list[OutboxRow]:
        with self.database.read() as connection:
            return fetch_outbox(connection)

    def _learn_new_rows(self) -> None:
        for row in self._fetch_rows():
            self.rows.setdefault(row.id, "owed")
            self.row_tokens.setdefault(row.id, 0)


def _claim(held: Held) -> JobClaim:
    return JobClaim(held.key, held.token)


def test_jobs_and_outbox_hold_under_any_interleaving(database: Database) -> None:
    machine = type("Machine", (WorkMachine,), {"database": database})
    limits = settings(
        max_examples=25,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        phases=[Phase.generate],  # a failure is told as it was found: to make it shorter takes many minutes
    )
    run_state_machine_as_test(machine, settings=limits)
