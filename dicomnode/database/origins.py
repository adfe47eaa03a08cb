"""What was made of a series and where it went, and the way back from a result to its sources: for corrections.

Flow: pairs, jobs, outbox > [origins] > cli
Never: a write; an identity. It answers from rows alone, so that it stays true when files are gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from dicomnode.database.pairs import fetch_pairs_of_series
from dicomnode.database.schema import conflicts, instances, jobs, outbox, outputs, pairs, series


@dataclass(frozen=True)
class Made:
    """One series of results, or what stands in the place of one: a pair or a job that has made nothing yet."""

    pair_id: int
    pair_state: str
    other_series_uid: str
    job_id: int | None = None
    job_state: str = ""
    verdict: str = ""
    kind: str = ""
    series_uid: str = ""
    instance_count: int = 0
    sent_to: tuple[str, ...] = ()  # destination and state, as `pacs sent 176`


@dataclass(frozen=True)
class Origin:
    """What a series of results was made from."""

    series_uid: str
    kind: str
    job_id: int
    pair_id: int
    fixed_series_uid: str
    moving_series_uid: str


def fetch_made(connection: Connection, series_id: int) -> list[Made]:
    """Return everything that was made of a series, or is being made, oldest first."""
    made = []
    for pair in fetch_pairs_of_series(connection, series_id):
        is_fixed = pair.fixed_series_id == series_id
        other = pair.moving_series_uid if is_fixed else pair.fixed_series_uid
        of_pair = select(jobs).where(jobs.c.pair_id == pair.id).order_by(jobs.c.id)
        rows = connection.execute(of_pair).all()
        made += [] if rows else [Made(pair.id, pair.state, other)]
        for job in rows:
            common = (pair.id, pair.state, other, job.id, job.state, job.verdict)
            results = [
                Made(*common, kind, series_uid, count, _fetch_sent(connection, job.id, series_uid))
                for kind, series_uid, count in _fetch_results(connection, job.id)
            ]
            made += results or [Made(*common)]
    return made


def count_conflicts(connection: Connection, series_id: int) -> int:
    """Return how many instances of a series came again with other content, as after a correction at the source."""
    of_series = select(instances.c.sop_instance_uid).where(instances.c.series_id == series_id)
    came_again = select(func.count(conflicts.c.sop_instance_uid.distinct()))
    return connection.execute(came_again.where(conflicts.c.sop_instance_uid.in_(of_series))).scalar_one()


def fetch_origin(connection: Connection, series_uid: str) -> Origin | None:
    """Return what a series of results was made from, or None where this node made none with this UID."""
    fixed, moving = series.alias("fixed"), series.alias("moving")
    query = (
        select(
            outputs.c.series_uid,
            outputs.c.kind,
            outputs.c.job_id,
            pairs.c.id.label("pair_id"),
            fixed.c.series_uid.label("fixed_series_uid"),
            moving.c.series_uid.label("moving_series_uid"),
        )
        .join(jobs, jobs.c.id == outputs.c.job_id)
        .join(pairs, pairs.c.id == jobs.c.pair_id)
        .join(fixed, fixed.c.id == pairs.c.fixed_series_id)
        .join(moving, moving.c.id == pairs.c.moving_series_id)
        .where(outputs.c.series_uid == series_uid)
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else Origin(**row)


def _fetch_results(connection: Connection, job_id: int) -> list[tuple[str, str, int]]:
    query = (
        select(outputs.c.kind, outputs.c.series_uid, func.count(outputs.c.id))
        .where(outputs.c.job_id == job_id)
        .group_by(outputs.c.kind, outputs.c.series_uid)
        .order_by(func.min(outputs.c.id))
    )
    return [(row[0], row[1], row[2]) for row in connection.execute(query)]


def _fetch_sent(connection: Connection, job_id: int, series_uid: str) -> tuple[str, ...]:
    query = (
        select(outbox.c.destination, outbox.c.state, func.count(outbox.c.id))
        .join(outputs, outputs.c.id == outbox.c.output_id)
        .where(outputs.c.job_id == job_id, outputs.c.series_uid == series_uid)
        .group_by(outbox.c.destination, outbox.c.state)
        .order_by(outbox.c.destination, outbox.c.state)
    )
    return tuple(f"{destination} {state} {count}" for destination, state, count in connection.execute(query))
