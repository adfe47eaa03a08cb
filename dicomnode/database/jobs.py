"""The queue of registrations: who may work on a job now, and what became of it.

Flow: pairing > [jobs] > jobs/service, worker > outbox; cli reads
Never: two workers that both believe they hold one job: a claim gives a lease and a fencing token that rises with each
claim, and every write by a worker names its token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from dicomnode.database.engine import Database
from dicomnode.database.schema import jobs, outputs
from dicomnode.errors import LeaseLostError, StateError

# DESIGN section 5. `running` goes back to `waiting` when the node stops; `waiting` and `retry` end as `done` when late
# slices made a newer pair of the same two series.
JOB_MOVES: Mapping[str, frozenset[str]] = {
    "waiting": frozenset({"running", "done"}),
    "running": frozenset({"done", "retry", "failed", "review", "waiting"}),
    "retry": frozenset({"running", "done"}),
    "done": frozenset(),
    "failed": frozenset(),
    "review": frozenset(),
}
# Only a person leaves `failed` or `review`.
JOB_MOVES_BY_PERSON: Mapping[str, frozenset[str]] = {
    "failed": frozenset({"waiting"}),
    "review": frozenset({"done"}),
}
CLAIMABLE = ("waiting", "retry")


@dataclass(frozen=True)
class Job:
    """A registration to run, running, or run; instants in UTC epoch seconds."""

    id: int
    pair_id: int
    state: str
    reason: str
    attempts: int
    token: int
    lease_until: float | None
    not_before: float
    stage: str
    percent: int
    verdict: str
    decision: str
    result: Mapping[str, Any] | None
    created_at: float
    finished_at: float | None


@dataclass(frozen=True)
class JobClaim:
    """The right to write to a job, as long as nobody claimed it after."""

    job_id: int
    token: int


@dataclass(frozen=True)
class JobOutput:
    """An instance that a job made; `path` stands below the storage root."""

    id: int
    job_id: int
    kind: str
    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    transfer_syntax_uid: str
    path: str
    size_bytes: int
    sha256: str


def add_job(connection: Connection, pair_id: int, now: float) -> int:
    """Add a job for a pair, in `waiting`, and return its id."""
    values = {"pair_id": pair_id, "state": "waiting", "not_before": now, "created_at": now}
    key = connection.execute(insert(jobs).values(values)).inserted_primary_key
    assert key is not None  # noqa: S101  a single-row insert always has one
    return int(key[0])


def claim_job(database: Database, now: float, lease_s: float) -> Job | None:
    """Take the oldest job that is due, or None: it is `running`, one attempt more, with a new token and a lease."""
    is_due = jobs.c.state.in_(CLAIMABLE) & (jobs.c.not_before <= now)
    oldest = select(jobs.c.id).where(is_due).order_by(jobs.c.created_at, jobs.c.id).limit(1)
    with database.write() as connection:
        # FOR UPDATE SKIP LOCKED on PostgreSQL; SQLite holds the only write lock since BEGIN IMMEDIATE.
        job_id = connection.execute(oldest.with_for_update(skip_locked=True)).scalar_one_or_none()
        if job_id is None:
            return None
        taken = (
            update(jobs)
            .where(jobs.c.id == job_id)
            .values(
                state="running",
                reason="",
                attempts=jobs.c.attempts + 1,
                token=jobs.c.token + 1,
                lease_until=now + lease_s,
                stage="",
                percent=0,
            )
            .returning(jobs)
        )
        return _job(connection.execute(taken).mappings().one())


def extend_lease(database: Database, claim: JobClaim, lease_until: float) -> None:
    """Keep a running job.

    Raises
    ------
    LeaseLostError
        If another worker claimed the job, or it is not running any more; nothing changed.
    """
    with database.write() as connection:
        _write_as_holder(connection, claim, {"lease_until": lease_until})


def record_progress(database: Database, claim: JobClaim, stage: str, percent: int) -> None:
    """Say how far a running job is; raises `LeaseLostError` as `extend_lease` does."""
    with database.write() as connection:
        _write_as_holder(connection, claim, {"stage": stage, "percent": percent})


def move_claimed_job(connection: Connection, claim: JobClaim, state: str, **values: Any) -> None:
    """Move a running job to another state and give its lease up; `values` are further columns of `jobs`.

    Raises
    ------
    LeaseLostError
        If another worker claimed the job, or it is not running any more; nothing changed.
    """
    if state not in JOB_MOVES["running"]:
        raise StateError(f"job {claim.job_id}: running does not become {state}")
    _write_as_holder(connection, claim, {"state": state, "lease_until": None, **values})


def give_job_back(database: Database, claim: JobClaim) -> None:
    """Put a running job back to `waiting` as if it had not been claimed; raises `LeaseLostError` when it was lost."""
    with database.write() as connection:
        move_claimed_job(connection, claim, "waiting", attempts=jobs.c.attempts - 1, stage="", percent=0)


def fetch_expired_claims(database: Database, now: float) -> list[Job]:
    """Return the running jobs whose lease is over: their worker died, hangs, or lost the database."""
    with database.read() as connection:
        is_expired = (jobs.c.state == "running") & (jobs.c.lease_until < now)
        return [_job(row) for row in connection.execute(select(jobs).where(is_expired).order_by(jobs.c.id)).mappings()]


def move_job_by_person(connection: Connection, job_id: int, state: str, **values: Any) -> Job:
    """Move a job out of `failed` or `review`, on a person's word, and return it as it is then.

    Raises
    ------
    StateError
        If there is no such job, or its state does not allow the move; nothing changed.
    """
    job = fetch_job(connection, job_id)
    allowed = [old for old, new in JOB_MOVES_BY_PERSON.items() if state in new]
    moved = (
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state.in_(allowed))
            .values(state=state, **values)
            .returning(jobs)
        )
        .mappings()
        .first()
    )
    if moved is None:
        raise StateError(f"job {job_id}: it is {job.state}, {' or '.join(sorted(allowed))} is needed")
    return _job(moved)


def end_superseded_jobs(connection: Connection, pair_ids: Iterable[int], reason: str, now: float) -> int:
    """End as `done`, with nothing made, the jobs of these pairs that have not started; return how many."""
    is_idle = jobs.c.pair_id.in_(list(pair_ids)) & jobs.c.state.in_(CLAIMABLE)
    values = {"state": "done", "reason": reason, "finished_at": now}
    return connection.execute(update(jobs).where(is_idle).values(values)).rowcount


def fetch_jobs(connection: Connection, states: Iterable[str] = ()) -> list[Job]:
    """Return the jobs in any of these states, or all, oldest first."""
    wanted = list(states)
    query = select(jobs).order_by(jobs.c.created_at, jobs.c.id)
    query = query.where(jobs.c.state.in_(wanted)) if wanted else query
    return [_job(row) for row in connection.execute(query).mappings()]


def fetch_job(connection: Connection, job_id: int) -> Job:
    """Return one job; raises `StateError` if there is none with this id."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().first()
    if row is None:
        raise StateError(f"job {job_id}: there is no job with this number")
    return _job(row)


