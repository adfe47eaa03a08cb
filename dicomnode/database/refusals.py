"""Whose storage commitment messages are refused, until one of them is taken: for an administrator to see.

Flow: receive/commitment, send/commitment > [refusals] > schema; cli reads
Never: a row for each message: who is refused again and again is one row, with how often and why last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select

from dicomnode.database.engine import Database
from dicomnode.database.index import insert_new
from dicomnode.database.schema import commitment_refusals


@dataclass(frozen=True)
class Refused:
    """Who is refused what: a `request`, or a `report`."""

    calling_ae: str
    address: str
    kind: str


@dataclass(frozen=True)
class Refusal:
    """How often in a row it was, and why last; instants in UTC epoch seconds."""

    calling_ae: str
    address: str
    kind: str
    refused: int
    reason: str
    first_at: float
    last_at: float


def record_refusal(connection: Connection, refused: Refused, reason: str, now: float) -> None:
    """Record that a message was refused."""
    table = commitment_refusals
    values = {**vars(refused), "refused": 1, "reason": reason, "first_at": now, "last_at": now}
    new = insert_new(connection.dialect.name, table).values(values)
    again = {"refused": table.c.refused + 1, "reason": reason, "last_at": now}
    connection.execute(new.on_conflict_do_update(index_elements=list(vars(refused)), set_=again))


def is_refused(connection: Connection, refused: Refused) -> bool:
    """Say whether the last message of this kind was refused."""
    return connection.execute(select(commitment_refusals.c.id).where(_is(refused))).first() is not None


def clear_refusals(connection: Connection, refused: Refused) -> None:
    """Forget what was refused: one was taken."""
    connection.execute(delete(commitment_refusals).where(_is(refused)))


def forget_refusals(database: Database, refused: Refused) -> None:
    """Clear what was refused, if anything was; raises `DatabaseUnavailableError` if it cannot be."""
    with database.read() as connection:
        if not is_refused(connection, refused):
            return
    with database.write() as connection:
        clear_refusals(connection, refused)


def fetch_refusals(connection: Connection) -> list[Refusal]:
    """Return who is refused, the longest first."""
    columns = [commitment_refusals.c[name] for name in Refusal.__dataclass_fields__]
    rows = connection.execute(select(*columns).order_by(commitment_refusals.c.first_at)).mappings()
    return [Refusal(**row) for row in rows]


def _is(refused: Refused) -> Any:
    table = commitment_refusals
    return (
        (table.c.calling_ae == refused.calling_ae)
        & (table.c.address == refused.address)
        & (table.c.kind == refused.kind)
    )
