"""Makes a backup by itself when one is due, and keeps as many as the settings say.

Flow: housekeeping > [schedule] > backup/make
Never: a folder removed that is not one of its own, or the last backup that is whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from dicomnode.backup.make import make_backup
from dicomnode.backup.manifest import MANIFEST
from dicomnode.database.engine import Database
from dicomnode.database.marks import claim_turn, set_mark
from dicomnode.database.store import Store
from dicomnode.errors import DicomnodeError
from dicomnode.logs import get_logger
from dicomnode.settings import Settings

log = get_logger()

TURN = "backup_turn"  # the mark: when the last one was begun
AGAIN_AFTER_S = 600.0  # one that failed
_NAME = re.compile(r"\d{8}T\d{6}Z")


def make_due_backup(settings: Settings, database: Database, clock: Callable[[], float]) -> bool:
    """Make a backup where one is due, and remove those beyond `backup.keep`; a failure is logged, and tried again."""
    if not settings.backup.folder:
        return False
    period_s, now = settings.backup.every_hours * 3600.0, clock()
    with database.write() as connection:
        if not claim_turn(connection, TURN, now, period_s):
            return False
    folder = Path(settings.backup.folder)
    try:
        whole = list_backups(folder)
        target = folder / datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
        made = make_backup(Store(settings.node.storage_root), database, target, clock, whole[-1] if whole else None)
    except DicomnodeError as error:
        log.error("backup.failed", reason=str(error))
        with database.write() as connection:
            set_mark(connection, TURN, at=now - period_s + AGAIN_AFTER_S)
        return False
    manifest = made.manifest
    log.info("backup.made", folder=str(target), files=manifest.file_count, size_bytes=manifest.size_bytes)
    if made.damaged:
        log.error("backup.damaged", folder=str(target), files=len(made.damaged))
    for old in list_backups(folder)[: -settings.backup.keep]:
        shutil.rmtree(old, ignore_errors=True)
    return True


def list_backups(folder: Path) -> list[Path]:
    """Return the finished backups that were made here by themselves, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file())
