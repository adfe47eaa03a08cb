"""What is still owed to each destination: one row for each output instance and destination.

Flow: jobs/worker, pairing/decisions > [outbox] > send; cli reads
Never: a row that two senders hold at once: a claim gives a lease and a fencing token, as for jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, case, func, insert, select, tuple_, update

from dicomnode.database.engine import Database
from dicomnode.database.schema import commitments, damages, jobs, outbox, outputs, pairs
from dicomnode.database.turns import is_free
from dicomnode.database.withheld import find_withheld, is_withheld
from dicomnode.errors import LeaseLostError, StateError

# `sent` becomes `committed`, or is sent again or given up, by the report of a destination that does storage commitment
# (`database/commitments`). `dead` becomes `sent` where a row was given up while its instance was on its way.
OUTBOX_MOVES: Mapping[str, frozenset[str]] = {
    "owed": frozenset({"sent", "retry", "dead"}),
    "retry": frozenset({"sent", "retry", "dead"}),
    "sent": frozenset({"committed", "retry", "dead"}),
    "committed": frozenset(),
    "dead": frozenset({"sent"}),
}
# Only a person asks again for what a destination refused, or did not commit however often it was asked.
OUTBOX_MOVES_BY_PERSON: Mapping[str, frozenset[str]] = {"dead": frozenset({"owed"}), "sent": frozenset({"owed"})}
UNSENT = ("owed", "retry")
DAMAGED = "damaged: "  # how the reason of a dead row begins whose file is not what was made
REGISTRATION = "reg"  # the kind of the Spatial Registration object, which refers to the others


@dataclass(frozen=True)
class Due:
    """Which rows may be sent now.

    Those of a destination that nobody holds and that need not wait (any longer); with an `order`, a Spatial
    Registration object only once nothing else of its job is unsent there, or the others only once it is.
    """

    destination: str
    now: float  # UTC epoch seconds
    lease_s: float  # how long a row is held once it is claimed
    wait_at_most_s: float
    order: Literal["last", "first"] = "last"


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
    is_commitment_owed: bool
    commitment_id: int | None
    kind: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str
    sha256: str
    copies: Mapping[str, str] | None
    deleted_at: float | None


def add_outbox_rows(connection: Connection, output_ids: Iterable[int], destinations: Iterable[str], now: float) -> int:
    """Owe each output to each destination, unless it is owed or sent there already; return how many were added.

    What was not sent because its file was damaged is owed again once it was made again, which a person has asked for.
    """
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
    damaged = select(damages.c.output_id).where(damages.c.output_id.in_(ids))
    is_mended = outbox.c.output_id.in_(ids) & outbox.c.output_id.not_in(damaged) & outbox.c.reason.startswith(DAMAGED)
    names = {destination for _, destination in wanted}
    return len(new) + _owe_again(
        connection, is_mended & outbox.c.destination.in_(names) & (outbox.c.state == "dead"), now
    )


def cancel_outputs(connection: Connection, job_id: int, reason: str) -> int:
    """Give up, on a person's word, what a job still owes; return how many rows.

    What was sent stays sent; what is on its way becomes so when the destination has taken it.
    """
    return _cancel(connection, select(outputs.c.id).where(outputs.c.job_id == job_id), reason)


def cancel_series(connection: Connection, series_id: int, reason: str) -> None:
    """Give up what is still owed of a series that turned out not to be one patient's."""
    is_part = (pairs.c.fixed_series_id == series_id) | (pairs.c.moving_series_id == series_id)
    of_series = select(outputs.c.id).join(jobs, jobs.c.id == outputs.c.job_id).join(pairs).where(is_part)
    _cancel(connection, of_series, reason)


def count_due_rows(database: Database, due: Due, at_most: int) -> int:
    """Return how many rows could be claimed, or `at_most` where it is more: nobody waits for a long count."""
    found = _due_ids(due).limit(at_most).subquery()
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(found)).scalar_one())


def claim_outbox(database: Database, due: Due, limit: int) -> list[OutboxRow]:
    """Take the rows of a destination that are due, at most `limit`, in the order in which they are to be sent.

    That is job by job in the order the job made its outputs. What failed more often than the rest comes after it, and
    holds it up no longer.
    """
    with database.write() as connection:
        return claim_more(connection, due, limit)


def claim_more(connection: Connection, due: Due, limit: int) -> list[OutboxRow]:
    """Do what `claim_outbox` does within a transaction that has other things to write."""
    order = (outbox.c.attempts, outbox.c.output_id)
    ids_due = _due_ids(due).order_by(*order).limit(limit)
    # FOR UPDATE SKIP LOCKED on PostgreSQL; SQLite holds the only write lock since BEGIN IMMEDIATE.
    ids = list(connection.execute(ids_due.with_for_update(skip_locked=True, of=outbox)).scalars())
    if not ids:
        return []
    taken = update(outbox).where(outbox.c.id.in_(ids))
    connection.execute(taken.values(token=outbox.c.token + 1, lease_until=due.now + due.lease_s))
    claimed = _query().order_by(None).order_by(*order).where(outbox.c.id.in_(ids))
    return [_row(row) for row in connection.execute(claimed).mappings()]


