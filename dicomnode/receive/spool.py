"""Writes what came in so that it survives power loss, and puts files and rows in step after a crash.

Flow: receive.scp > [spool] > database.store, database.index
Never: a file without preamble and our File Meta; a change of the sender's bytes; Success before fsync and commit.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection

from dicomnode.database.engine import Database
from dicomnode.database.index import StoredFile, close_lost_associations, is_conflict, is_indexed
from dicomnode.database.store import Store, make_file_name, sync_folder
from dicomnode.errors import StorageFailedError, StorageFullError
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
_LOCK_NAME = "lock"


@dataclass(frozen=True)
class FileMeta:
    """What our File Meta says of an instance: PS3.10 7.1."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str

    def encode(self) -> bytes:
        """Return preamble, prefix and File Meta Information, Explicit VR Little Endian."""
        elements = b"".join(
            (
                struct.pack("<HH2sHLH", 0x0002, 0x0001, b"OB", 0, 2, 0x0100),
                _short_element(0x0002, b"UI", self.sop_class_uid),
                _short_element(0x0003, b"UI", self.sop_instance_uid),
                _short_element(0x0010, b"UI", self.transfer_syntax_uid),
                _short_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
                _short_element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
                _short_element(0x0016, b"AE", self.calling_ae),
            )
        )
        group_length = struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(elements))
        return bytes(128) + b"DICM" + group_length + elements


@dataclass(frozen=True)
class Spool:
    """The spool folder of this process, locked while it lives: other processes leave it alone."""

    store: Store
    node: str
    lock: BinaryIO

    def write(self, meta: FileMeta, data: bytes, reserve_bytes: int) -> StoredFile:
        """Write an instance durably into the spool, save for its name, which `sync` makes durable.

        Raises
        ------
        StorageFullError
            If the disk is full, or would have less than `reserve_bytes` left; nothing stays behind.
        StorageFailedError
            If the disk cannot be written for another reason; nothing stays behind.
        """
        file_name = make_file_name()
        path = self.store.spool_path(self.node, file_name)
        header = meta.encode()
        with _translated(path):
            _check_room(self.store.root, len(header) + len(data), reserve_bytes)
            try:
                with path.open("xb", buffering=0) as file:
                    _write_all(file, header)
                    _write_all(file, data)
                    os.fdatasync(file.fileno())
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        return StoredFile(file_name, meta.transfer_syntax_uid, len(data), hashlib.sha256(data).hexdigest())

    def sync(self) -> None:
        """Make the names of all files written so far survive power loss; their rows may be committed then.

        Raises
        ------
        StorageFailedError
            If the folder cannot be flushed.
        """
        folder = self.store.spool_folder(self.node)
        with _translated(folder):
            sync_folder(folder)

    def move_to_store(self, file_name: str) -> None:
        """Move an indexed file to its place; after power loss it stands in one of the two, and either is found."""
        self._move(file_name, self.store.instance_path(file_name))

    def move_to_conflicts(self, file_name: str) -> None:
        """Move a refused duplicate to its place."""
        self._move(file_name, self.store.conflict_path(file_name))

    def replace_lost(self, file_name: str, indexed_name: str) -> bool:
        """Put a file in the place of an indexed one with the same bytes, if that one is gone; say whether it was."""
        if self.store.find_instance(indexed_name).exists():
            return False
        self._move(file_name, self.store.instance_path(indexed_name))
        return True

    def remove(self, file_name: str) -> None:
        """Remove a file that no row names."""
        self.store.spool_path(self.node, file_name).unlink(missing_ok=True)

    def settle(self, database: Database, file_name: str) -> None:
        """Finish a file of which it is not known whether its row was committed."""
        with database.read() as connection, _translated(self.store.spool_path(self.node, file_name)):
            _settle(self.store, connection, self.store.spool_path(self.node, file_name))

    def close(self, database: Database, now: float) -> None:
        """Give the spool up: settle what is left, close this process's associations, remove the folder."""
        with self.lock, _start_lock(self.store), _translated(self.store.spool_folder(self.node)):
            _settle_folder(self.store, database, self.store.spool_folder(self.node))
            _close_lost_associations(self.store, database, now)

    def _move(self, file_name: str, to: Path) -> None:
        with _translated(to):
            self.store.spool_path(self.node, file_name).rename(to)


def open_spool(store: Store, database: Database, now: float) -> Spool:
    """Make the folders, finish what dead processes left, and give this process its own locked spool.

    Takes time in proportion to what was open when a process died, not to what is stored.

    Raises
    ------
    StorageFailedError
        If the storage root cannot be written.
    DatabaseUnavailableError
        If the database does not answer; the files stay for the next start.
    """
    store.make_folders()
    node = uuid.uuid4().hex
    with _start_lock(store), _translated(store.spool_root):
        for folder in sorted(path for path in store.spool_root.iterdir() if path.is_dir()):
            with (folder / _LOCK_NAME).open("ab") as lock:
                if _try_lock(lock):  # the process that had it is dead
                    _settle_folder(store, database, folder)
        _close_lost_associations(store, database, now)
        store.spool_folder(node).mkdir(mode=0o750)
        sync_folder(store.spool_root)
        lock_of_ours = (store.spool_folder(node) / _LOCK_NAME).open("wb")
        _try_lock(lock_of_ours)
        return Spool(store, node, lock_of_ours)


@contextmanager
def _start_lock(store: Store) -> Iterator[None]:
    """Let one process at a time open or close its spool below a storage root."""
    with (store.spool_root / _LOCK_NAME).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _try_lock(lock: BinaryIO) -> bool:
    """Take a lock that ends with the process, however it ends (worker processes are spawned, and inherit none)."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _settle_folder(store: Store, database: Database, folder: Path) -> None:
    """Settle every file of a spool, then remove the folder."""
    with database.read() as connection:
        for path in sorted(folder.glob("*.dcm")):
            _settle(store, connection, path)
    (folder / _LOCK_NAME).unlink()
    folder.rmdir()


def _settle(store: Store, connection: Connection, path: Path) -> None:
    """Finish the move of a file that a row names, or remove it: it was never acknowledged."""
    if is_indexed(connection, path.name):
        path.rename(store.instance_path(path.name))
    elif is_conflict(connection, path.name):
        path.rename(store.conflict_path(path.name))
    else:
        path.unlink()


def _close_lost_associations(store: Store, database: Database, now: float) -> None:
    living = [path.name for path in store.spool_root.iterdir() if path.is_dir()]
    with database.write() as connection:
        close_lost_associations(connection, living, now)


def _check_room(root: Path, needed_bytes: int, reserve_bytes: int) -> None:
    found = os.statvfs(root)
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes - needed_bytes < reserve_bytes:
        raise StorageFullError(
            f"{free_bytes} bytes are free below {root}, {needed_bytes} and the reserve of {reserve_bytes} are needed"
        )


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write every byte: an unbuffered write may take fewer (a signal, a nearly full disk)."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = StorageFullError if error.errno in _FULL else StorageFailedError
        raise kind(f"{path}: {error.strerror}") from error


def _short_element(number: int, vr: bytes, value: str) -> bytes:
    encoded = value.encode("ascii")
    if len(encoded) % 2:
        encoded += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 0x0002, number, vr, len(encoded)) + encoded
