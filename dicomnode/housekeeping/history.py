"""Lets rows go that only say what was once done, a little at a time, and notes how many.

Flow: housekeeping/service > [history] > database/history, database/deletions
Never: a file; a rule about which rows those are.
"""

from __future__ import annotations

from dicomnode.database.deletions import NewDeletion, add_deletion
from dicomnode.database.engine import Database
from dicomnode.database.history import end_rows
from dicomnode.housekeeping.rules import DAY_S, HOUR_S
from dicomnode.logs import get_logger
from dicomnode.settings_keeping import RetentionSettings

log = get_logger()

ROWS_AT_ONCE = 500  # of each table in one transaction, which others wait for


def find_age(settings: RetentionSettings, now: float) -> float | None:
    """Return before when (UTC epoch seconds) that must have been over which goes; None where nothing does."""
    if not settings.history_days:
        return None
    return now - max(settings.history_days * DAY_S, settings.hold_hours * HOUR_S)


def end_history(database: Database, settings: RetentionSettings, now: float) -> bool:
    """Delete the next rows that are over for long enough, and say whether more may wait.

    Raises
    ------
    DatabaseUnavailableError
        If nothing can be written now; the next call tries again.
    """
    before = find_age(settings, now)
    if before is None:
        return False
    with database.write() as connection:
        ended = end_rows(connection, before, ROWS_AT_ONCE)
        if ended:
            words = ", ".join(f"{count} {table}" for table, count in ended.items())
            reason = f"retention.history_days = {settings.history_days:g}: {words}"
            add_deletion(connection, NewDeletion("history", "rows", reason, 0), [], now)
    if ended:
        log.info("housekeeping.history_ended", **ended)
    return max(ended.values(), default=0) == ROWS_AT_ONCE
