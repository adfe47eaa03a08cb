"""What is still owed to each destination: one row for each output instance and destination.

Flow: jobs/worker, pairing/decisions > [outbox] > send; cli reads
Never: a row that two senders hold at once: a claim gives a lease and a fencing token, as for jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, insert, select, update

from dicomnode.database.engine import Database
from dicomnode.database.schema import outbox, outputs
from dicomnode.errors import LeaseLostError, StateError
from dicomnode.settings import DestinationSettings

# DESIGN section 5. `sent` becomes `committed` when the destination does storage commitment.
OUTBOX_MOVES: Mapping[str, frozenset[str]] = {
    "owed": frozenset({"sent", "retry", "dead"}),
    "retry": frozenset({"sent", "retry", "dead"}),
    "sent": frozenset({"committed"}),
    "committed": frozenset(),
    "dead": frozenset(),
}
# Only a person asks again for what a destination refused.
OUTBOX_MOVES_BY_PERSON: Mapping[str, frozenset[str]] = {"dead": frozenset({"owed"})}
UNSENT = ("owed", "retry")


@dataclass(frozen=True)
class Failure:
    """Why no association with a destination came about, and when to try again (UTC epoch seconds); None is never."""

    reason: str
    not_before: float | None


@dataclass(frozen=True)
class OutboxRow:
    """One output instance owed to one destination; instants in UTC epoch seconds, `path` below the storage root."""

    id: int
    output_id: int
    job_id: int
    destination: str
    state: str
    reason: str
    attempts: int
    token: int
    lease_until: float | None
    not_before: float
    sent_at: float | None
    kind: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str


def add_outbox_rows(connection: Connection, output_ids: Iterable[int], destinations: Iterable[str], now: float) -> int:
    """Owe each output to each destination, unless it is owed or sent there already; return how many were added."""
    wanted = [(output_id, destination) for destination in destinations for output_id in output_ids]
    ids = {output_id for output_id, _ in wanted}
    query = select(outbox.c.output_id, outbox.c.destination).where(outbox.c.output_id.in_(ids))
    known = {(row.output_id, row.destination) for row in connection.execute(query)}
    new = [
        {"output_id": output_id, "destination": destination, "state": "owed", "not_before": now}
        for output_id, destination in wanted
        if (output_id, destination) not in known
    ]
    if new:
        connection.execute(insert(outbox), new)
    return len(new)


def owe_outputs(
    connection: Connection,
    made: Iterable[tuple[int, str]],
    destinations: Iterable[DestinationSettings],
    now: float,
) -> int:
    """Owe outputs, each an id and a kind of object, to the destinations that take that kind; as `add_outbox_rows`."""
    rows = list(made)
    return sum(
        add_outbox_rows(connection, [key for key, kind in rows if one.takes(kind)], [one.peer], now)
        for one in destinations
    )


def cancel_outputs(connection: Connection, job_id: int, reason: str) -> int:
    """Give up, on a person's word, what a job still owes; return how many rows. What was sent stays sent."""
    of_job = select(outputs.c.id).where(outputs.c.job_id == job_id)
    unsent = update(outbox).where(outbox.c.output_id.in_(of_job), outbox.c.state.in_(UNSENT))
    return connection.execute(unsent.values(state="dead", reason=reason, lease_until=None)).rowcount


def claim_outbox(database: Database, destination: str, now: float, lease_s: float, limit: int) -> list[OutboxRow]:
    """Take the rows of a destination that are due, at most `limit`, in the order in which they are to be sent.

    That is job by job in the order the job made its outputs: the Spatial Registration last, so that a peer which gets
    it holds what it refers to. What failed more often than the rest comes after it, and holds it up no longer.
    """
    order = (outbox.c.attempts, outbox.c.output_id)
    due = select(outbox.c.id).where(_is_due(destination, now)).order_by(*order).limit(limit)
    with database.write() as connection:
        # FOR UPDATE SKIP LOCKED on PostgreSQL; SQLite holds the only write lock since BEGIN IMMEDIATE.
        ids = list(connection.execute(due.with_for_update(skip_locked=True)).scalars())
        if not ids:
            return []
        taken = update(outbox).where(outbox.c.id.in_(ids))
        connection.execute(taken.values(token=outbox.c.token + 1, lease_until=now + lease_s))
        claimed = _query().order_by(None).order_by(*order).where(outbox.c.id.in_(ids))
        return [_row(row) for row in connection.execute(claimed).mappings()]


def extend_leases(database: Database, rows: Iterable[OutboxRow], lease_until: float) -> None:
    """Keep claimed rows that wait for their turn; those that were lost meanwhile stay lost."""
    with database.write() as connection:
        for row in rows:
            connection.execute(update(outbox).where(_is_held(row)).values(lease_until=lease_until))


