"""Makes a backup of a node while it runs: all rows as of one moment, and every file that they name.

Flow: cli, housekeeping > [make] > backup/manifest
Never: a file that the rows name and the backup lacks without a word; a copy that anybody else may read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dicomnode.backup.manifest import (
    FILES,
    FILES_LIST,
    ROWS,
    FileEntry,
    Manifest,
    TableEntry,
    read_files,
    read_manifest,
    write_manifest,
)
from dicomnode.database.engine import Database
from dicomnode.database.marks import BACKUP_LEASE_S, hold_files
from dicomnode.database.revision import check_revision
from dicomnode.database.snapshots import TABLES, fetch_rows
from dicomnode.database.store import Store
from dicomnode.digests import PIECE_BYTES, digest_data_set
from dicomnode.errors import FileDamagedError, StorageFailedError, TransientError, UsageError
from dicomnode.outputs.compression import find_copy_path

FOLDER_MODE = 0o700
DISTRIBUTION = "dicomnode-fusion"

Clock = Callable[[], float]
Keep = Callable[[], None]


@dataclass(frozen=True)
class Wanted:
    """A file to copy: where it stands below the storage root, how to find it now, and what its SHA-256 must be."""

    path: str
    find: Callable[[], Path]
    sha256: str = ""  # empty where no row knows
    is_data_set: bool = False  # the SHA-256 is of the data set alone

    def find_damage(self, copy: Path, sha256: str) -> str:
        """Return what is wrong with a copy that has this SHA-256; empty where nothing is."""
        found = digest_data_set(copy) if self.is_data_set else sha256
        return f"its SHA-256 is {found}, {self.sha256} was written" if self.sha256 not in ("", found) else ""


@dataclass(frozen=True)
class Made:
    """A finished backup, and the files that were damaged or missing when it was made."""

    folder: Path
    manifest: Manifest
    damaged: tuple[FileEntry, ...]


def make_backup(
    store: Store,
    database: Database,
    folder: Path,
    clock: Clock,
    previous: Path | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> Made:
    """Copy everything a node holds into a new folder that only this user can read.

    Parameters
    ----------
    store : Store
    database : Database
        May be written meanwhile: the rows are those of one moment, and no file is deleted until this returns.
    folder : Path
        Must not be there, or be empty.
    clock : callable
        UTC epoch seconds.
    previous : Path, optional
        An earlier backup on the same disk: what is the same is not copied again, both name one file.
    is_over : callable
        Whether the process is to end, asked before each file.

    Raises
    ------
    TransientError
        If it is over; what was written is removed.
    UsageError
        If the folder holds something, or the database is of another version of the software.
    StorageFailedError
        If something cannot be read or written; what was written is removed.
    """
    keep = _hold(database, clock, is_over)
    with _new_folder(folder):
        keep()
        # Before the rows: what is whole here has its row by then, or is copied as it lies.
        unrecorded = _list_unrecorded(store)
        made_at = clock()
        with database.snapshot() as connection:
            revision = check_revision(connection)
            (folder / ROWS).mkdir()
            tables = {name: _write_rows(folder, name, fetch_rows(connection, name)) for name in TABLES}
        wanted = [*_list_wanted(store, folder), *unrecorded.values()]
        named = {Path(one.path).name for one in wanted if one.sha256}
        wanted = [one for one in wanted if one.sha256 or f"{Path(one.path).name.removesuffix('.dcm')}.dcm" not in named]
        entries = list(_copy_files(folder, wanted, _read_previous(previous), keep))
        files_sha256 = _write_lines(folder / FILES_LIST, (asdict(entry) for entry in entries)).sha256
        os.sync()
        size_bytes = sum(entry.size_bytes for entry in entries)
        manifest = Manifest(version(DISTRIBUTION), revision, made_at, tables, len(entries), size_bytes, files_sha256)
        write_manifest(folder, manifest)
        os.sync()
    return Made(folder, manifest, tuple(entry for entry in entries if entry.damage))


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make a folder for this user alone; what is in it goes again when the backup fails."""
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        folder.chmod(FOLDER_MODE)
        if any(folder.iterdir()):
            raise UsageError(f"{folder}: holds something already; name a folder that is empty or not there")
    except OSError as error:
        raise StorageFailedError(f"{folder}: {error.strerror}; a folder that can be written is needed") from error
    try:
        yield
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StorageFailedError(f"{error.filename or folder}: {error.strerror}; no backup was made") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _hold(database: Database, clock: Clock, is_over: Callable[[], bool]) -> Keep:
    """Return a function that keeps every file from being deleted, to be called now and then."""
    held_at: float | None = None

    def keep() -> None:
        nonlocal held_at
        if is_over():
            raise TransientError("the node stops")
        now = clock()
        if held_at is None or not 0 <= now - held_at < BACKUP_LEASE_S / 4:
            held_at = now
            with database.write() as connection:
                hold_files(connection, now)

    return keep


