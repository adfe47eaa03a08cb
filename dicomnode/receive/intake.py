"""Lets instances be answered as soon as their files are durable: one writer gives them their rows, many in a commit.

Flow: receive.ingest > [intake] > receive.recording, database.known
Never: an answer that waits for its row, save where the UID is known already; more files without a row than a start
puts in order in seconds.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from dicomnode.database.engine import Database
from dicomnode.database.index import Recording
from dicomnode.database.known import KnownInstances
from dicomnode.errors import DatabaseUnavailableError, StorageFailedError, StorageFullError
from dicomnode.logs import get_logger
from dicomnode.receive.recording import Closing, Entry, Outcome, Sender, record_group
from dicomnode.receive.spool import Spool

log = get_logger()

LINGER_S = 0.5  # what comes meanwhile shares the commit
GROUP_MAX = 512
UNRECORDED_MAX = 4096  # files without a row
RETRY_S = 1.0  # after a commit that failed


@dataclass(frozen=True)
class _Wanted:
    """What is to be written, and for whom; nobody waits for what is answered already: that must be written."""

    what: Entry | Closing
    outcome: Future[Outcome | None] | None = None


class Intake:
    """What all associations of a node share: its spool, its index, and the writer that puts rows behind files."""

    def __init__(self, spool: Spool, database: Database) -> None:
        self.spool = spool
        self.database = database
        self._known = KnownInstances(database)
        lock = threading.Lock()
        self._work = threading.Condition(lock)  # for the writer
        self._progress = threading.Condition(lock)  # for those who wait for it
        self._queue: deque[_Wanted] = deque()
        self._claims: set[str] = set()  # UIDs that are being stored, or have no row yet
        self._failure: DatabaseUnavailableError | None = None  # of the last commit, until one succeeds
        self._writer: threading.Thread | None = None
        self._is_hurried = self._is_stopping = False

    def claim(self, sop_instance_uid: str) -> bool:
        """Keep a UID for the caller, if it is new; who brings one that is being stored waits for its row first.

        Raises
        ------
        DatabaseUnavailableError
            If the database does not answer, or has not for so long that no more can be kept without rows.
        RuntimeError
            If there is no thread for the writer.
        """
        with self._progress:
            self._start_writer()  # before anything is stored that needs it
            while sop_instance_uid in self._claims or len(self._queue) >= UNRECORDED_MAX:
                if self._failure is not None:
                    raise DatabaseUnavailableError(f"rows wait to be written: {self._failure}") from self._failure
                self._hurry()
                self._progress.wait()
            self._claims.add(sop_instance_uid)
        is_new = False
        try:
            is_new = not self._known.is_known(sop_instance_uid)
        finally:
            if not is_new:
                self.give_up(sop_instance_uid)
        return is_new

    def give_up(self, sop_instance_uid: str) -> None:
        """Let go of a claim: nothing was stored."""
        with self._progress:
            self._claims.discard(sop_instance_uid)
            self._progress.notify_all()

    def submit(self, entry: Entry) -> None:
        """Let an instance that is answered, and whose UID was claimed, have its row soon."""
        self._put(_Wanted(entry))

    def record(self, entry: Entry) -> Recording:
        """Return what the index made of an instance, when its row is committed and its file in its place.

        Raises
        ------
        DatabaseUnavailableError, StorageFullError, StorageFailedError
            If the database or the disk could not be written; the row may have been committed all the same.
        Exception
            As the database raised it, if it took the other rows but not this one.
        """
        outcome = self._wait_for(entry)
        if not isinstance(outcome, Recording):
            raise outcome or AssertionError
        return outcome

    def await_rows(self, sop_instance_uids: Iterable[str]) -> None:
        """Return when what has come of these has its rows.

        Raises
        ------
        DatabaseUnavailableError
            If the rows cannot be written now.
        """
        named = set(sop_instance_uids)
        with self._progress:
            while not named.isdisjoint(self._claims):
                if self._failure is not None:
                    raise DatabaseUnavailableError(f"rows wait to be written: {self._failure}") from self._failure
                self._hurry()
                self._progress.wait()

    def close(self, sender: Sender, now: float) -> None:
        """Close the row of an association, if it has one, after those of its instances.

        Raises
        ------
        DatabaseUnavailableError
            If it cannot be closed now.
        """
        if (sender.association_id is not None or sender.unrecorded) and not sender.is_closed:
            self._wait_for(Closing(sender, now))

    def stop(self) -> None:
        """Write what is left, as far as the database takes it, and end the writer; nothing is submitted any more."""
        with self._work:
            self._is_stopping = True
            self._work.notify()
        if self._writer is not None:
            self._writer.join()
        self._known.close()
        self.spool.close_files()

    def _wait_for(self, what: Entry | Closing) -> Outcome | None:
        outcome: Future[Outcome | None] = Future()
        self._put(_Wanted(what, outcome))
        return outcome.result()

    def _put(self, wanted: _Wanted) -> None:
        with self._work:
            if isinstance(wanted.what, Entry):
                wanted.what.sender.unrecorded += 1
            self._queue.append(wanted)
            self._start_writer()
            if wanted.outcome is not None:
                self._hurry()
            elif len(self._queue) in (1, GROUP_MAX) or self.spool.is_short_of_files:
                self._work.notify()

    def _start_writer(self) -> None:
        if self._writer is None:
            writer = threading.Thread(target=self._write, name="index", daemon=True)
            writer.start()
            self._writer = writer

    def _hurry(self) -> None:
        self._is_hurried = True
        self._work.notify()

    # The writer.

    def _write(self) -> None:
        while group := self._wait_for_group():
            try:
                outcomes = record_group(self.spool, self.database, [wanted.what for wanted in group])
            except DatabaseUnavailableError as error:
                if self._failure is None:
                    log.warning("receive.database_away", why=str(error))
                self._put_back(group, error)
            except Exception as error:  # the C-STORE handler's boundary, behind the answer
                log.exception("receive.index_failed")
                self._put_back(group, DatabaseUnavailableError(f"rows: {type(error).__name__}, the log has it"))
            else:
                self._finish(group, outcomes)
            if self._is_stopping and self._failure is not None:
                return  # the next start puts in order what is left, as after a crash

    def _wait_for_group(self) -> list[_Wanted]:
        """Return what is to be written next, making files meanwhile; nothing when it is time to end."""
        due_at = math.inf
        while True:
            self._make_files()
            with self._work:
                self._work.wait_for(lambda: self._queue or self._is_stopping or self.spool.is_short_of_files)
                if self._queue:
                    now = time.monotonic()
                    due_at = min(due_at, now + (LINGER_S if self._failure is None else RETRY_S))
                    self._work.wait_for(lambda: self._is_due() or self.spool.is_short_of_files, max(due_at - now, 0))
                if self._is_stopping or (self._queue and (self._is_due() or time.monotonic() >= due_at)):
                    self._is_hurried = False
                    return [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_MAX))]

    def _is_due(self) -> bool:
        if self._is_stopping or self._failure is not None:
            return self._is_stopping
        return self._is_hurried or len(self._queue) >= GROUP_MAX

    def _finish(self, group: list[_Wanted], outcomes: list[Outcome | None]) -> None:
        with self._progress:
            self._failure = None
            for wanted, outcome in zip(group, outcomes, strict=True):
                _count_off(wanted)
                if wanted.outcome is not None:
                    wanted.outcome.set_result(outcome)
                elif isinstance(wanted.what, Entry):
                    self._claims.discard(wanted.what.header.sop_instance_uid)
            self._progress.notify_all()

    def _put_back(self, group: list[_Wanted], error: DatabaseUnavailableError) -> None:
        """Keep what was answered for another time, and tell the others that they have no rows."""
        with self._progress:
            self._failure = error
            self._queue.extendleft(wanted for wanted in reversed(group) if wanted.outcome is None)
            for wanted in group:
                if wanted.outcome is not None:
                    _count_off(wanted)
                    wanted.outcome.set_exception(error)
            self._progress.notify_all()

    def _make_files(self) -> None:
        if self.spool.is_short_of_files:
            try:
                self.spool.make_files()
            except (StorageFullError, StorageFailedError):  # who needs one is told
                with self._work:
                    self._work.wait_for(lambda: self._is_stopping, RETRY_S)


def _count_off(wanted: _Wanted) -> None:
    if isinstance(wanted.what, Entry):
        wanted.what.sender.unrecorded -= 1
