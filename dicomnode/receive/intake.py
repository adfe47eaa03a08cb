"""Commits index rows in groups: what comes while a commit runs shares the next one.

Flow: receive.ingest > [intake] > receive.spool, database.index_groups
Never: a thread of its own (one of those that wait writes for all); a row before its file's name is durable.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection

from dicomnode.database.engine import Database
from dicomnode.database.index import (
    Arrival,
    InstanceHeader,
    Recording,
    StoredFile,
    close_association,
    open_association,
)
from dicomnode.database.index_groups import Received, record_instances
from dicomnode.errors import StateError
from dicomnode.receive.spool import Spool


@dataclass
class Sender:
    """The other side of one association; its row is made when the first instance needs it."""

    ae_title: str
    address: str
    may_store: bool
    opened_at: float
    association_id: int | None = None
    outcomes: Counter[str] = field(default_factory=Counter)


@dataclass
class _Entry:
    """A row that waits for its commit, and what became of it."""

    sender: Sender
    header: InstanceHeader
    file: StoredFile
    now: float
    outcome: Recording | BaseException | None = None


class Intake:
    """What all associations of a node share: its spool, its index, and the turn to write.

    One association commits at a time: SQLite lets only one write anyway, and its own waiting is unfair and slow.
    """

    def __init__(self, spool: Spool, database: Database) -> None:
        self.spool = spool
        self.database = database
        self._changed = threading.Condition()
        self._is_writing = False
        self._waiting: list[_Entry] = []

    def record(self, header: InstanceHeader, file: StoredFile, sender: Sender, now: float) -> Recording:
        """Commit the row of a spooled file, and that of its association with the first; return once it is durable.

        Raises
        ------
        DatabaseUnavailableError, StorageFailedError
            If the database or the spool's folder could not be written; the row may have been committed all the same.
        Exception
            As the database raised it, if it took the other rows but not this one.
        """
        outcome = self._commit_together(_Entry(sender, header, file, now)).outcome
        if not isinstance(outcome, Recording):
            raise outcome or StateError("a row was neither committed nor refused")
        return outcome

    def close(self, sender: Sender, now: float) -> None:
        """Close the row of an association, if it has one."""
        if sender.association_id is not None:
            with self._turn(), self.database.write() as connection:
                close_association(connection, sender.association_id, now)

    def _commit_together(self, entry: _Entry) -> _Entry:
        """Wait until somebody has committed this entry, or commit it with all that wait."""
        with self._changed:
            self._waiting.append(entry)
            self._changed.wait_for(lambda: entry.outcome or not self._is_writing)
            if entry.outcome is not None:
                return entry
            self._is_writing = True
            group, self._waiting = self._waiting, []
        try:
            self._commit(group)
        finally:
            self._end_turn()
        return entry

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_writing)
            self._is_writing = True
        try:
            yield
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()

    def _commit(self, group: list[_Entry]) -> None:
        """Commit these rows, or none, and tell each entry."""
        try:
            self.spool.sync()
            with self.database.write() as connection:
                ids = [entry.sender.association_id or self._open(connection, entry.sender) for entry in group]
                outcomes = record_instances(
                    connection,
                    [
                        Received(entry.header, entry.file, Arrival(association_id, entry.sender.ae_title, entry.now))
                        for entry, association_id in zip(group, ids, strict=True)
                    ],
                )
        except BaseException as error:
            for entry in group:
                entry.outcome = error
            raise
        for entry, association_id, outcome in zip(group, ids, outcomes, strict=True):
            entry.sender.association_id, entry.outcome = association_id, outcome

    def _open(self, connection: Connection, sender: Sender) -> int:
        return open_association(
            connection,
            node=self.spool.node,
            calling_ae=sender.ae_title,
            address=sender.address,
            now=sender.opened_at,
        )