def _list_unrecorded(store: Store) -> dict[str, Wanted]:
    """Return the received files that may have no row yet, by the name they will have in the store."""
    found: dict[str, Wanted] = {}
    for node in store.list_spools():
        for name, path in store.list_spool(node).items():
            if _size_of(path):
                find = _finder(store, path, name)
                found[name] = Wanted(str(path.relative_to(store.root)), find)
    for path in sorted(store.fetched_root.glob("*/*.dcm")):
        found[str(path)] = Wanted(str(path.relative_to(store.root)), partial(Path, path))
    return found


def _finder(store: Store, path: Path, name: str) -> Callable[[], Path]:
    """Return a function that says where a file of a spool is by now."""

    def find() -> Path:
        places = (path, store.instance_path(name), store.conflict_path(name))
        return next((place for place in places if place.exists()), path)

    return find


def _list_wanted(store: Store, folder: Path) -> Iterator[Wanted]:
    """Return the files that the rows which were written name."""
    for row in _read_lines(folder, "instances"):
        name = row["file_name"]
        path = str(store.instance_path(name).relative_to(store.root))
        yield Wanted(path, partial(store.find_instance, name), row["sha256"], is_data_set=True)
    for row in _read_lines(folder, "conflicts"):
        conflict = store.conflict_path(row["file_name"])
        below = str(conflict.relative_to(store.root))
        yield Wanted(below, partial(Path, conflict), row["sha256"], is_data_set=True)
    for row in _read_lines(folder, "outputs"):
        if row["deleted_at"] is None:
            output = store.root / row["path"]
            yield Wanted(row["path"], partial(Path, output), row["sha256"])
            for compression, sha256 in (row["copies"] or {}).items():
                copy = find_copy_path(output, compression)
                yield Wanted(str(copy.relative_to(store.root)), partial(Path, copy), sha256)


def _copy_files(
    folder: Path, wanted: Iterable[Wanted], previous: Mapping[str, tuple[Path, FileEntry]], keep: Keep
) -> Iterator[FileEntry]:
    for one in wanted:
        keep()
        target = folder / FILES / one.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if one.path in previous and one.sha256 and _link(previous[one.path], one, target):
            yield previous[one.path][1]
            continue
        try:
            size_bytes, sha256 = _copy(one.find(), target)
        except (FileNotFoundError, FileDamagedError) as error:  # one bad sector leaves the others to be copied
            target.unlink(missing_ok=True)
            is_missing = isinstance(error, FileNotFoundError)
            if one.sha256 or not is_missing:  # else it was received meanwhile, or turned out to be nothing
                yield FileEntry(one.path, 0, "", "it is missing" if is_missing else str(error))
            continue
        yield FileEntry(one.path, size_bytes, sha256, one.find_damage(target, sha256))


def _copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file; return the bytes and the SHA-256 of what was read; raises OSError, and `FileDamagedError`."""
    digest, size_bytes = hashlib.sha256(), 0
    with target.open("wb") as written:
        for piece in _read_pieces(source):
            digest.update(piece)
            written.write(piece)
            size_bytes += len(piece)
    return size_bytes, digest.hexdigest()


def _read_pieces(source: Path) -> Iterator[bytes]:
    """Yield a file's bytes; raises FileNotFoundError, and `FileDamagedError` where it cannot be read."""
    try:
        with source.open("rb", buffering=0) as read:
            while piece := read.read(PIECE_BYTES):
                yield piece
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileDamagedError(f"it cannot be read: {error.strerror}") from error


def _link(before: tuple[Path, FileEntry], one: Wanted, target: Path) -> bool:
    """Let a backup share a file with the one before; False where it cannot, or the file is another."""
    path, entry = before
    if entry.damage or not (one.is_data_set or entry.sha256 == one.sha256):
        return False
    try:
        target.hardlink_to(path)
    except OSError:  # another disk, or one that knows no links
        return False
    return True


def _read_previous(previous: Path | None) -> dict[str, tuple[Path, FileEntry]]:
    if previous is None:
        return {}
    entries = read_files(previous, read_manifest(previous))
    return {entry.path: (previous / FILES / entry.path, entry) for entry in entries}


def _write_rows(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> TableEntry:
    return _write_lines(folder / ROWS / f"{name}.jsonl", rows)


def _write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> TableEntry:
    digest, count = hashlib.sha256(), 0
    with path.open("wb") as file:
        for value in values:
            line = json.dumps(value).encode("ascii") + b"\n"
            digest.update(line)
            file.write(line)
            count += 1
    return TableEntry(count, digest.hexdigest())


def _read_lines(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    with (folder / ROWS / f"{name}.jsonl").open(encoding="ascii") as lines:
        for line in lines:
            yield json.loads(line)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it was moved since
        return 1
