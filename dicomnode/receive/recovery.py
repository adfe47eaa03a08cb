"""Puts files and rows in step after a crash, and gives a process its spool, before the port opens.

Flow: receive.scp > [recovery] > receive.part10, receive.header, receive.recording
Never: a look at what is stored already (the time is in proportion to what was open when a process died); a whole file
thrown away before it has its row; a file without one kept that is not whole (it was never answered with Success).
"""

from __future__ import annotations

import errno
import fcntl
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dicomnode.database.engine import Database
from dicomnode.database.index import (
    Recorded,
    Recording,
    StoredFile,
    close_lost_associations,
    find_association,
    is_conflict,
    is_indexed,
)
from dicomnode.database.store import Store
from dicomnode.durable import sync_folder
from dicomnode.errors import PermanentError
from dicomnode.logs import get_logger
from dicomnode.receive.header import read_header
from dicomnode.receive.part10 import read_whole
from dicomnode.receive.recording import Entry, Sender, record_group
from dicomnode.receive.spool import Spool, translated
from dicomnode.settings_limits import NESTING_DEPTH_MAX

log = get_logger()

GROUP = 256  # files whose rows share a commit
_LOCK_NAME = "lock"
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


def open_spool(store: Store, database: Database, now: float) -> Spool:
    """Make the folders, finish what dead processes left, and give this process its own locked spool.

    Raises
    ------
    StorageFailedError
        If the storage root cannot be written.
    DatabaseUnavailableError
        If the database does not answer; the files stay for the next start.
    """
    store.make_folders()
    node = uuid.uuid4().hex
    with _start_lock(store):
        _settle_dead(store, database)
        _close_lost_associations(store, database, now)
        store.spool_folder(node).mkdir(mode=0o750)
        sync_folder(store.spool_root)
        lock_of_ours = (store.spool_folder(node) / _LOCK_NAME).open("wb")
        try_lock(lock_of_ours)
        return Spool(store, node, lock_of_ours)


def settle_dead_spools(store: Store, database: Database, now: float) -> None:
    """Finish what dead processes left, or what was put into a spool of nobody's, while this one lives; raises alike."""
    with _start_lock(store):
        _settle_dead(store, database)
        _close_lost_associations(store, database, now)


def close_spool(spool: Spool, database: Database, now: float) -> None:
    """Give a spool up: settle what is left, close this process's associations, remove the folder; raises alike."""
    with spool.lock, _start_lock(spool.store):  # without a storage root the lock is let go, too
        _settle(spool, database)
        spool.lock.close()  # this process is none of the living any more
        _close_lost_associations(spool.store, database, now)


@contextmanager
def _start_lock(store: Store) -> Iterator[None]:
    """Let one process at a time open or close its spool below a storage root; what the disk refuses is translated."""
    with translated(store.spool_root), (store.spool_root / _LOCK_NAME).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _settle_dead(store: Store, database: Database) -> None:
    for node in store.list_spools():
        if _is_settled(store, node):
            continue
        with (store.spool_folder(node) / _LOCK_NAME).open("ab") as lock:
            if try_lock(lock):  # the process that had it is dead
                _settle(Spool(store, node, lock), database)


def _is_settled(store: Store, node: str) -> bool:
    """Say whether nothing of ours is left in a spool folder, so that what keeps it there was told of before."""
    folder = store.spool_folder(node)
    is_kept = any(folder.iterdir()) and not (folder / _LOCK_NAME).exists()
    return is_kept and not store.list_spool(node)


def try_lock(lock: BinaryIO) -> bool:
    """Take a lock that ends with the process, however it ends (worker processes are spawned, and inherit none)."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(store: Store, node: str) -> bool:
    """Say whether the process that a spool belongs to lives; that of a dead one may hold what a person must see."""
    if _is_settled(store, node):
        return False
    with (store.spool_folder(node) / _LOCK_NAME).open("ab") as lock:
        return not try_lock(lock)


def _settle(spool: Spool, database: Database) -> None:
    """Settle every file of a spool; remove the folder, unless a file has to stay for a person, or is none of ours."""
    store = spool.store
    paths = store.list_spool(spool.node)
    for unused in [name for name, path in paths.items() if path.stat().st_size == 0]:
        paths.pop(unused).unlink()
    left = _move_recorded(spool, database, paths)
    senders: dict[tuple[str, str, float], Sender] = {}
    discarded = 0
    for start in range(0, len(left), GROUP):
        group = left[start : start + GROUP]
        entries = [entry for name in group if (entry := _read_entry(name, paths[name], senders))]
        discarded += sum(not paths[name].exists() for name in group)
        _find_associations(spool, database, senders.values())
        outcomes = record_group(spool, database, entries)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, Exception):
                log.error("receive.unindexed", file_name=entry.file.file_name, why=type(outcome).__name__)
    if discarded:
        log.warning("receive.discarded", files=discarded)
    if len(left) > discarded:
        log.info("receive.recovered", files=len(left) - discarded)
    if not store.list_spool(spool.node):
        _remove(spool)


def _remove(spool: Spool) -> None:
    spool.lock.close()  # NFS keeps an open file that is unlinked, under another name
    (spool.folder / _LOCK_NAME).unlink()
    try:
        spool.folder.rmdir()
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise
        # Without our lock in it the folder is settled (`_is_settled`): this is said once.
        log.warning("receive.spool_kept", folder=str(spool.folder), why="it holds files that are none of this node's")


def _move_recorded(spool: Spool, database: Database, names: Iterable[str]) -> list[str]:
    """Finish the moves of files that rows name; return the others."""
    recorded: dict[str, Recording] = {}
    with database.read() as connection:
        for name in names:
            if is_indexed(connection, name):
                recorded[name] = Recording(Recorded.NEW, name)
            elif is_conflict(connection, name):
                recorded[name] = Recording(Recorded.CONFLICT)
    spool.put_in_place(recorded.items())
    return [name for name in names if name not in recorded]


def _read_entry(file_name: str, path: Path, senders: dict[tuple[str, str, float], Sender]) -> Entry | None:
    """Return what a file without a row is, or remove it: it is not whole, so it was never answered with Success.

    One that cannot be read stays for a person: it must not keep the node from starting.
    """
    try:
        with path.open("rb") as file:
            whole = read_whole(file)
    except OSError as error:
        log.error("receive.unindexed", file_name=file_name, why=error.strerror)
        return None
    if whole is None:
        path.unlink()
        return None
    try:
        header = read_header(whole.data, whole.transfer_syntax_uid, NESTING_DEPTH_MAX)
    except PermanentError as error:  # it was understood when it came
        log.error("receive.unindexed", file_name=file_name, why=str(error))
        return None
    origin = whole.origin
    key = (whole.calling_ae, origin.address, origin.opened_at)
    sender = senders.setdefault(key, Sender(*key[:2], may_store=True, opened_at=origin.opened_at))
    stored = StoredFile(file_name, whole.transfer_syntax_uid, len(whole.data), whole.sha256)
    return Entry(sender, header, stored, origin.received_at, is_answered=False)


def _find_associations(spool: Spool, database: Database, senders: Iterable[Sender]) -> None:
    """Give senders whose row was committed before the crash that row."""
    with database.read() as connection:
        for sender in senders:
            if sender.association_id is None:
                sender.association_id = find_association(
                    connection, spool.node, sender.ae_title, sender.address, sender.opened_at
                )


def _close_lost_associations(store: Store, database: Database, now: float) -> None:
    living = [node for node in store.list_spools() if _is_locked(store, node)]
    with database.write() as connection:
        close_lost_associations(connection, living, now)