def fetch_latest_job(connection: Connection, pair_id: int) -> Job | None:
    """Return the newest job of a pair, or None."""
    query = select(jobs).where(jobs.c.pair_id == pair_id).order_by(jobs.c.id.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return None if row is None else _job(row)


def record_outputs(connection: Connection, job_id: int, rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """Record what a job made, in the order given, and return the ids.

    An instance that is recorded already keeps its row: the same inputs make the same instances.
    """
    ids = []
    for row in rows:
        query = select(outputs.c.id).where(outputs.c.sop_instance_uid == row["sop_instance_uid"])
        known: int | None = connection.execute(query).scalar_one_or_none()
        if known is None:
            statement = insert(outputs).values(job_id=job_id, **row).returning(outputs.c.id)
            known = connection.execute(statement).scalar_one()
        ids.append(known)
    return ids


def fetch_outputs(connection: Connection, job_id: int) -> list[JobOutput]:
    """Return what a job made, in the order it was made."""
    rows = connection.execute(select(outputs).where(outputs.c.job_id == job_id).order_by(outputs.c.id)).mappings()
    return [JobOutput(**row) for row in rows]


def _write_as_holder(connection: Connection, claim: JobClaim, values: Mapping[str, Any]) -> None:
    is_held = (jobs.c.id == claim.job_id) & (jobs.c.token == claim.token) & (jobs.c.state == "running")
    if connection.execute(update(jobs).where(is_held).values(**values)).rowcount == 0:
        raise LeaseLostError(f"job {claim.job_id}: token {claim.token} does not hold it any more")


def _job(row: RowMapping) -> Job:
    return Job(**row)
