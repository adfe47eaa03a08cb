"""Which node processes run on a storage root, what they have counted, and how to ask them to reload.

Flow: cli > [running] > errors
Never: a process id that is trusted by its number alone; a file counts only while its process holds the lock on it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dicomnode.errors import StorageFailedError, UsageError


@contextmanager
def announce_node(storage_root: Path) -> Iterator[Path]:
    """Hold a locked file below the storage root for as long as this process serves; its death releases it.

    Raises
    ------
    StorageFailedError
        If the folder or file cannot be written.
    """
    path = _folder(storage_root) / f"{os.getpid()}@{socket.gethostname()}.pid"
    file = _make_locked(path)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        _counts_path(path).unlink(missing_ok=True)
        file.close()


def find_running_nodes(storage_root: Path) -> list[int]:
    """Return the ids of this machine's processes that serve this storage root.

    Raises
    ------
    StorageFailedError
        If this user may not look there: that none runs cannot be said.
    """
    folder, ending = _folder(storage_root), f"@{socket.gethostname()}.pid"
    try:
        files = sorted(path for path in folder.iterdir() if path.name.endswith(ending))
        return [int(path.stem.partition("@")[0]) for path in files if _is_locked(path)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        where = error.filename or folder
        raise StorageFailedError(f"{where}: {error.strerror}; run this as the node's user") from error


def show_counts(announced: Path, counts: Mapping[str, int]) -> None:
    """Put what this process has counted beside its announcement; on a disk that cannot be written, leave it."""
    path = _counts_path(announced)
    with suppress(OSError):
        being_made = path.with_suffix(".new")
        being_made.write_text(json.dumps(counts), encoding="ascii")
        being_made.rename(path)


def read_counts(storage_root: Path) -> dict[int, dict[str, int]]:
    """Return what each running process has counted, by process id."""
    counts = {}
    for process_id in find_running_nodes(storage_root):
        with suppress(OSError):  # nothing yet, or it ended since we looked
            path = _folder(storage_root) / f"{process_id}@{socket.gethostname()}.json"
            counts[process_id] = dict(json.loads(path.read_text(encoding="ascii")))
    return counts


def ask_to_reload(storage_root: Path) -> list[int]:
    """Send SIGHUP to every node process that serves this storage root, and return their ids.

    Raises
    ------
    UsageError
        If one of them belongs to another user.
    """
    asked = []
    for process_id in find_running_nodes(storage_root):
        try:
            os.kill(process_id, signal.SIGHUP)
        except ProcessLookupError:
            continue  # it ended since we looked
        except PermissionError as error:
            raise UsageError(
                f"the node runs as another user (process {process_id}) and was not told; "
                "tell it with: systemctl reload dicomnode"
            ) from error
        asked.append(process_id)
    return asked


def _folder(storage_root: Path) -> Path:
    return storage_root / "run"


def _counts_path(announced: Path) -> Path:
    return announced.with_suffix(".json")


def _make_locked(path: Path) -> IO[bytes]:
    """Make the file so that others see it only once it is locked."""
    being_made = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = being_made.open("wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        being_made.rename(path)
    except OSError as error:
        raise StorageFailedError(f"{path}: {error.strerror}; the storage root must be writable") from error
    return file


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass  # it ended since we looked
    return False
