"""Writes what came in so that one flush makes it survive power loss, and moves it to where its row says.

Flow: receive.ingest, receive.intake > [spool] > receive.part10, database.store
Never: a file without preamble and our File Meta; a change of the sender's bytes; a name that is not durable yet;
a row (`intake` commits those).
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO

from dicomnode.database.index import Recorded, Recording, StoredFile
from dicomnode.database.store import Store, make_file_names, sync_folder
from dicomnode.errors import StorageFailedError, StorageFullError
from dicomnode.logs import get_logger
from dicomnode.receive.part10 import FileMeta, Origin, encode_head

log = get_logger()

NAMES = 256  # made beforehand; at 2000 instances a second half of them last longer than making the others takes
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Spool:
    """The spool folder of this process, locked while it lives: other processes leave it alone.

    An instance is written into a file whose name was made, empty, and flushed beforehand, so that one `fdatasync`
    makes it durable: its preamble holds what its row needs.
    """

    store: Store
    node: str
    lock: BinaryIO
    _names: SimpleQueue[str] = field(default_factory=SimpleQueue)
    # Held while names in folders change: a flush of the spool's folder must not forget a name that the store's is still
    # to learn.
    _folders: threading.Lock = field(default_factory=threading.Lock)

    def write(self, meta: FileMeta, origin: Origin, data: bytes, reserve_bytes: int) -> StoredFile:
        """Write an instance into the spool; when this returns, a crash or power loss leads to its row.

        Raises
        ------
        StorageFullError
            If the disk is full, or would have less than `reserve_bytes` left; nothing stays behind.
        StorageFailedError
            If the disk cannot be written for another reason; nothing stays behind.
        """
        sha256 = hashlib.sha256(data)
        head = encode_head(meta, origin, len(data), sha256.digest())
        with translated(self.folder):
            _check_room(self.store.root, len(head) + len(data), reserve_bytes)
            file_name = self._take_name()
            path = self.store.spool_path(self.node, file_name)
            try:
                _write_durably(path, head, data)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        return StoredFile(file_name, meta.transfer_syntax_uid, len(data), sha256.hexdigest())

    @property
    def folder(self) -> Path:
        """Where the instances are that may have no row yet."""
        return self.store.spool_folder(self.node)

    @property
    def is_short_of_names(self) -> bool:
        """Whether it is time for `make_names`."""
        return self._names.qsize() < NAMES // 2

    def make_names(self) -> None:
        """Make empty files for the instances to come, with names that survive power loss.

        Raises
        ------
        StorageFullError, StorageFailedError
            If the folder cannot be written.
        """
        with self._folders, translated(self.folder):
            names = make_file_names(NAMES - self._names.qsize())
            for name in names:
                self.store.spool_path(self.node, name).open("xb").close()
            sync_folder(self.folder)
            for name in names:
                self._names.put(name)

    def put_in_place(self, recordings: Iterable[tuple[str, Recording]]) -> None:
        """Move each file, given by its name, to where its committed row says, durably, or remove it where it has none.

        Raises
        ------
        StorageFullError, StorageFailedError
            If one cannot be moved; it stays, and is found, in the spool, and the others are moved.
        """
        failed: OSError | None = None
        changed: set[Path] = set()
        with self._folders, translated(self.store.root):
            for file_name, recording in recordings:
                path = self.store.spool_path(self.node, file_name)
                try:
                    if place := self._find_place(file_name, recording):
                        path.rename(place)
                        changed.add(place.parent)
                    else:
                        path.unlink()
                except OSError as error:
                    failed = error
            for folder in changed:
                sync_folder(folder)
            if failed is not None:
                raise failed

    def _find_place(self, file_name: str, recording: Recording) -> Path | None:
        # Under our own file's name the row is ours: an earlier commit of it succeeded although its answer was lost.
        if recording.kind is Recorded.NEW or recording.file_name == file_name:
            return self.store.instance_path(file_name)
        if recording.kind is Recorded.CONFLICT:
            return self.store.conflict_path(file_name)
        if recording.kind is Recorded.IDENTICAL and not self.store.find_instance(recording.file_name).exists():
            log.error("receive.lost_file_replaced", file_name=recording.file_name)
            return self.store.instance_path(recording.file_name)
        return None

    def _take_name(self) -> str:
        while True:
            try:
                return self._names.get_nowait()
            except Empty:
                self.make_names()


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what the file system says into our errors."""
    try:
        yield
    except OSError as error:
        kind = StorageFullError if error.errno in _FULL else StorageFailedError
        raise kind(f"{error.filename or path}: {error.strerror}") from error


def _write_durably(path: Path, head: bytes, data: bytes) -> None:
    """Fill an empty file and flush it."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        written = os.writev(descriptor, (head, data))
        # A write may take fewer bytes (a signal, a nearly full disk).
        rest = memoryview(head + data)[written:] if written < len(head) + len(data) else memoryview(b"")
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _check_room(root: Path, needed_bytes: int, reserve_bytes: int) -> None:
    found = os.statvfs(root)
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes - needed_bytes < reserve_bytes:
        raise StorageFullError(
            f"{free_bytes} bytes are free below {root}, {needed_bytes} and the reserve of {reserve_bytes} are needed"
        )
