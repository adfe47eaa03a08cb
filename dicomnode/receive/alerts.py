"""Keeps what bears on security until the audit trail takes it: who was refused, or broke off for breaking a rule.

Flow: receive.associations, receive.handshake > [alerts] > database/audit
Never: a row for each refusal (a stranger would fill the disk): what repeats is counted, and said once a minute.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from dicomnode.audit import Alert, Code, Party, find_node, make_alert
from dicomnode.database.audit import record_message
from dicomnode.database.engine import Database
from dicomnode.settings import Settings

REPEATED_AFTER_S = 60.0
KEPT_AT_MOST = 1000  # callers and rules; those beyond are counted as one
MANY = Party("many callers")


@dataclass
class _Kept:
    alert: Alert
    said_at: float | None = None  # and not since: `alert.count` is 0 where nothing came since


class Alerts:
    """What one SCP has to say to the audit trail; any thread may note, one writes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], _Kept] = {}

    def note(self, type_: Code, rule: str, description: str, caller: Party) -> None:
        """Keep an alert, or count it with those of the same rule and address."""
        now = self._clock()
        with self._lock:
            key = (rule, caller.address)
            if key not in self._kept and len(self._kept) >= KEPT_AT_MOST:
                key, caller = (rule, MANY.ae_title), MANY
            kept = self._kept.setdefault(key, _Kept(Alert(type_, description, "4", now, caller, 0)))
            kept.alert = Alert(type_, description, "4", now, caller, kept.alert.count + 1)

    def write(self, database: Database, settings: Settings) -> None:
        """Let what is due wait for the audit trail's channels, and forget it where there are none.

        Raises
        ------
        DatabaseUnavailableError
            If it cannot be written now; it is kept.
        """
        now = self._clock()
        with self._lock:
            self._kept = {key: kept for key, kept in self._kept.items() if kept.alert.count or not _is_over(kept, now)}
            due = {key: kept.alert for key, kept in self._kept.items() if kept.alert.count and _is_over(kept, now)}
        if not due:
            return
        node = find_node(settings.node.ae_title)
        if settings.audit.channels:
            with database.write() as connection:
                for alert in due.values():
                    record_message(connection, settings.audit.channels, make_alert(node, alert), now)
        with self._lock:
            for key, said in due.items():
                kept = self._kept[key]
                kept.said_at, kept.alert = now, replace(kept.alert, count=kept.alert.count - said.count)


def _is_over(kept: _Kept, now: float) -> bool:
    """Tell whether it may be said again; a clock that has been put back keeps nothing back."""
    return kept.said_at is None or not kept.said_at <= now < kept.said_at + REPEATED_AFTER_S
