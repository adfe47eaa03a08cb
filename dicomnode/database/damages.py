"""Files that do not hold what their rows say, until they do again.

Flow: jobs, send, housekeeping > [damages] > schema; cli reads
Never: a file; a row of the index changed: what was received, and when, stays true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, or_, select

from dicomnode.database.index import insert_new
from dicomnode.database.schema import damages, instances, outputs, series


@dataclass(frozen=True)
class StoredInstance:
    """An indexed instance and the SHA-256 that its data set must have."""

    id: int
    file_name: str
    sha256: str


@dataclass(frozen=True)
class StoredOutput:
    """An output and the SHA-256 that its file must have; `path` below the storage root."""

    id: int
    job_id: int
    path: str
    sha256: str


@dataclass(frozen=True)
class Damage:
    """A file that is not what it was; `of` names the series received, or the job that made it."""

    of: str
    file: str
    reason: str
    found_at: float


def fetch_instances_after(connection: Connection, position: int, limit: int) -> list[StoredInstance]:
    """Return the next instances by id, those after `position`."""
    query = select(instances.c.id, instances.c.file_name, instances.c.sha256).where(instances.c.id > position)
    return [StoredInstance(**row) for row in connection.execute(query.order_by(instances.c.id).limit(limit)).mappings()]


def fetch_outputs_after(connection: Connection, position: int, limit: int) -> list[StoredOutput]:
    """Return the next outputs by id, those after `position` whose files are kept."""
    query = select(outputs.c.id, outputs.c.job_id, outputs.c.path, outputs.c.sha256).where(outputs.c.id > position)
    query = query.where(outputs.c.deleted_at.is_(None)).order_by(outputs.c.id).limit(limit)
    return [StoredOutput(**row) for row in connection.execute(query).mappings()]


def fetch_series_instances(connection: Connection, series_ids: Iterable[int]) -> list[StoredInstance]:
    """Return the instances of these series."""
    query = select(instances.c.id, instances.c.file_name, instances.c.sha256)
    query = query.where(instances.c.series_id.in_(list(series_ids))).order_by(instances.c.id)
    return [StoredInstance(**row) for row in connection.execute(query).mappings()]


def fetch_damaged(connection: Connection) -> dict[int, StoredInstance | StoredOutput]:
    """Return the files that were last found damaged, by the id of what was found."""
    received = select(damages.c.id.label("damage_id"), instances.c.id, instances.c.file_name, instances.c.sha256)
    received = received.join(instances, instances.c.id == damages.c.instance_id)
    made = select(damages.c.id.label("damage_id"), outputs.c.id, outputs.c.job_id, outputs.c.path, outputs.c.sha256)
    made = made.join(outputs, outputs.c.id == damages.c.output_id)
    found: dict[int, StoredInstance | StoredOutput] = {}
    for query, kind in ((received, StoredInstance), (made, StoredOutput)):
        for damage_id, *values in connection.execute(query):
            found[damage_id] = kind(*values)
    return found


def record_damage(
    connection: Connection, reason: str, now: float, *, instance_id: int | None = None, output_id: int | None = None
) -> bool:
    """Record that a file is damaged; return whether that is news. One whose row is gone meanwhile is none."""
    column, key = (outputs.c.id, output_id) if instance_id is None else (instances.c.id, instance_id)
    if connection.execute(select(column).where(column == key)).first() is None:
        return False
    values = {"instance_id": instance_id, "output_id": output_id, "reason": reason, "found_at": now}
    new = insert_new(connection.dialect.name, damages).values(values)
    return connection.execute(new.on_conflict_do_nothing().returning(damages.c.id)).first() is not None


def clear_damages(connection: Connection, *, instance_ids: Sequence[int] = (), output_ids: Sequence[int] = ()) -> int:
    """Record that files are as they should be, or gone for good; return how many were damaged."""
    of_these = or_(damages.c.instance_id.in_(instance_ids), damages.c.output_id.in_(output_ids))
    return connection.execute(delete(damages).where(of_these)).rowcount


def fetch_damages(connection: Connection) -> list[Damage]:
    """Return every file that is damaged, oldest first."""
    of_series = (
        select(series.c.series_uid, instances.c.file_name, damages.c.reason, damages.c.found_at)
        .join(instances, instances.c.id == damages.c.instance_id)
        .join(series, series.c.id == instances.c.series_id)
    )
    of_jobs = select(outputs.c.job_id, outputs.c.path, damages.c.reason, damages.c.found_at).join(
        outputs, outputs.c.id == damages.c.output_id
    )
    found = [Damage(f"series {row[0]}", row[1], row[2], row[3]) for row in connection.execute(of_series)]
    found += [Damage(f"job {row[0]}", row[1], row[2], row[3]) for row in connection.execute(of_jobs)]
    return sorted(found, key=lambda damage: damage.found_at)
