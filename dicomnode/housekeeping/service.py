"""Keeps the house of one node: looks for what may go, checks what is kept, and makes backups.

Flow: app's clock > [service] > housekeeping/retention, history, integrity, leftovers, backup; database/unnamed
Never: a step that takes long: each does a little, and the next goes on; a state that a restart would lose.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from dicomnode.backup.schedule import make_due_backup
from dicomnode.database.engine import Database
from dicomnode.database.marks import claim_turn, fetch_mark, set_mark
from dicomnode.database.store import Store
from dicomnode.database.unnamed import Named, end_unnamed
from dicomnode.errors import DicomnodeError, StorageFailedError
from dicomnode.housekeeping.clock import Moment
from dicomnode.housekeeping.history import end_history
from dicomnode.housekeeping.integrity import check_damaged, scan
from dicomnode.housekeeping.leftovers import clear_folder, list_folders
from dicomnode.housekeeping.retention import delete_due, is_clock_steady, measure_free_bytes, remove_doomed
from dicomnode.logs import get_logger
from dicomnode.settings import Settings

log = get_logger()

Clock = Callable[[], float]
LOOK_EVERY_S = 60.0
SCAN_EVERY_S = 10.0
DAMAGED_EVERY_S = 600.0
HISTORY_EVERY_S = 3600.0
UNNAMED_EVERY_S = 3600.0
UPKEEP_EVERY_S = 3600.0
# Of one step, for what may have no end on a slow disk: the watchdog hears of the node, and a stop is not kept waiting.
AT_MOST_S = 10.0
FOLDERS = "folders"  # the mark: which folder is looked at next
FOLDERS_AT_ONCE = 8


class HousekeepingService:
    """What a node does for its own house; `step` is called by a clock, never by two threads at once."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        clock: Clock,
        monotonic: Clock = time.monotonic,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = Store(settings.node.storage_root)
        self._clock = clock
        self._monotonic = monotonic
        self._free_bytes = free_bytes or partial(measure_free_bytes, self._store.root)
        self._seen: Moment | None = None
        self._stopping = threading.Event()
        self._next: dict[str, float] = {}  # monotonic seconds

    def reload(self, settings: Settings) -> None:
        """Use other settings from the next step on."""
        self._settings = settings

    def step(self) -> None:
        """Do what is due; while files wait to be removed, nothing but that, and while some cannot be, all but deleting.

        Raises
        ------
        DatabaseUnavailableError, StorageFailedError
            If something cannot be done now; the next step tries again.
        """
        unremoved = None
        try:
            if not remove_doomed(self._database, self._store, self._clock(), self._end_in(AT_MOST_S)):
                return
        except StorageFailedError as error:
            unremoved = error
        for name, every_s, do in (
            *([("look", LOOK_EVERY_S, self._look)] if unremoved is None else []),
            ("scan", SCAN_EVERY_S, self._scan),
            ("damaged", DAMAGED_EVERY_S, self._check_damaged),
            ("folders", LOOK_EVERY_S, self._clear_folders),
            ("history", HISTORY_EVERY_S, self._end_history),
            ("unnamed", UNNAMED_EVERY_S, self._end_unnamed),
            ("upkeep", UPKEEP_EVERY_S, self._database.keep_up),
        ):
            if self._monotonic() >= self._next.get(name, 0.0):
                self._next[name] = self._monotonic() + every_s
                do()
        if unremoved is not None:
            raise unremoved

    def back_up(self) -> None:
        """Make a backup where one is due; this takes as long as copying everything does."""
        try:
            make_due_backup(self._settings, self._database, self._clock, self._stopping.is_set)
        except DicomnodeError as error:  # whether one is due, or when to try again, could not be read or noted
            log.error("backup.failed", reason=str(error))

    def stop(self) -> None:
        """Let a backup that is under way end before its next file, and what is deleted too: the next start goes on."""
        self._stopping.set()

    def _end_in(self, seconds: float) -> Callable[[], bool]:
        """Return what says that so many seconds are over, or that the node stops."""
        end_by = self._monotonic() + seconds
        return lambda: self._stopping.is_set() or self._monotonic() >= end_by

    def _look(self) -> None:
        """Delete what may go: its rows, and with the next step its files; while more of it waits, that looks again."""
        now = self._clock()
        if not (self._settings.retention.is_asked_for and self._is_steady(now)):
            return
        is_over = self._end_in(AT_MOST_S)
        if delete_due(self._database, self._store, self._settings, now, self._free_bytes, is_over):
            self._next["look"] = 0.0

    def _end_history(self) -> None:
        """Let rows go that are over for long; while more of them wait, the next step goes on."""
        settings, now = self._settings.retention, self._clock()
        if settings.history_days and self._is_steady(now) and end_history(self._database, settings, now):
            self._next["history"] = 0.0

    def _end_unnamed(self) -> None:
        """End what is owed to whom the settings name no more; a clock that was put forward makes nothing old."""
        settings, now = self._settings, self._clock()
        named = Named(
            destinations=[one.peer for one in settings.destinations],
            answering=[peer.name for peer in settings.peers if peer.answers],
            callable=[peer.name for peer in settings.peers if not peer.is_network],
            committing={one.peer: one.commitment for one in settings.destinations if one.commitment},
        )
        if self._is_steady(now):
            with self._database.write() as connection:
                ended = end_unnamed(connection, named, now)
            if ended:
                log.warning("housekeeping.unnamed_peers", **ended)

    def _is_steady(self, now: float) -> bool:
        """Say whether things are as old as the clock says, by how it went since the last look."""
        moment = Moment(now, self._monotonic())
        is_steady = is_clock_steady(self._database, self._settings.retention, moment, self._seen)
        self._seen = moment
        return is_steady

    def _scan(self) -> None:
        settings = self._settings.integrity
        if settings.scan_days:
            budget_bytes = int(settings.scan_bytes_per_s * SCAN_EVERY_S)
            scan(self._database, self._store, budget_bytes, settings.scan_days, self._clock())

    def _check_damaged(self) -> None:
        check_damaged(self._database, self._store, self._end_in(AT_MOST_S))

    def _clear_folders(self) -> None:
        """Look at the next folders; the first to ask in a period does, of all processes."""
        now = self._clock()
        with self._database.write() as connection:
            if not claim_turn(connection, FOLDERS, now, LOOK_EVERY_S / 2):
                return
            mark = fetch_mark(connection, FOLDERS)
            position = 0 if mark is None else mark.position
            folders = list_folders(self._store)
            start = position if position < len(folders) else 0
            set_mark(connection, FOLDERS, position=start + FOLDERS_AT_ONCE)
        for folder in folders[start : start + FOLDERS_AT_ONCE]:
            clear_folder(self._database, self._store, folder, now)
