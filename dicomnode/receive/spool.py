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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO, NamedTuple

from dicomnode.database.index import Recorded, Recording, StoredFile
from dicomnode.database.store import SUFFIX, Store, make_file_names
from dicomnode.digests import digest_data_set
from dicomnode.durable import sync_folder
from dicomnode.errors import StorageFailedError, StorageFullError
from dicomnode.logs import get_logger
from dicomnode.receive.part10 import FileMeta, Origin, encode_head

log = get_logger()

FILES = 128  # made beforehand; at 2000 instances a second half of them last longer than making the others takes
FILE_MODE = 0o640
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


class _EmptyFile(NamedTuple):
    """An open file that holds nothing yet, under a durable name."""

    path: Path
    descriptor: int

    def is_there(self) -> bool:
        """Say whether its name still leads to it: the storage root may have been moved, or somebody removed it."""
        with suppress(FileNotFoundError):
            return self.path.stat().st_ino == os.fstat(self.descriptor).st_ino
        return False


@dataclass(frozen=True)
class Spool:
    """The spool folder of this process, locked while it lives: other processes leave it alone.

    An instance is written into a file that was made, empty, and its name flushed beforehand, so that one flushed write
    makes it durable: its preamble holds what its row needs.
    """

    store: Store
    node: str
    lock: BinaryIO
    _empty: SimpleQueue[_EmptyFile] = field(default_factory=SimpleQueue)
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
        with translated(self.store.root):
            _check_room(self.store.root, len(head) + len(data), reserve_bytes)
            file = self._take_file()
            try:
                _write_durably(file.descriptor, head, data)
                if not file.is_there():
                    self.close_files()  # nor are the others that were made beforehand
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file.path))
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(file.descriptor, 0)  # wherever it is found again, it is not whole
                file.path.unlink(missing_ok=True)
                raise
            finally:
                os.close(file.descriptor)
        return StoredFile(f"{file.path.name}{SUFFIX}", meta.transfer_syntax_uid, len(data), sha256.hexdigest())

    @cached_property
    def folder(self) -> Path:
        """Where the instances are that may have no row yet; their names have no suffix there, as they may be empty."""
        return self.store.spool_folder(self.node)

    @property
    def is_short_of_files(self) -> bool:
        """Whether it is time for `make_files`."""
        return self._empty.qsize() < FILES // 2

    def make_files(self) -> None:
        """Make empty files for the instances to come, with names that survive power loss.

        Raises
        ------
        StorageFullError, StorageFailedError
            If the folder cannot be written; nothing stays behind.
        """
        with self._folders, translated(self.folder):
            made: list[_EmptyFile] = []
            try:
                for name in make_file_names(FILES - self._empty.qsize()):
                    path = self.folder / name.removesuffix(SUFFIX)
                    made.append(_EmptyFile(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)))
                sync_folder(self.folder)
            except BaseException:
                _close_all(made)
                for file in made:  # whoever tries again each second must not fill the folder
                    with suppress(OSError):
                        file.path.unlink()
                raise
            for file in made:
                self._empty.put(file)

    def close_files(self) -> None:
        """Close the files that were made beforehand; several threads may do so at once."""
        with suppress(Empty):
            while True:
                os.close(self._empty.get_nowait().descriptor)

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
                path = self.folder / file_name.removesuffix(SUFFIX)
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
        if recording.kind is Recorded.IDENTICAL and not self._is_kept(recording.file_name, file_name):
            log.error("receive.lost_file_replaced", file_name=recording.file_name)
            return self.store.instance_path(recording.file_name)
        return None

    def _is_kept(self, kept_name: str, file_name: str) -> bool:
        """Say whether an indexed file still holds what came again: the copy may be the only good one."""
        sha256 = digest_data_set(self.folder / file_name.removesuffix(SUFFIX))
        with suppress(OSError):
            return digest_data_set(self.store.find_instance(kept_name)) == sha256
        return False

    def _take_file(self) -> _EmptyFile:
        while True:
            with suppress(Empty):
                return self._empty.get_nowait()
            self.make_files()


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what the file system says into our errors."""
    try:
        yield
    except OSError as error:
        kind = StorageFullError if error.errno in _FULL else StorageFailedError
        raise kind(f"{error.filename or path}: {error.strerror}") from error


def _write_durably(descriptor: int, head: bytes, data: bytes) -> None:
    """Fill an empty file; each write returns when its bytes, and the file's length, survive power loss."""
    written, size = os.pwritev(descriptor, (head, data), 0, os.RWF_DSYNC), len(head) + len(data)
    while written < size:  # a signal, a nearly full disk, or more than the 2 GiB that one call takes
        rest = memoryview(head + data)[written:]
        written += os.pwritev(descriptor, (rest,), written, os.RWF_DSYNC)


def _close_all(files: Iterable[_EmptyFile]) -> None:
    for file in files:
        os.close(file.descriptor)


def _check_room(root: Path, needed_bytes: int, reserve_bytes: int) -> None:
    found = os.statvfs(root)
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes - needed_bytes < reserve_bytes:
        raise StorageFullError(
            f"{free_bytes} bytes are free below {root}, {needed_bytes} and the reserve of {reserve_bytes} are needed"
        )
