"""Compares every file that is kept with the SHA-256 it was written with, a little at a time, over and over.

Flow: database/damages > [integrity] > the file system; findings > database/damages > jobs, cli
Never: a file removed: one that is not what was received is put aside, so that it can come again; one that cannot be
read stays, for that may be over the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from dicomnode.database.damages import (
    StoredInstance,
    StoredOutput,
    clear_damages,
    fetch_damaged,
    fetch_instances_after,
    fetch_outputs_after,
    record_damage,
)
from dicomnode.database.engine import Database
from dicomnode.database.marks import fetch_mark, set_mark
from dicomnode.database.store import FoundDamage, Store, find_instance_damage, find_output_damage
from dicomnode.durable import sync_folder
from dicomnode.errors import StorageFailedError
from dicomnode.logs import get_logger

log = get_logger()

DAY_S = 86400.0
FILES_AT_ONCE = 256
DAMAGED = "damaged"  # the mark: which damage was looked at last
OVER = -1  # the position of a mark whose pass is at its end


@dataclass(frozen=True)
class _Pass:
    """One kind of file: how the next are fetched, and what is wrong with one."""

    mark: str
    fetch: Callable[[Connection, int, int], Sequence[StoredInstance | StoredOutput]]


PASSES = (_Pass("scan_instances", fetch_instances_after), _Pass("scan_outputs", fetch_outputs_after))


def scan(database: Database, store: Store, budget_bytes: int, every_days: float, now: float) -> int:
    """Check the next files, those that were not checked for longest, and return how many.

    Parameters
    ----------
    database : Database
        Keeps how far this has come, so that a start goes on where the last process was.
    store : Store
    budget_bytes : int
        It ends after the file that goes beyond.
    every_days : float
        From the begin of one pass over all files to that of the next.
    now : float
        UTC epoch seconds.

    Raises
    ------
    StorageFailedError
        If the storage root is gone: nothing is recorded.
    """
    checked = 0
    for one in PASSES:
        files, used_bytes = _scan_next(one, database, store, budget_bytes, (every_days, now))
        checked += files
        budget_bytes -= used_bytes
        if budget_bytes <= 0:
            break
    return checked


def check_damaged(database: Database, store: Store, is_over: Callable[[], bool] = lambda: False) -> int:
    """Look again at what was damaged; return how many are as they should be: they came again, or were put back.

    It ends before the next file once `is_over` says so; the next call goes on from there.
    """
    with database.read() as connection:
        mark, damaged = fetch_mark(connection, DAMAGED), fetch_damaged(connection)
    seen = 0 if mark is None else mark.position
    mended: list[StoredInstance | StoredOutput] = []
    for damage_id in sorted(damaged, key=lambda one: (one <= seen, one)):
        if not _find_damage(store, damaged[damage_id]):
            mended.append(damaged[damage_id])
        seen = damage_id
        if is_over():
            break
    instance_ids = [file.id for file in mended if isinstance(file, StoredInstance)]
    output_ids = [file.id for file in mended if isinstance(file, StoredOutput)]
    if damaged:
        with database.write() as connection:
            set_mark(connection, DAMAGED, position=seen)
            clear_damages(connection, instance_ids=instance_ids, output_ids=output_ids)
    if mended:
        log.info("housekeeping.mended", instances=len(instance_ids), outputs=len(output_ids))
    return len(mended)


def _scan_next(
    one: _Pass, database: Database, store: Store, budget_bytes: int, pace: tuple[float, float]
) -> tuple[int, int]:
    """Check the next files of a pass; return how many, and their bytes."""
    every_days, now = pace
    with database.read() as connection:
        mark = fetch_mark(connection, one.mark)
        begins = mark is None or (mark.position == OVER and not 0 <= now - mark.at < every_days * DAY_S)
        if mark is not None and mark.position == OVER and not begins:
            return 0, 0
        position = 0 if mark is None or begins else mark.position
        stored = one.fetch(connection, position, FILES_AT_ONCE)
    used_bytes, checked = 0, []
    damaged: dict[int, FoundDamage] = {}
    for file in stored:
        if used_bytes >= budget_bytes:
            break
        if what := _find_damage(store, file):
            damaged[file.id] = what
        checked.append(file)
        used_bytes += _measure(store, file)
    with database.write() as connection:
        for file in checked:
            if file.id in damaged:
                _record(connection, file, damaged[file.id].text, now)
        values = {"at": now} if begins else {}
        set_mark(connection, one.mark, position=checked[-1].id if checked else OVER, **values)
    for file in checked:
        if file.id in damaged and damaged[file.id].is_changed and isinstance(file, StoredInstance):
            _put_aside(store, file)
    return len(checked), used_bytes


def _find_damage(store: Store, file: StoredInstance | StoredOutput) -> FoundDamage | None:
    """Return what is wrong with a file, seen twice: a read may fail once; None where nothing is."""
    found = None
    for _ in range(2):
        if isinstance(file, StoredInstance):
            found = find_instance_damage(store, file.file_name, file.sha256)
        else:
            found = find_output_damage(store, file.path, file.sha256)
        if found is None:
            break
    return found


def _measure(store: Store, file: StoredInstance | StoredOutput) -> int:
    path = store.find_instance(file.file_name) if isinstance(file, StoredInstance) else store.root / file.path
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _record(connection: Connection, file: StoredInstance | StoredOutput, what: str, now: float) -> None:
    key = {"instance_id": file.id} if isinstance(file, StoredInstance) else {"output_id": file.id}
    if record_damage(connection, what, now, **key):
        log.error("housekeeping.damaged", what=what)


def _put_aside(store: Store, file: StoredInstance) -> None:
    """Move a damaged file out of the way: when its instance is sent again, that takes its place."""
    path = store.instance_path(file.file_name)
    try:
        path.rename(store.damaged_path(file.file_name))
        sync_folder(path.parent)
        sync_folder(store.damaged_path(file.file_name).parent)
    except FileNotFoundError:
        pass  # it is missing, or went meanwhile
    except OSError as error:
        raise StorageFailedError(f"{path}: cannot be moved: {error.strerror}") from error
