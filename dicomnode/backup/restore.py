"""Makes a node of a backup: its files below an empty storage root, its rows in an empty database.

Flow: cli > [restore] > backup/manifest, database/snapshots
Never: anything overwritten; a node that starts on half of a backup.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dicomnode.backup.manifest import FILES, FileEntry, Manifest, read_files, read_manifest, read_rows
from dicomnode.database.engine import open_database
from dicomnode.database.migrate import migrate
from dicomnode.database.snapshots import insert_rows, is_empty, release_claims
from dicomnode.database.store import Store
from dicomnode.digests import digest_file
from dicomnode.errors import StorageFailedError, UsageError
from dicomnode.running import find_running_nodes
from dicomnode.settings import Settings


def restore_backup(source: Path, settings: Settings) -> Manifest:
    """Put everything a backup holds where the settings say, for a node to go on with.

    What ran when the backup was made waits again; what is owed is sent again, under the same UIDs.

    Raises
    ------
    UsageError
        If the source is no whole backup, or the storage root or the database is not empty; nothing was changed.
    StorageFailedError
        If a file cannot be copied. No node starts on what is there then: empty both, and restore again.
    """
    manifest = read_manifest(source)
    entries = list(read_files(source, manifest))
    for name, entry in manifest.tables.items():
        for _ in read_rows(source, name, entry):
            pass
    store = Store(settings.node.storage_root)
    _check_empty(settings)
    store.make_folders()
    store.restoring_mark.touch()
    try:
        for file in entries:
            if file.sha256:
                _copy(source / FILES / file.path, store.root / file.path, file)
        os.sync()
        _insert_all(source, manifest, settings)
        store.restoring_mark.unlink()
        os.sync()
    except OSError as error:
        raise StorageFailedError(
            f"{error.filename}: {error.strerror}; {store.root} holds half a backup: empty it, and restore again"
        ) from error
    return manifest


def _check_empty(settings: Settings) -> None:
    root = settings.node.storage_root
    if find_running_nodes(root):
        raise UsageError(f"{root}: a node runs on it; stop it, and name an empty place to restore to")
    if root.exists() and (there := sorted(path.name for path in root.iterdir() if path.name != "run")):
        raise UsageError(f"{root}: holds {there[0]} already; an empty storage root is needed to restore to")
    if not settings.database.url:
        return  # below the storage root
    database = open_database(settings.database_url)
    try:
        with database.read() as connection:
            if not is_empty(connection):
                raise UsageError("database.url: the database holds rows already; an empty one is needed to restore to")
    finally:
        database.close()


def _insert_all(source: Path, manifest: Manifest, settings: Settings) -> None:
    """Insert the rows as they were, in a schema as it was, and only then bring both to this software's."""
    migrate(settings.database_url, manifest.revision)
    database = open_database(settings.database_url)
    try:
        with database.write() as connection:
            for name, entry in manifest.tables.items():
                insert_rows(connection, name, read_rows(source, name, entry))
    finally:
        database.close()
    migrate(settings.database_url)
    database = open_database(settings.database_url)
    try:
        with database.write() as connection:
            release_claims(connection)
    finally:
        database.close()


def _copy(source: Path, target: Path, entry: FileEntry) -> None:
    target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o640)
    if (found := digest_file(target)) != entry.sha256:
        raise StorageFailedError(
            f"{entry.path}: its SHA-256 in the backup is {found}, {entry.sha256} was written; take another backup"
        )
