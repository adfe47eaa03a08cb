"""Which rows of a queue may be taken now: what every queue with leases and waits has in common.

Flow: outbox, commitments, commitment_requests, queries, notices, audit > [turns] > schema
Never: a table of its own; a state moved.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, select, update


@dataclass(frozen=True)
class Turn:
    """Which rows may be taken: those about one peer that nobody holds and that need not wait (any longer)."""

    peer: str
    now: float  # UTC epoch seconds
    lease_s: float  # how long a row is held once it is taken
    wait_at_most_s: float


def is_due(table: Table, turn: Turn, states: Collection[str]) -> Any:
    """Return the condition that a row in one of these states may be taken."""
    is_takable = is_free(table, turn.now, turn.lease_s, turn.wait_at_most_s)
    return (table.c.peer == turn.peer) & table.c.state.in_(states) & is_takable


def is_free(table: Table, now: float, lease_s: float, wait_at_most_s: float) -> Any:
    """Return the condition that nobody holds a row and it need not wait (any longer).

    A wait or a lease beyond the longest there can be was set by a clock that has been put back, and is over.
    """
    not_before, lease_until = table.c.not_before, table.c.lease_until
    need_not_wait = (not_before <= now) | (not_before > now + wait_at_most_s)
    return need_not_wait & (lease_until.is_(None) | (lease_until < now) | (lease_until > now + 2 * lease_s))


def claim_rows(connection: Connection, table: Table, condition: Any, lease_until: float, limit: int) -> list[int]:
    """Hold the oldest rows that meet a condition until an instant, each under a new token; return their ids."""
    due = select(table.c.id).where(condition).order_by(table.c.id).limit(limit)
    # FOR UPDATE SKIP LOCKED on PostgreSQL; SQLite holds the only write lock since BEGIN IMMEDIATE.
    ids = list(connection.execute(due.with_for_update(skip_locked=True)).scalars())
    if ids:
        values = {"attempts": table.c.attempts + 1, "token": table.c.token + 1, "lease_until": lease_until}
        connection.execute(update(table).where(table.c.id.in_(ids)).values(values))
    return ids
