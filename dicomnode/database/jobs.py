"""The queue of registrations: who may work on a job now, and what became of it.

Flow: pairing > [jobs] > jobs/service, worker > outbox; cli reads
Never: two workers that both believe they hold one job: a claim gives a lease and a fencing token that rises with each
claim, and every write by a worker names its token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, case, delete, func, insert, select, tuple_, update

from dicomnode.database.engine import Database
from dicomnode.database.schema import damages, jobs, outbox, outputs, pairs, series
from dicomnode.errors import LeaseLostError, StateError

# `running` goes back to `waiting` when the node stops; `waiting` and `retry` end as `done` when late slices made a
# newer pair of the same two series.
JOB_MOVES: Mapping[str, frozenset[str]] = {
    "waiting": frozenset({"running", "done"}),
    "running": frozenset({"done", "retry", "failed", "review", "waiting"}),
    "retry": frozenset({"running", "done"}),
    "done": frozenset(),
    "failed": frozenset(),
    "review": frozenset(),
}
# Only a person leaves `failed` or `review`, and may cancel what has not ended.
JOB_MOVES_BY_PERSON: Mapping[str, frozenset[str]] = {
    "waiting": frozenset({"failed"}),
    "running": frozenset({"failed"}),
    "retry": frozenset({"failed"}),
    "failed": frozenset({"waiting", "done"}),
    "review": frozenset({"done"}),
}
CLAIMABLE = ("waiting", "retry")


@dataclass(frozen=True)
class ClaimOrder:
    """Which of the jobs that are due is taken first.

    The one of highest priority, summed over the AE titles that sent its two series (0 where one is not named); of these
    the one that was tried least, so that one which always fails holds up no other; of these the oldest, or the newest.
    """

    first: Literal["oldest", "newest"] = "oldest"
    priorities: Mapping[str, int] = field(default_factory=dict)
    # A wait beyond the longest there can be was set by a clock that has been put back, and is over.
    wait_at_most_s: float = math.inf


OLDEST_FIRST = ClaimOrder()


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
    profile: str
    reprocess_of: int | None


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
    returned: int
    copies: Mapping[str, str] | None
    deleted_at: float | None
    committed_at: float | None


def add_job(
    connection: Connection, pair_id: int, now: float, *, profile: str = "", reprocess_of: int | None = None
) -> int:
    """Add a job for a pair, in `waiting`, and return its id; `profile` instead of the settings', after another job."""
    values = {
        "pair_id": pair_id,
        "state": "waiting",
        "not_before": now,
        "created_at": now,
        "profile": profile,
        "reprocess_of": reprocess_of,
    }
    key = connection.execute(insert(jobs).values(values)).inserted_primary_key
    assert key is not None  # noqa: S101  a single-row insert always has one
    return int(key[0])


def claim_job(database: Database, now: float, lease_s: float, order: ClaimOrder = OLDEST_FIRST) -> Job | None:
    """Take the first job that is due, or None: it is `running`, one attempt more, with a new token and a lease."""
    need_not_wait = (jobs.c.not_before <= now) | (jobs.c.not_before > now + order.wait_at_most_s)
    is_due = jobs.c.state.in_(CLAIMABLE) & need_not_wait
    by_age: list[ColumnElement[Any]] = [jobs.c.created_at, jobs.c.id]
    if order.first == "newest":
        by_age = [column.desc() for column in by_age]
    first = select(jobs.c.id).where(is_due).order_by(*_by_priority(order.priorities), jobs.c.attempts, *by_age).limit(1)
    with database.write() as connection:
        # FOR UPDATE SKIP LOCKED on PostgreSQL; SQLite holds the only write lock since BEGIN IMMEDIATE.
        job_id = connection.execute(first.with_for_update(skip_locked=True)).scalar_one_or_none()
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


def fetch_expired_claims(database: Database, now: float, lease_s: float) -> list[Job]:
    """Return the running jobs whose lease is over: their worker died, hangs, or lost the database.

    One that is far longer than `lease_s` was set by a clock that has been put back, and is over as well.
    """
    with database.read() as connection:
        is_over = (jobs.c.lease_until < now) | (jobs.c.lease_until > now + 2 * lease_s)
        is_expired = (jobs.c.state == "running") & is_over
        return [_job(row) for row in connection.execute(select(jobs).where(is_expired).order_by(jobs.c.id)).mappings()]


def fetch_lost_claims(database: Database, claims: Iterable[JobClaim]) -> set[int]:
    """Return the ids of the jobs that these claims do not hold any more: they ended, or are another worker's."""
    wanted = list(claims)
    holds = tuple_(jobs.c.id, jobs.c.token).in_([(claim.job_id, claim.token) for claim in wanted])
    with database.read() as connection:
        held = connection.execute(select(jobs.c.id).where(holds, jobs.c.state == "running")).scalars()
        return {claim.job_id for claim in wanted} - set(held)


