"""What the node still keeps files of, and all that tells whether they may go.

Flow: schema > [retained] > housekeeping/rules; cli reads
Never: a rule about what may go; a write.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, case, false, func, or_, select

from dicomnode.database.commitments import AWAITED
from dicomnode.database.index import DELETED
from dicomnode.database.queries import UNANSWERED
from dicomnode.database.schema import commitments, conflicts, instances, jobs, outbox, outputs, pairs, queries, series


@dataclass(frozen=True)
class JobFacts:
    """A job, and how many of its outbox rows are in each state; instants in UTC epoch seconds.

    Rows that are sent, and that a peer is still to commit, count as `uncommitted`.
    """

    id: int
    state: str
    decision: str
    finished_at: float | None
    outbox: Mapping[str, int]
    last_sent_at: float | None


@dataclass(frozen=True)
class PairFacts:
    """A pair and its jobs, oldest first."""

    id: int
    state: str
    jobs: tuple[JobFacts, ...]


@dataclass(frozen=True)
class SeriesFacts:
    """A received series whose instances are kept, and everything that was made of it."""

    id: int
    series_uid: str
    state: str
    last_received_at: float
    file_count: int
    size_bytes: int
    committed_at: float | None  # when a peer was last told that one of them is kept safe
    open_questions: int  # to peers, that are not answered yet
    pairs: tuple[PairFacts, ...]


@dataclass(frozen=True)
class OutputFacts:
    """A job whose outputs are kept."""

    job: JobFacts
    file_count: int
    size_bytes: int
    committed_at: float | None  # as of a series


@dataclass(frozen=True)
class ConflictFacts:
    """An instance that came again with other content."""

    id: int
    file_name: str
    size_bytes: int
    received_at: float


def fetch_series_facts(connection: Connection, series_id: int | None = None) -> list[SeriesFacts]:
    """Return the series whose instances are kept, or one of them, oldest first."""
    query = (
        select(
            series.c.id,
            series.c.series_uid,
            series.c.state,
            series.c.last_received_at,
            func.count(instances.c.id).label("file_count"),
            func.coalesce(func.sum(instances.c.size_bytes), 0).label("size_bytes"),
            func.max(instances.c.committed_at).label("committed_at"),
        )
        .outerjoin(instances, instances.c.series_id == series.c.id)
        .where(series.c.state != DELETED)
        .group_by(series.c.id)
        .order_by(series.c.last_received_at, series.c.id)
    )
    asked = select(queries.c.series_id, func.count()).where(queries.c.state.in_(UNANSWERED))
    kept = select(series.c.id).where(series.c.state != DELETED)
    if series_id is not None:
        query, kept = query.where(series.c.id == series_id), kept.where(series.c.id == series_id)
    open_questions = {row[0]: row[1] for row in connection.execute(asked.group_by(queries.c.series_id))}
    of_series = _fetch_pairs(connection, kept)
    return [
        SeriesFacts(
            **{**row, "size_bytes": int(row["size_bytes"])},
            open_questions=open_questions.get(row["id"], 0),
            pairs=tuple(of_series[row["id"]]),
        )
        for row in connection.execute(query).mappings()
    ]


def fetch_output_facts(connection: Connection, job_id: int | None = None) -> list[OutputFacts]:
    """Return the jobs whose outputs are kept, or one of them, oldest first."""
    columns = (func.count(), func.sum(outputs.c.size_bytes), func.max(outputs.c.committed_at))
    query = select(outputs.c.job_id, *columns).where(outputs.c.deleted_at.is_(None))
    query = query if job_id is None else query.where(outputs.c.job_id == job_id)
    rows = connection.execute(query.group_by(outputs.c.job_id).order_by(outputs.c.job_id)).all()
    kept = select(outputs.c.job_id).where(outputs.c.deleted_at.is_(None))
    found = {job.id: job for _, job in _fetch_jobs(connection, jobs.c.id.in_(kept))}
    # On PostgreSQL another process may have deleted some between both queries.
    return [OutputFacts(found[row[0]], row[1], int(row[2]), row[3]) for row in rows if row[0] in found]


def fetch_conflict_facts(connection: Connection) -> list[ConflictFacts]:
    """Return the instances that came again with other content, oldest first."""
    query = select(conflicts.c.id, conflicts.c.file_name, conflicts.c.size_bytes, conflicts.c.received_at)
    rows = connection.execute(query.order_by(conflicts.c.received_at, conflicts.c.id)).mappings()
    return [ConflictFacts(**row) for row in rows]


def _fetch_pairs(connection: Connection, kept: Select[Any]) -> Mapping[int, list[PairFacts]]:
    """Return the pairs of each of these series."""
    is_part = or_(pairs.c.fixed_series_id.in_(kept), pairs.c.moving_series_id.in_(kept))
    query = select(pairs.c.id, pairs.c.state, pairs.c.fixed_series_id, pairs.c.moving_series_id).where(is_part)
    rows = connection.execute(query.order_by(pairs.c.id)).all()
    of_pair: dict[int, list[JobFacts]] = defaultdict(list)
    for pair_id, job in _fetch_jobs(connection, jobs.c.pair_id.in_(select(pairs.c.id).where(is_part))):
        of_pair[pair_id].append(job)
    of_series: dict[int, list[PairFacts]] = defaultdict(list)
    for row in rows:
        pair = PairFacts(row.id, row.state, tuple(of_pair[row.id]))
        for series_id in {row.fixed_series_id, row.moving_series_id}:
            of_series[series_id].append(pair)
    return of_series


def _fetch_jobs(connection: Connection, which: Any) -> Iterable[tuple[int, JobFacts]]:
    """Return jobs with what is owed of them, and the pair of each, oldest first."""
    is_awaited = outbox.c.is_commitment_owed | func.coalesce(commitments.c.state.in_(AWAITED), false())
    state_of_row = case(((outbox.c.state == "sent") & is_awaited, "uncommitted"), else_=outbox.c.state).label("state")
    sent = (
        select(outputs.c.job_id, state_of_row, func.count(), func.max(outbox.c.sent_at))
        .join(outputs, outputs.c.id == outbox.c.output_id)
        .outerjoin(commitments, commitments.c.id == outbox.c.commitment_id)
        .where(outputs.c.job_id.in_(select(jobs.c.id).where(which)))
        .group_by(outputs.c.job_id, state_of_row)
    )
    states: dict[int, dict[str, int]] = defaultdict(dict)
    last: dict[int, float] = {}
    for job_id, state, count, sent_at in connection.execute(sent):
        states[job_id][state] = count
        last[job_id] = max(last.get(job_id, 0.0), sent_at or 0.0)
    query = select(jobs.c.pair_id, jobs.c.id, jobs.c.state, jobs.c.decision, jobs.c.finished_at).where(which)
    return [
        (
            row.pair_id,
            JobFacts(row.id, row.state, row.decision, row.finished_at, states[row.id], last.get(row.id)),
        )
        for row in connection.execute(query.order_by(jobs.c.id))
    ]