def fetch_unsent_contexts(database: Database, destination: str) -> set[tuple[str, str]]:
    """Return the SOP class and transfer syntax UIDs of everything that a destination does not have yet."""
    query = select(outputs.c.sop_class_uid, outputs.c.transfer_syntax_uid).distinct()
    unsent = query.join(outbox).where(outbox.c.destination == destination, outbox.c.state.in_(UNSENT))
    with database.read() as connection:
        return {(row.sop_class_uid, row.transfer_syntax_uid) for row in connection.execute(unsent)}


def extend_leases(database: Database, rows: Iterable[OutboxRow], lease_until: float) -> set[int]:
    """Keep claimed rows that wait for their turn or are on their way, and return the ids of those that are kept.

    Those that were lost meanwhile stay lost.
    """
    kept = update(outbox).where(_are_claimed(rows, UNSENT)).values(lease_until=lease_until)
    with database.write() as connection:
        return set(connection.execute(kept.returning(outbox.c.id)).scalars())


def record_sent(
    connection: Connection, row: OutboxRow, now: float, reason: str = "", *, owes_commitment: bool = False
) -> None:
    """Record that the destination has an instance; `reason` holds its warning, if it gave one.

    With `owes_commitment` a peer is asked to commit it.

    One that was given up while it was on its way is sent all the same, and goes on to say why it was given up.

    Raises
    ------
    LeaseLostError
        If another sender claimed the row since; nothing changed. A second send is harmless.
    """
    if row.id not in _record_sent(connection, [row], now, reason=reason, owes_commitment=owes_commitment):
        raise _lost(row)


def record_all_sent(
    connection: Connection, rows: Iterable[OutboxRow], now: float, *, owes_commitment: bool = False
) -> set[int]:
    """Record that the destination has these instances, without a warning, and return the ids of those that were held.

    The others were claimed by another sender since, and are unchanged; otherwise as `record_sent`.
    """
    return _record_sent(connection, list(rows), now, reason="", owes_commitment=owes_commitment)


def record_retry(connection: Connection, row: OutboxRow, not_before: float, reason: str) -> None:
    """Put a row off after a transient failure; raises `LeaseLostError` as `record_sent` does."""
    _leave(connection, row, "retry", reason=reason, not_before=not_before, attempts=row.attempts + 1)


def record_dead(connection: Connection, row: OutboxRow, reason: str) -> None:
    """Give a row up after a permanent refusal or the last attempt; raises `LeaseLostError` as `record_sent` does."""
    _leave(connection, row, "dead", reason=reason, attempts=row.attempts + 1)


def fail_due_rows(database: Database, due: Due, failure: Failure, attempts_at_most: int) -> int:
    """Let every row of a destination that need not wait and that nobody holds share the fate of one association.

    Each has one attempt more. Those that have used up `attempts_at_most`, or all where there is no other time to try,
    become `dead`, the others `retry`. Returns how many became `dead`.
    """
    more = {"reason": failure.reason, "attempts": outbox.c.attempts + 1}
    is_last = outbox.c.attempts + 1 >= attempts_at_most
    with database.write() as connection:
        failed = update(outbox).where(_is_due(due))
        dying = failed if failure.not_before is None else failed.where(is_last)
        dead = connection.execute(dying.values(state="dead", **more)).rowcount
        connection.execute(failed.values(state="retry", not_before=failure.not_before or due.now, **more))
    return dead


def release_rows(database: Database, rows: Iterable[OutboxRow]) -> None:
    """Give claimed rows back unchanged: they were not tried."""
    with database.write() as connection:
        for row in rows:
            connection.execute(update(outbox).where(_is_held(row)).values(lease_until=None))


def fetch_held_ids(database: Database, rows: Iterable[OutboxRow]) -> set[int]:
    """Return the ids of those of these claimed rows that are still to be sent, and by who claimed them."""
    with database.read() as connection:
        return set(connection.execute(select(outbox.c.id).where(_are_claimed(rows, UNSENT))).scalars())


def retry_outbox_row(connection: Connection, row_id: int, now: float) -> None:
    """Owe a row again, on a person's word.

    Raises
    ------
    StateError
        If there is no such row, it is neither dead nor sent and given up to be committed, or it is withheld.
    """
    _lock(connection, outbox.c.id == row_id)
    row = fetch_outbox_row(connection, row_id)
    asked = select(commitments.c.state).where(commitments.c.id == row.commitment_id)
    # Of a settled transaction nothing stays sent that is asked for again: that has a transaction of its own.
    is_hopeless = row.state != "sent" or connection.execute(asked).scalar_one_or_none() in ("dead", "settled")
    if "owed" not in OUTBOX_MOVES_BY_PERSON.get(row.state, frozenset()) or not is_hopeless:
        words = "dead is needed, or sent with a reason why it was not committed"
        raise StateError(f"outbox row {row_id}: it is {row.state}, {words}")
    if withheld := find_withheld(connection, row_id):
        mend = f"; make it again: dicomnode jobs reprocess {row.job_id}" if row.deleted_at is not None else ""
        raise StateError(f"outbox row {row_id}, of job {row.job_id}, is not sent again: {withheld}{mend}")
    _owe_again(connection, outbox.c.id == row_id, now)


