"""Compares a backup with its manifest, or a node's files with its rows, and names each difference.

Flow: cli > [verify] > backup/manifest, database/damages
Never: a write; a file taken for whole by its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dicomnode.backup.manifest import FILES, FileEntry, Manifest, read_files, read_manifest, read_rows
from dicomnode.database.damages import fetch_instances_after, fetch_outputs_after
from dicomnode.database.deletions import find_doomed, find_unnamed
from dicomnode.database.engine import Database
from dicomnode.database.store import Store, find_instance_damage
from dicomnode.digests import digest_file

FILES_AT_ONCE = 500


@dataclass(frozen=True)
class Difference:
    """A file that is not as it should be, and how it is."""

    path: str
    text: str


def verify_backup(folder: Path) -> tuple[Manifest, list[Difference]]:
    """Compare every row and file of a backup with its manifest.

    Raises
    ------
    UsageError
        If the folder is no finished backup, or its list of files or its rows are damaged.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.tables.items():
        for _ in read_rows(folder, name, entry):
            pass
    entries = {entry.path: entry for entry in read_files(folder, manifest)}
    root = folder / FILES
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    differences = [found for entry in entries.values() for found in _compare(root, entry)]
    return manifest, differences + [
        Difference(path, "the manifest does not name it") for path in sorted(there - entries.keys())
    ]


def verify_node(store: Store, database: Database) -> tuple[int, list[Difference]]:
    """Compare every file that a node's rows name with its SHA-256, and find those that no row names.

    Returns
    -------
    count, differences : int and list
        How many files the rows name, and what is wrong.
    """
    count, differences, position = 0, [], 0
    while True:
        with database.read() as connection:
            stored = fetch_instances_after(connection, position, FILES_AT_ONCE)
        for instance in stored:
            if what := find_instance_damage(store, instance.file_name, instance.sha256):
                path = store.instance_path(instance.file_name)
                differences.append(Difference(str(path.relative_to(store.root)), what.text.partition(" ")[2]))
        count += len(stored)
        if not stored:
            break
        position = stored[-1].id
    made, of_outputs = _verify_outputs(store, database)
    return count + made, differences + of_outputs + list(_find_unnamed(store, database))


def _compare(root: Path, entry: FileEntry) -> Iterator[Difference]:
    if entry.damage:
        yield Difference(entry.path, f"when the backup was made: {entry.damage}")
    if not entry.sha256:
        return
    try:
        found = digest_file(root / entry.path)
    except OSError as error:
        yield Difference(entry.path, f"cannot be read: {error.strerror}")
        return
    if found != entry.sha256:
        yield Difference(entry.path, f"its SHA-256 is {found}, {entry.sha256} was copied")


def _verify_outputs(store: Store, database: Database) -> tuple[int, list[Difference]]:
    count, position = 0, 0
    differences: list[Difference] = []
    while True:
        with database.read() as connection:
            stored = fetch_outputs_after(connection, position, FILES_AT_ONCE)
        if not stored:
            return count, differences
        for output in stored:
            entry = FileEntry(output.path, 0, output.sha256)
            differences += [
                Difference(one.path, one.text.replace("copied", "written")) for one in _compare(store.root, entry)
            ]
        count += len(stored)
        position = stored[-1].id


def _find_unnamed(store: Store, database: Database) -> Iterator[Difference]:
    for folder in [*sorted((store.root / "store").glob("*")), store.root / "conflicts"]:
        names = sorted(path.name for path in folder.glob("*.dcm"))
        with database.read() as connection:
            unnamed = find_unnamed(connection, names) if names else set()
            below = {str((folder / name).relative_to(store.root)) for name in unnamed}
            doomed = find_doomed(connection, sorted(below)) if below else set()
        for path in sorted(below - doomed):
            yield Difference(path, "no row names it")
