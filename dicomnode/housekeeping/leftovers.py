"""Finds files that no row names: what was received gets its row again, what was made and is of no use goes.

Flow: the file system > [leftovers] > a spool of nobody's > receive; database/deletions
Never: a received file thrown away: it was answered with Success once.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from pathlib import Path

from dicomnode.database.deletions import NewDeletion, add_deletion, find_doomed, find_unnamed
from dicomnode.database.engine import Database
from dicomnode.database.jobs import fetch_job, fetch_outputs
from dicomnode.database.marks import are_files_held
from dicomnode.database.store import SUFFIX, Store
from dicomnode.durable import sync_folder
from dicomnode.errors import StateError, StorageFailedError
from dicomnode.logs import get_logger
from dicomnode.outputs.compression import SYNTAXES, find_copy_path

log = get_logger()

OLD_S = 86400.0  # younger files may be about to get their row
NAMES_AT_ONCE = 500  # in one statement
_FILE_NAME = re.compile(r"[0-9a-f]{32}\.dcm")


def list_folders(store: Store) -> list[Path]:
    """Return every folder that is looked at, in one order: those of the store, the conflicts, those of the jobs.

    Raises
    ------
    StorageFailedError
        If the storage root is gone.
    """
    stored = [store.root / "store" / f"{number:02x}" for number in range(256)]
    try:
        made = sorted(path for path in (store.root / "outputs").iterdir() if path.name.isdecimal() and path.is_dir())
    except OSError as error:
        raise StorageFailedError(f"storage root {store.root}: {error.strerror}; is its disk mounted?") from error
    return [*stored, store.root / "conflicts", *made]


def clear_folder(database: Database, store: Store, folder: Path, now: float) -> int:
    """Look for files without a row in one folder, and return how many were found.

    Raises
    ------
    StorageFailedError
        If a file cannot be moved; it is found again.
    """
    try:
        names = [path.name for path in folder.iterdir() if path.stat().st_mtime < now - OLD_S]
    except FileNotFoundError:
        return 0  # it went while we looked
    if folder.parent == store.root / "outputs":
        return _doom_unused(database, store, folder, names, now) if names else 0
    received = [name for name in names if _FILE_NAME.fullmatch(name)]
    found = 0
    for start in range(0, len(received), NAMES_AT_ONCE):
        found += _give_back(database, store, folder, received[start : start + NAMES_AT_ONCE])
    return found


def _give_back(database: Database, store: Store, folder: Path, names: list[str]) -> int:
    """Move files that no row names into a spool of nobody's, as if a process had died before it wrote their rows."""
    with database.read() as connection:
        unnamed = sorted(find_unnamed(connection, names))
        doomed = find_doomed(connection, [str((folder / name).relative_to(store.root)) for name in unnamed])
    paths = [folder / name for name in unnamed]
    paths = [path for path in paths if str(path.relative_to(store.root)) not in doomed]
    if not paths:
        return 0
    node = uuid.uuid4().hex
    try:
        store.spool_folder(node).mkdir(mode=0o750)
        for path in paths:
            path.rename(store.spool_folder(node) / path.name.removesuffix(SUFFIX))
        for changed in (store.spool_folder(node), store.spool_root, folder):
            sync_folder(changed)
    except OSError as error:
        raise StorageFailedError(f"{error.filename}: cannot be moved: {error.strerror}") from error
    log.warning("housekeeping.unnamed", folder=folder.name, files=len(paths))
    return len(paths)


def _doom_unused(database: Database, store: Store, folder: Path, names: Iterable[str], now: float) -> int:
    """Let go what a job made and no output names: it died before it recorded them, or another had them already."""
    with database.write() as connection:
        try:
            job = fetch_job(connection, int(folder.name))
        except StateError:
            return 0  # of another database: not ours to remove
        # One that has not ended has no such instant; one that a person lets run again loses it.
        if job.finished_at is None or job.finished_at > now - OLD_S or are_files_held(connection, now):
            return 0
        made = {store.root / one.path for one in fetch_outputs(connection, job.id) if one.deleted_at is None}
        used = made | {find_copy_path(path, compression) for path in made for compression in SYNTAXES}
        paths = [folder / name for name in names if folder / name not in used]
        below = [str(path.relative_to(store.root)) for path in paths]
        doomed = find_doomed(connection, below)
        unused = [path for path in below if path not in doomed]
        if unused:
            size_bytes = sum((store.root / path).stat().st_size for path in unused)
            reason = "no output names these files"
            add_deletion(connection, NewDeletion("leftovers", str(job.id), reason, size_bytes), unused, now)
            log.info("housekeeping.deleted", kind="leftovers", subject=str(job.id), files=len(unused), reason=reason)
    return len(unused)