def record_sent(connection: Connection, row: OutboxRow, now: float, reason: str = "") -> None:
    """Record that the destination has an instance; `reason` holds its warning, if it gave one.

    Raises
    ------
    LeaseLostError
        If another sender claimed the row since; nothing changed. A second send is harmless.
    """
    _leave(connection, row, "sent", reason=reason, sent_at=now, attempts=row.attempts + 1)


def record_retry(connection: Connection, row: OutboxRow, not_before: float, reason: str) -> None:
    """Put a row off after a transient failure; raises `LeaseLostError` as `record_sent` does."""
    _leave(connection, row, "retry", reason=reason, not_before=not_before, attempts=row.attempts + 1)


def record_dead(connection: Connection, row: OutboxRow, reason: str) -> None:
    """Give a row up after a permanent refusal or the last attempt; raises `LeaseLostError` as `record_sent` does."""
    _leave(connection, row, "dead", reason=reason, attempts=row.attempts + 1)


def fail_due_rows(database: Database, destination: str, now: float, failure: Failure, attempts_at_most: int) -> int:
    """Let every row of a destination that is due and that nobody holds share the fate of one association.

    Each has one attempt more. Those that have used up `attempts_at_most`, or all where there is no other time to try,
    become `dead`, the others `retry`. Returns how many became `dead`.
    """
    more = {"reason": failure.reason, "attempts": outbox.c.attempts + 1}
    is_last = outbox.c.attempts + 1 >= attempts_at_most
    with database.write() as connection:
        due = update(outbox).where(_is_due(destination, now))
        dying = due if failure.not_before is None else due.where(is_last)
        dead = connection.execute(dying.values(state="dead", **more)).rowcount
        connection.execute(due.values(state="retry", not_before=failure.not_before or now, **more))
    return dead


def release_rows(database: Database, rows: Iterable[OutboxRow]) -> None:
    """Give claimed rows back unchanged: they were not tried."""
    with database.write() as connection:
        for row in rows:
            connection.execute(update(outbox).where(_is_held(row)).values(lease_until=None))


def retry_outbox_row(connection: Connection, row_id: int, now: float) -> None:
    """Owe a dead row again, on a person's word; raises `StateError` if there is no such row or it is not dead."""
    row = fetch_outbox_row(connection, row_id)
    if "owed" not in OUTBOX_MOVES_BY_PERSON.get(row.state, frozenset()):
        raise StateError(f"outbox row {row_id}: it is {row.state}, dead is needed")
    values = {"state": "owed", "attempts": 0, "not_before": now}
    connection.execute(update(outbox).where(outbox.c.id == row_id).values(values))


def fetch_outbox(connection: Connection, states: Iterable[str] = ()) -> list[OutboxRow]:
    """Return the rows in any of these states, or all, in the order in which they are sent."""
    wanted = list(states)
    query = _query().where(outbox.c.state.in_(wanted)) if wanted else _query()
    return [_row(row) for row in connection.execute(query).mappings()]


def fetch_outbox_row(connection: Connection, row_id: int) -> OutboxRow:
    """Return one row; raises `StateError` if there is none with this id."""
    row = connection.execute(_query().where(outbox.c.id == row_id)).mappings().first()
    if row is None:
        raise StateError(f"outbox row {row_id}: there is no row with this number")
    return _row(row)


def _leave(connection: Connection, row: OutboxRow, state: str, **values: Any) -> None:
    """Move a claimed row to another state and give its lease up."""
    if state not in OUTBOX_MOVES[row.state]:
        raise StateError(f"outbox row {row.id}: {row.state} does not become {state}")
    moved = connection.execute(update(outbox).where(_is_held(row)).values(state=state, lease_until=None, **values))
    if moved.rowcount == 0:
        raise LeaseLostError(f"outbox row {row.id}: token {row.token} does not hold it any more")


def _is_due(destination: str, now: float) -> Any:
    is_free = outbox.c.lease_until.is_(None) | (outbox.c.lease_until < now)
    is_owed = (outbox.c.destination == destination) & outbox.c.state.in_(UNSENT) & (outbox.c.not_before <= now)
    return is_owed & is_free


def _is_held(row: OutboxRow) -> Any:
    return (outbox.c.id == row.id) & (outbox.c.token == row.token) & outbox.c.state.in_(UNSENT)


def _query() -> Select[Any]:
    return (
        select(
            outbox,
            outputs.c.job_id,
            outputs.c.kind,
            outputs.c.sop_instance_uid,
            outputs.c.sop_class_uid,
            outputs.c.transfer_syntax_uid,
            outputs.c.path,
        )
        .join(outputs, outputs.c.id == outbox.c.output_id)
        .order_by(outbox.c.destination, outbox.c.output_id)
    )


def _row(row: RowMapping) -> OutboxRow:
    return OutboxRow(**row)