def retry_dead_rows(connection: Connection, destination: str, now: float) -> int:
    """Owe every dead row of a destination again, on a person's word, but for those withheld; return how many."""
    is_dead = (outbox.c.destination == destination) & (outbox.c.state == "dead")
    _lock(connection, is_dead)
    return _owe_again(connection, is_dead & ~is_withheld(), now)


def _cancel(connection: Connection, of_outputs: Select[Any], reason: str) -> int:
    """Give up what is owed of these outputs, and what is being owed again by another transaction."""
    is_theirs = outbox.c.output_id.in_(of_outputs)
    _lock(connection, is_theirs)
    unsent = update(outbox).where(is_theirs, outbox.c.state.in_(UNSENT))
    return connection.execute(unsent.values(state="dead", reason=reason, lease_until=None)).rowcount


def _lock(connection: Connection, which: ColumnElement[bool]) -> None:
    """Let one transaction at a time owe rows again or give them up: the next one sees what this one did."""
    connection.execute(select(outbox.c.id).where(which).order_by(outbox.c.id).with_for_update())


def _owe_again(connection: Connection, which: ColumnElement[bool], now: float) -> int:
    values = {"state": "owed", "attempts": 0, "not_before": now, "commitment_id": None}
    return connection.execute(update(outbox).where(which).values(values)).rowcount


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
        raise _lost(row)


def _record_sent(
    connection: Connection, rows: Sequence[OutboxRow], now: float, *, reason: str, owes_commitment: bool
) -> set[int]:
    takes_sent = [state for state, moves in OUTBOX_MOVES.items() if state != "sent" and "sent" in moves]
    values = {
        "state": "sent",
        "reason": case((outbox.c.state == "dead", outbox.c.reason), else_=reason),
        "sent_at": now,
        "attempts": outbox.c.attempts + 1,
        "lease_until": None,
        "is_commitment_owed": owes_commitment,
    }
    sent = update(outbox).where(_are_claimed(rows, takes_sent)).values(values)
    return set(connection.execute(sent.returning(outbox.c.id)).scalars())


def _lost(row: OutboxRow) -> LeaseLostError:
    return LeaseLostError(f"outbox row {row.id}: token {row.token} does not hold it any more")


def _is_due(due: Due) -> Any:
    is_owed = (outbox.c.destination == due.destination) & outbox.c.state.in_(UNSENT)
    return is_owed & is_free(outbox, due.now, due.lease_s, due.wait_at_most_s)


def _due_ids(due: Due) -> Select[Any]:
    """Select the ids of the rows that may be sent, the order within a job considered."""
    other, other_output = outbox.alias("other"), outputs.alias("other_output")
    is_registration = outputs.c.kind == REGISTRATION
    goes_after = is_registration if due.order == "last" else ~is_registration
    goes_first = other_output.c.kind != REGISTRATION if due.order == "last" else other_output.c.kind == REGISTRATION
    is_waited_for = (
        select(other.c.id)
        .join(other_output, other_output.c.id == other.c.output_id)
        .where(other_output.c.job_id == outputs.c.job_id, other.c.destination == outbox.c.destination)
        .where(other.c.state.in_(UNSENT), goes_first)
        .correlate(outbox, outputs)
        .exists()
    )
    return (
        select(outbox.c.id)
        .join(outputs, outputs.c.id == outbox.c.output_id)
        .where(_is_due(due), ~(goes_after & is_waited_for))
    )


def _is_held(row: OutboxRow) -> Any:
    return _are_claimed([row], UNSENT)


def _are_claimed(rows: Iterable[OutboxRow], states: Iterable[str]) -> Any:
    claims = [(row.id, row.token) for row in rows]
    return tuple_(outbox.c.id, outbox.c.token).in_(claims) & outbox.c.state.in_(list(states))


def _query() -> Select[Any]:
    return (
        select(
            *(column for column in outbox.c if column is not outbox.c.is_audited),
            outputs.c.job_id,
            outputs.c.kind,
            outputs.c.sop_instance_uid,
            outputs.c.sop_class_uid,
            outputs.c.transfer_syntax_uid,
            outputs.c.path,
            outputs.c.sha256,
            outputs.c.copies,
            outputs.c.deleted_at,
        )
        .join(outputs, outputs.c.id == outbox.c.output_id)
        .order_by(outbox.c.destination, outbox.c.output_id)
    )


def _row(row: RowMapping) -> OutboxRow:
    return OutboxRow(**row)
