"""Which rows of a queue may be taken now: what the queues of storage commitment have in common.

Flow: commitments, commitment_requests > [turns] > schema
Never: a table of its own; a state moved.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table


@dataclass(frozen=True)
class Turn:
    """Which rows may be taken: those about one peer that nobody holds and that need not wait (any longer).

    A wait or a lease beyond the longest there can be was set by a clock that has been put back, and is over.
    """

    peer: str
    now: float  # UTC epoch seconds
    lease_s: float  # how long a row is held once it is taken
    wait_at_most_s: float


def is_due(table: Table, turn: Turn, states: Collection[str]) -> Any:
    """Return the condition that a row in one of these states may be taken."""
    not_before, lease_until = table.c.not_before, table.c.lease_until
    need_not_wait = (not_before <= turn.now) | (not_before > turn.now + turn.wait_at_most_s)
    is_free = lease_until.is_(None) | (lease_until < turn.now) | (lease_until > turn.now + 2 * turn.lease_s)
    return (table.c.peer == turn.peer) & table.c.state.in_(states) & need_not_wait & is_free
