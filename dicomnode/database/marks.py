"""How far what goes on for ever has come, and who is at it: shared by all processes on one database.

Flow: housekeeping, backup > [marks] > schema
Never: a lock that outlives its holder: each has an end, which a clock that is put back does not move far away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update

from dicomnode.database.index import insert_new
from dicomnode.database.schema import marks

BACKUP = "backup"  # `until`: no file may be deleted before
BACKUP_LEASE_S = 120.0


@dataclass(frozen=True)
class Mark:
    """Where something stands: when it was last done, until when something holds, and a position; UTC epoch seconds."""

    at: float
    until: float
    position: int


def fetch_mark(connection: Connection, name: str) -> Mark | None:
    """Return a mark, or None where none was ever set."""
    row = connection.execute(select(marks.c.at, marks.c.until, marks.c.position).where(marks.c.name == name)).first()
    return None if row is None else Mark(row.at, row.until, row.position)


def set_mark(connection: Connection, name: str, **values: Any) -> None:
    """Set columns of a mark, which is made where there is none; one that is new has `at` 0 unless it is given."""
    if connection.execute(update(marks).where(marks.c.name == name).values(**values)).rowcount == 0:
        new = insert_new(connection.dialect.name, marks).values(**{"name": name, "at": 0.0, **values})
        connection.execute(new.on_conflict_do_update(index_elements=["name"], set_=values))


def claim_turn(connection: Connection, name: str, now: float, period_s: float) -> bool:
    """Say whether it is time for something that is done once a period, and if so, count it as begun now.

    Of many processes that ask, one is told yes. A turn that lies in the future was taken before the clock was put back.
    """
    is_due = (marks.c.at <= now - period_s) | (marks.c.at > now)
    if connection.execute(update(marks).where(marks.c.name == name, is_due).values(at=now)).rowcount:
        return True
    new = insert_new(connection.dialect.name, marks).values(name=name, at=now)
    new = new.on_conflict_do_nothing(index_elements=["name"])
    return connection.execute(new.returning(marks.c.name)).first() is not None


def hold_files(connection: Connection, now: float) -> None:
    """Keep every file for `BACKUP_LEASE_S` from now: a backup is being made of them.

    Nobody lets go of them before: another backup may be under way.
    """
    set_mark(connection, BACKUP, until=now + BACKUP_LEASE_S)


def are_files_held(connection: Connection, now: float) -> bool:
    """Say whether a backup is being made; none begins before this transaction ends."""
    # A row that is there can be locked; without one, a backup that begins now would not wait for this transaction.
    new = insert_new(connection.dialect.name, marks).values(name=BACKUP, at=0.0)
    connection.execute(new.on_conflict_do_nothing(index_elements=["name"]))
    query = select(marks.c.until).where(marks.c.name == BACKUP).with_for_update()
    until: float = connection.execute(query).scalar_one()
    return now < until <= now + 2 * BACKUP_LEASE_S
