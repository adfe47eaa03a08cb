"""Compares a backup with its manifest, or a node's files with its rows, and names each difference.

Flow: cli > [verify] > backup/manifest, database/damages
Never: a write; a file taken for whole by its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from dicomnode.backup.manifest import FILES, FileEntry, Manifest, read_files, read_manifest, read_rows
from dicomnode.database.damages import StoredInstance, StoredOutput, fetch_instances_after, fetch_outputs_after
from dicomnode.database.deletions import find_doomed, find_unnamed
from dicomnode.database.engine import Database
from dicomnode.database.store import FoundDamage, Store, find_instance_damage, find_output_damage
from dicomnode.digests import digest_file

FILES_AT_ONCE = 500

Stored = TypeVar("Stored", StoredInstance, StoredOutput)


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
    received, of_instances = _verify_rows(store, database, fetch_instances_after, _look_at_instance)
    made, of_outputs = _verify_rows(store, database, fetch_outputs_after, _look_at_output)
    return received + made, [*of_instances, *of_outputs, *_find_unnamed(store, database)]


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


def _verify_rows(
    store: Store,
    database: Database,
    fetch: Callable[[Connection, int, int], Sequence[Stored]],
    look: Callable[[Store, Stored], Difference | None],
) -> tuple[int, list[Difference]]:
    """Look at the file of every row, some at a time; return how many there are, and what is wrong."""
    count, differences, position = 0, list[Difference](), 0
    while True:
        with database.read() as connection:
            stored = fetch(connection, position, FILES_AT_ONCE)
        if not stored:
            return count, differences
        differences += [found for one in stored if (found := look(store, one))]
        count += len(stored)
        position = stored[-1].id


def _look_at_instance(store: Store, one: StoredInstance) -> Difference | None:
    path = str(store.instance_path(one.file_name).relative_to(store.root))
    return _say(path, find_instance_damage(store, one.file_name, one.sha256))


def _look_at_output(store: Store, one: StoredOutput) -> Difference | None:
    return _say(one.path, find_output_damage(store, one.path, one.sha256))


def _say(path: str, found: FoundDamage | None) -> Difference | None:
    return None if found is None else Difference(path, found.text.partition(" ")[2])


def _find_unnamed(store: Store, database: Database) -> Iterator[Difference]:
    for folder in [*sorted((store.root / "store").glob("*")), store.root / "conflicts"]:
        names = sorted(path.name for path in folder.glob("*.dcm"))
        with database.read() as connection:
            unnamed = find_unnamed(connection, names) if names else set()
            below = {str((folder / name).relative_to(store.root)) for name in unnamed}
            doomed = find_doomed(connection, sorted(below)) if below else set()
        for path in sorted(below - doomed):
            yield Difference(path, "no row names it")