def cancel_job(connection: Connection, job_id: int, reason: str, now: float) -> None:
    """End a job that waits or runs as `failed`, on a person's word; its worker, if it has one, cannot write any more.

    Raises
    ------
    StateError
        If there is no such job, or it has ended; nothing changed.
    """
    move_job_by_person(
        connection, job_id, "failed", reason=reason, token=jobs.c.token + 1, lease_until=None, finished_at=now
    )


def move_job_by_person(connection: Connection, job_id: int, state: str, **values: Any) -> Job:
    """Move a job as `JOB_MOVES_BY_PERSON` allows, on a person's word, and return it as it is then.

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


def reject_jobs(connection: Connection, pair_id: int, now: float) -> None:
    """Say of every job of a pair that a person rejected what it made; none of them waits for a person any more."""
    of_pair = update(jobs).where(jobs.c.pair_id == pair_id)
    waiting = [old for old, new in JOB_MOVES_BY_PERSON.items() if "done" in new]
    connection.execute(of_pair.where(jobs.c.state.in_(waiting)).values(state="done", finished_at=now))
    connection.execute(of_pair.values(decision="rejected"))


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


def fetch_jobs_of_pair(connection: Connection, pair_id: int) -> list[Job]:
    """Return the jobs of a pair, oldest first."""
    query = select(jobs).where(jobs.c.pair_id == pair_id).order_by(jobs.c.id)
    return [_job(row) for row in connection.execute(query).mappings()]


def fetch_latest_job(connection: Connection, pair_id: int) -> Job | None:
    """Return the newest job of a pair, or None."""
    query = select(jobs).where(jobs.c.pair_id == pair_id).order_by(jobs.c.id.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return None if row is None else _job(row)


def record_outputs(connection: Connection, job_id: int, rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """Record what a job made, in the order given, and return the ids.

    The same inputs make the same instances. One that is recorded already keeps its row, and that its job, once it was
    owed to somebody and its file is good; else the row is this job's now, with the file it wrote.
    """
    ids = []
    for row in rows:
        known = connection.execute(select(outputs.c.id).where(outputs.c.sop_instance_uid == row["sop_instance_uid"]))
        output_id: int | None = known.scalar_one_or_none()
        if output_id is None:
            statement = insert(outputs).values(job_id=job_id, **row).returning(outputs.c.id)
            output_id = connection.execute(statement).scalar_one()
        else:
            is_owed = select(outbox.c.id).where(outbox.c.output_id == output_id).exists()
            is_damaged = select(damages.c.id).where(damages.c.output_id == output_id).exists()
            needs_file = is_damaged | outputs.c.deleted_at.is_not(None)
            taken = update(outputs).where(outputs.c.id == output_id, ~is_owed | needs_file)
            if connection.execute(taken.values(job_id=job_id, deleted_at=None, **row)).rowcount:
                connection.execute(delete(damages).where(damages.c.output_id == output_id))
        ids.append(output_id)
    return ids


def fetch_outputs(connection: Connection, job_id: int) -> list[JobOutput]:
    """Return what a job made, in the order it was made."""
    rows = connection.execute(select(outputs).where(outputs.c.job_id == job_id).order_by(outputs.c.id)).mappings()
    return [JobOutput(**row) for row in rows]


def fetch_successors(connection: Connection, job_id: int) -> list[int]:
    """Return the ids of the jobs that a person had run after this one, oldest first."""
    return list(
        connection.execute(select(jobs.c.id).where(jobs.c.reprocess_of == job_id).order_by(jobs.c.id)).scalars()
    )


def _by_priority(priorities: Mapping[str, int]) -> list[ColumnElement[Any]]:
    """Order by what those who sent a job's two series are given, together."""
    if not priorities:
        return []
    of_pair = series.c.id.in_([pairs.c.fixed_series_id, pairs.c.moving_series_id])
    urgency = case(dict(priorities), value=series.c.calling_ae, else_=0)
    query = select(func.sum(urgency)).join_from(pairs, series, of_pair).where(pairs.c.id == jobs.c.pair_id)
    return [query.scalar_subquery().desc()]


def _write_as_holder(connection: Connection, claim: JobClaim, values: Mapping[str, Any]) -> None:
    is_held = (jobs.c.id == claim.job_id) & (jobs.c.token == claim.token) & (jobs.c.state == "running")
    if connection.execute(update(jobs).where(is_held).values(**values)).rowcount == 0:
        raise LeaseLostError(f"job {claim.job_id}: token {claim.token} does not hold it any more")


def _job(row: RowMapping) -> Job:
    return Job(**row)
