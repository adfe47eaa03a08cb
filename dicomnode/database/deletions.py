"""Takes rows away with a note of the files they named, and the note once the files are gone.

Flow: housekeeping > [deletions] > schema; cli reads
Never: a file; a decision about what goes. What was received, decided, made and sent stays known: only the instances of
a series go, and the files of outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from dicomnode.database.damages import clear_damages
from dicomnode.database.index import DELETED
from dicomnode.database.schema import conflicts, deletions, doomed_files, instances, outputs, series
from dicomnode.errors import StateError


@dataclass(frozen=True)
class NewDeletion:
    """What goes and why: `subject` is a series' UID, a job's id or a file's name."""

    kind: str
    subject: str
    reason: str
    size_bytes: int


@dataclass(frozen=True)
class Deletion:
    """What went, or is going while `done_at` is None; instants in UTC epoch seconds."""

    id: int
    kind: str
    subject: str
    reason: str
    files: int
    size_bytes: int
    decided_at: float
    done_at: float | None


def lock_series(connection: Connection, series_id: int) -> None:
    """Let nobody pair a series, or add to it, until the end of the transaction."""
    connection.execute(select(series.c.id).where(series.c.id == series_id).with_for_update())


def lock_outputs(connection: Connection, job_id: int) -> None:
    """Let nobody change the outputs of a job until the end of the transaction."""
    connection.execute(select(outputs.c.id).where(outputs.c.job_id == job_id).with_for_update())


def fetch_series_files(connection: Connection, series_id: int) -> list[str]:
    """Return the file names of a series' instances."""
    return list(connection.execute(select(instances.c.file_name).where(instances.c.series_id == series_id)).scalars())


def delete_series(connection: Connection, series_id: int, new: NewDeletion, paths: Iterable[str], now: float) -> None:
    """Take the instances of a series away; the series stays, as `deleted`, and what was made of it."""
    ids = list(connection.execute(select(instances.c.id).where(instances.c.series_id == series_id)).scalars())
    clear_damages(connection, instance_ids=ids)
    connection.execute(delete(instances).where(instances.c.series_id == series_id))
    values = {"state": DELETED, "reason": f"deleted: {new.reason}"}
    connection.execute(update(series).where(series.c.id == series_id).values(values))
    add_deletion(connection, new, paths, now)


def delete_outputs(connection: Connection, job_id: int, new: NewDeletion, paths: Iterable[str], now: float) -> None:
    """Say that the files of a job's outputs went; their rows stay, so that what comes back is known as ours."""
    kept = (outputs.c.job_id == job_id) & outputs.c.deleted_at.is_(None)
    clear_damages(connection, output_ids=list(connection.execute(select(outputs.c.id).where(kept)).scalars()))
    connection.execute(update(outputs).where(kept).values(deleted_at=now))
    add_deletion(connection, new, paths, now)


def delete_conflict(connection: Connection, conflict_id: int, new: NewDeletion, path: str, now: float) -> None:
    """Take an instance that came with other content away; when it comes again, it is kept apart again."""
    connection.execute(delete(conflicts).where(conflicts.c.id == conflict_id))
    add_deletion(connection, new, [path], now)


def add_deletion(connection: Connection, new: NewDeletion, paths: Iterable[str], now: float) -> None:
    """Note files, by their paths below the storage root, that are to go, and why."""
    doomed = list(paths)
    values = {**vars(new), "files": len(doomed), "decided_at": now, "done_at": None if doomed else now}
    deletion_id = connection.execute(insert(deletions).values(values).returning(deletions.c.id)).scalar_one()
    if doomed:
        connection.execute(insert(doomed_files), [{"deletion_id": deletion_id, "path": path} for path in doomed])


def fetch_doomed(connection: Connection, position: int, limit: int) -> dict[int, str]:
    """Return the next files that are to go, by id, those after `position`: those noted first."""
    query = select(doomed_files.c.id, doomed_files.c.path).where(doomed_files.c.id > position)
    return {row.id: row.path for row in connection.execute(query.order_by(doomed_files.c.id).limit(limit))}


def record_gone(connection: Connection, ids: Sequence[int], now: float) -> None:
    """Forget files that are gone for good; a deletion of which none is left is done."""
    connection.execute(delete(doomed_files).where(doomed_files.c.id.in_(ids)))
    is_left = select(doomed_files.c.id).where(doomed_files.c.deletion_id == deletions.c.id).exists()
    connection.execute(update(deletions).where(deletions.c.done_at.is_(None), ~is_left).values(done_at=now))


def find_unnamed(connection: Connection, file_names: Sequence[str]) -> set[str]:
    """Return those of these file names of the store or the conflicts that no row names, nor will take away."""
    named: set[str] = set()
    for column in (instances.c.file_name, conflicts.c.file_name):
        named.update(connection.execute(select(column).where(column.in_(file_names))).scalars())
    return set(file_names) - named


def find_doomed(connection: Connection, paths: Sequence[str]) -> set[str]:
    """Return those of these paths below the storage root that are to go already."""
    query = select(doomed_files.c.path).where(doomed_files.c.path.in_(paths))
    return set(connection.execute(query).scalars())


def fetch_deletions(connection: Connection) -> list[Deletion]:
    """Return everything that was ever deleted, oldest first."""
    return [Deletion(**row) for row in connection.execute(select(deletions).order_by(deletions.c.id)).mappings()]


def check_kept(connection: Connection, series_ids: Sequence[int], what: str) -> None:
    """Keep these series from being deleted until the end of the transaction.

    Raises
    ------
    StateError
        If one of them was; `what` names what needs it.
    """
    query = select(series.c.series_uid, series.c.state).where(series.c.id.in_(series_ids)).order_by(series.c.id)
    for row in connection.execute(query.with_for_update(key_share=True)):
        if row.state == DELETED:
            raise StateError(
                f"{what}: the instances of series {row.series_uid} were deleted; have it sent again, then ask again"
            )
