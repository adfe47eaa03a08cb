"""Makes a backup by itself when one is due, and keeps as many as the settings say.

Flow: housekeeping > [schedule] > backup/make
Never: a folder removed that is not one of its own, or the last backup that is whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from dicomnode.backup.make import make_backup
from dicomnode.backup.manifest import MANIFEST, read_files, read_manifest
from dicomnode.database.engine import Database
from dicomnode.database.marks import are_files_held, claim_turn, set_mark
from dicomnode.database.store import Store
from dicomnode.errors import DicomnodeError, StorageFailedError, UsageError
from dicomnode.logs import get_logger
from dicomnode.settings import Settings

log = get_logger()

TURN = "backup_turn"  # the mark: when the last one was begun
AGAIN_AFTER_S = 600.0  # one that failed
_NAME = re.compile(r"\d{8}T\d{6}Z")


def make_due_backup(
    settings: Settings, database: Database, clock: Callable[[], float], is_over: Callable[[], bool] = lambda: False
) -> bool:
    """Make a backup where one is due, and remove those beyond `backup.keep`; a failure is logged, and tried again.

    It ends before the next file once `is_over` says so.
    """
    if not settings.backup.folder:
        return False
    period_s, now = settings.backup.every_hours * 3600.0, clock()
    with database.write() as connection:
        if not claim_turn(connection, TURN, now, period_s):
            return False
        is_alone = not are_files_held(connection, now)
    folder = Path(settings.backup.folder)
    try:
        if is_alone:  # else one of them may be under way
            _remove_unfinished(folder)
        target = folder / datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
        store, previous = Store(settings.node.storage_root), _find_previous(folder)
        made = make_backup(store, database, target, clock, previous, is_over)
    except DicomnodeError as error:
        log.error("backup.failed", reason=str(error))
        with database.write() as connection:
            set_mark(connection, TURN, at=now - period_s + AGAIN_AFTER_S)
        return False
    manifest = made.manifest
    log.info("backup.made", folder=str(target), files=manifest.file_count, size_bytes=manifest.size_bytes)
    if made.damaged:
        log.error("backup.damaged", folder=str(target), files=len(made.damaged))
    for old in _find_old(list_backups(folder), target, settings.backup.keep):
        shutil.rmtree(old, ignore_errors=True)
    return True


def list_backups(folder: Path) -> list[Path]:
    """Return the finished backups that were made here by themselves, oldest first.

    Raises
    ------
    StorageFailedError
        If the folder cannot be read.
    """
    return [path for path in _list_own(folder) if (path / MANIFEST).is_file()]


def _find_old(made: Sequence[Path], latest: Path, keep: int) -> list[Path]:
    """Return those beyond the number to keep; what is younger than the latest is of a clock that was ahead, and old."""
    ahead = [path for path in made if path.name > latest.name]
    before = [path for path in made if path.name <= latest.name]
    return [*ahead, *before][: max(len(made) - keep, 0)]


def _list_own(folder: Path) -> list[Path]:
    """Return what was made or begun here by itself, oldest first; raises as `list_backups` does."""
    try:
        return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageFailedError(f"{folder}: {error.strerror}; a folder that can be read is needed") from error


def _remove_unfinished(folder: Path) -> None:
    """Remove what processes left that were killed meanwhile: each may be as large as the store."""
    for half in set(_list_own(folder)) - set(list_backups(folder)):
        log.warning("backup.unfinished", folder=str(half))
        shutil.rmtree(half, ignore_errors=True)


def _find_previous(folder: Path) -> Path | None:
    """Return the latest backup with which the next can share files; of those after it, say what is wrong."""
    for path in reversed(list_backups(folder)):
        try:
            for _ in read_files(path, read_manifest(path)):
                pass
        except UsageError as error:
            log.error("backup.unusable", reason=str(error))
        else:
            return path
    return None
