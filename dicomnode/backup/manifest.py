"""What a backup holds, as it says of itself: rows by table, files with their SHA-256.

Flow: backup/make > [manifest] > backup/restore, backup/verify
Never: a path that leads out of the folder; a backup taken for whole that was not finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dicomnode.digests import digest_file
from dicomnode.errors import UsageError

FORMAT = 1
MANIFEST, FILES_LIST, ROWS, FILES = "manifest.json", "files.jsonl", "rows", "files"


@dataclass(frozen=True)
class TableEntry:
    """The rows of one table: how many, and the SHA-256 of the file that holds them."""

    count: int
    sha256: str


@dataclass(frozen=True)
class FileEntry:
    """A file below the storage root; `damage` says what was wrong with it already when it was copied."""

    path: str
    size_bytes: int
    sha256: str
    damage: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a finished backup holds; `made_at` in UTC epoch seconds is the moment of its rows."""

    software: str
    revision: str
    made_at: float
    tables: Mapping[str, TableEntry]
    file_count: int
    size_bytes: int
    files_sha256: str  # of the list


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write what makes a backup a finished one; raises OSError."""
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="ascii")


def read_manifest(folder: Path) -> Manifest:
    """Read what a backup holds.

    Raises
    ------
    UsageError
        If the folder is no finished backup, or of a later format.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="ascii"))
        if found.pop("format") != FORMAT:
            raise UsageError(f"{path}: its format is of a later version of dicomnode, {FORMAT} is needed")
        tables = {str(name): TableEntry(**entry) for name, entry in found.pop("tables").items()}
        return Manifest(tables=tables, **found)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; a folder that `dicomnode backup` finished is needed") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path}: it is no manifest of a backup; it was changed, or the disk lost some of it"
        ) from error


def read_files(folder: Path, manifest: Manifest) -> Iterator[FileEntry]:
    """Read which files a backup holds; raises `UsageError` where the list is not the one that was written."""
    path = folder / FILES_LIST
    _check_digest(path, manifest.files_sha256)
    with path.open(encoding="ascii") as lines:
        for line in lines:
            entry = FileEntry(**json.loads(line))
            parts = PurePosixPath(entry.path)
            if parts.is_absolute() or ".." in parts.parts:
                raise UsageError(f"{path}: it names a path outside the storage root")
            yield entry


def read_rows(folder: Path, name: str, entry: TableEntry) -> Iterator[dict[str, Any]]:
    """Read the rows of a table; raises `UsageError` where they are not those that were written."""
    path = folder / ROWS / f"{name}.jsonl"
    _check_digest(path, entry.sha256)
    with path.open(encoding="ascii") as lines:
        for line in lines:
            yield json.loads(line)


def _check_digest(path: Path, sha256: str) -> None:
    try:
        found = digest_file(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; the backup is not whole") from error
    if found != sha256:
        raise UsageError(f"{path}: its SHA-256 is {found}, {sha256} was written; the backup is damaged")
