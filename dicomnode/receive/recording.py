"""Gives durable files their rows, many in one commit, and moves them to where the rows say.

Flow: receive.intake, receive.recovery > [recording] > receive.spool, database.index_groups
Never: a thread or a lock; a file moved before its row is committed, or thrown away although it was answered for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from dicomnode.database.engine import Database
from dicomnode.database.index import (
    Arrival,
    InstanceHeader,
    Recorded,
    Recording,
    StoredFile,
    close_association,
    find_association,
    open_association,
)
from dicomnode.database.index_groups import Received, record_instances
from dicomnode.errors import StorageFailedError, StorageFullError
from dicomnode.logs import get_logger
from dicomnode.receive.spool import Spool
from dicomnode.steps import Step, reach

log = get_logger()


@dataclass
class Sender:
    """The other side of one association; its row is made with that of its first instance."""

    ae_title: str
    address: str
    may_store: bool
    opened_at: float
    names: tuple[str, ...] = ()  # of the configured peers that it is
    association_id: int | None = None
    unrecorded: int = 0  # instances whose rows are not committed yet
    is_doubtful: bool = False  # a commit failed: it may have a row all the same
    is_closed: bool = False  # in its row
    outcomes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Entry:
    """A durable file that wants a row."""

    sender: Sender
    header: InstanceHeader
    file: StoredFile
    received_at: float
    is_answered: bool  # with Success: nobody waits for what becomes of it, and it must not be lost


@dataclass(frozen=True)
class Closing:
    """The end of an association."""

    sender: Sender
    closed_at: float


Outcome = Recording | Exception  # the latter is of this one alone: the others have their rows


def record_group(spool: Spool, database: Database, group: Sequence[Entry | Closing]) -> list[Outcome | None]:
    """Commit all rows of a group, then move its files.

    Returns
    -------
    list
        In the order of `group`: what became of an instance, or why it has no row or not its place; None for a closing.

    Raises
    ------
    DatabaseUnavailableError
        If the database could not be written; the rows may have been committed all the same.
    """
    entries = [one for one in group if isinstance(one, Entry)]
    try:
        with database.write() as connection:
            ids, recordings = _write_rows(connection, spool.node, group)
    except Exception:
        for one in group:
            one.sender.is_doubtful = True
        raise
    for one in group:
        one.sender.association_id = ids[id(one.sender)]
        one.sender.is_closed |= isinstance(one, Closing)
    reach(Step.INDEXED, rows=len(entries))
    outcomes = iter(_put_in_place(spool, entries, recordings))
    return [next(outcomes) if isinstance(one, Entry) else None for one in group]


def _write_rows(
    connection: Connection, node: str, group: Sequence[Entry | Closing]
) -> tuple[dict[int, int], Sequence[Recording | Exception]]:
    """Write the rows of a group; return that of each sender, and what became of each instance."""
    ids = _open_associations(connection, node, [one.sender for one in group])
    recordings = record_instances(
        connection,
        [
            Received(one.header, one.file, Arrival(ids[id(one.sender)], one.sender.ae_title, one.received_at))
            for one in group
            if isinstance(one, Entry)
        ],
    )
    for one in group:
        if isinstance(one, Closing):
            close_association(connection, ids[id(one.sender)], one.closed_at)
    return ids, recordings


def _open_associations(connection: Connection, node: str, senders: Sequence[Sender]) -> dict[int, int]:
    """Return the row of each sender by its identity, making those that are missing."""
    ids: dict[int, int] = {}
    for sender in senders:
        if id(sender) not in ids:
            ids[id(sender)] = sender.association_id or _open_association(connection, node, sender)
    return ids


def _open_association(connection: Connection, node: str, sender: Sender) -> int:
    """Return the row of a sender, making it, unless a commit made it whose answer was lost: that one must be closed."""
    ae_title, address, opened_at = sender.ae_title, sender.address, sender.opened_at
    made = find_association(connection, node, ae_title, address, opened_at) if sender.is_doubtful else None
    return made or open_association(connection, node=node, calling_ae=ae_title, address=address, now=opened_at)


def _put_in_place(
    spool: Spool, entries: Sequence[Entry], recordings: Sequence[Recording | Exception]
) -> Sequence[Outcome]:
    for entry, recording in zip(entries, recordings, strict=True):
        if entry.is_answered:
            _tell_surprise(entry.file.file_name, recording)
    both = zip(entries, recordings, strict=True)
    try:
        spool.put_in_place([(entry.file.file_name, found) for entry, found in both if isinstance(found, Recording)])
    except (StorageFullError, StorageFailedError) as error:
        log.error("receive.not_moved", why=str(error))
        return [error if isinstance(found, Recording) else found for found in recordings]
    reach(Step.PLACED, files=len(entries))
    return recordings


def _tell_surprise(file_name: str, found: Outcome) -> None:
    """Log what was not to be expected of an instance that was new when it was answered."""
    if isinstance(found, Exception):
        log.error("receive.unindexed", file_name=file_name, why=type(found).__name__)
    elif found.kind in (Recorded.CONFLICT, Recorded.KNOWN_CONFLICT):  # another node was faster by milliseconds
        log.error("receive.conflict_after_success", file_name=file_name)
