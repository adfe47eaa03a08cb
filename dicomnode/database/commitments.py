"""Storage commitment that is asked of the peers of destinations: one row for each transaction.

Flow: send/commitments > [commitments]; a peer's report comes by receive or send; outbox rows become `committed`
Never: a Transaction UID that is asked twice; a report believed that another peer gave, or on what is asked anew.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, case, func, insert, select, update

from dicomnode.commitment import Reference, Report
from dicomnode.database.engine import Database
from dicomnode.database.outbox import UNSENT
from dicomnode.database.schema import commitments, outbox, outputs
from dicomnode.database.turns import Turn, is_due
from dicomnode.database.withheld import find_withheld
from dicomnode.errors import LeaseLostError, StateError
from dicomnode.steps import Step, reach

# `failed` is followed by another transaction for the same rows. `dead` is the last, of something that is not committed,
# and takes a late report still.
COMMITMENT_MOVES: Mapping[str, frozenset[str]] = {
    "owed": frozenset({"asked", "reported", "failed", "dead"}),
    "asked": frozenset({"reported", "failed", "dead"}),
    "reported": frozenset({"settled", "dead"}),
    "dead": frozenset({"reported"}),
    "failed": frozenset(),
    "settled": frozenset(),
}
TAKES_REPORT = tuple(state for state, moves in COMMITMENT_MOVES.items() if "reported" in moves)
AWAITED = ("owed", "asked", "reported")  # whether the peer has committed is not known yet
NOT_COMMITTED = "not committed: "  # how the reason of an outbox row begins that stays `sent`


@dataclass(frozen=True)
class Commitment:
    """One transaction; instants in UTC epoch seconds, `report` what the peer said until it is settled."""

    id: int
    transaction_uid: str
    destination: str
    peer: str
    state: str
    reason: str
    attempts: int
    token: int
    lease_until: float | None
    not_before: float
    report: Mapping[str, Any] | None
    created_at: float


@dataclass(frozen=True)
class SentRow:
    """An outbox row that waits to be committed."""

    id: int
    job_id: int
    attempts: int
    reference: Reference


def make_transaction_uid() -> str:
    """Return a Transaction UID that nobody has had: a restored backup must not ask under one that was used."""
    return f"2.25.{uuid.uuid4().int}"  # PS3.5 B.2


def owe_commitments(connection: Connection, destination: str, peer: str, now: float) -> list[str]:
    """Make a transaction for each job of which something waits to be asked for, and nothing is unsent there.

    Returns
    -------
    list of str
        The Transaction UIDs.
    """
    other, other_output = outbox.alias("other"), outputs.alias("other_output")
    is_unsent = (
        select(other.c.id)
        .join(other_output, other_output.c.id == other.c.output_id)
        .where(other_output.c.job_id == outputs.c.job_id, other.c.destination == destination)
        .where(other.c.state.in_(UNSENT))
        .correlate(outputs)
        .exists()
    )
    waiting = (
        select(outbox.c.id, outputs.c.job_id)
        .join(outputs, outputs.c.id == outbox.c.output_id)
        .where(outbox.c.destination == destination, outbox.c.state == "sent", outbox.c.is_commitment_owed, ~is_unsent)
        .order_by(outbox.c.output_id)
        .with_for_update(skip_locked=True, of=outbox)
    )
    jobs: dict[int, list[int]] = {}
    for row in connection.execute(waiting):
        jobs.setdefault(row.job_id, []).append(row.id)
    return [_add(connection, destination, peer, ids, attempts=0, not_before=now, now=now) for ids in jobs.values()]


def is_commitment_owed(connection: Connection, destination: str) -> bool:
    """Say whether anything that a destination was sent waits to be asked for."""
    waiting = select(outbox.c.id).where(outbox.c.destination == destination, outbox.c.state == "sent")
    return connection.execute(waiting.where(outbox.c.is_commitment_owed).limit(1)).first() is not None


def has_due_commitments(connection: Connection, turn: Turn) -> bool:
    """Say whether a peer is to be asked now."""
    return connection.execute(select(commitments.c.id).where(_is_due(turn)).limit(1)).first() is not None


def claim_commitments(database: Database, turn: Turn, limit: int) -> list[Commitment]:
    """Take the transactions that are to be asked now of a peer, at most `limit`, the oldest first.

    One that somebody took and did not give back may have been asked: another takes its place.
    """
    due = select(commitments).where(_is_due(turn)).order_by(commitments.c.id).limit(limit)
    claimed = []
    with database.write() as connection:
        # FOR UPDATE SKIP LOCKED on PostgreSQL; SQLite holds the only write lock since BEGIN IMMEDIATE.
        for row in connection.execute(due.with_for_update(skip_locked=True)).mappings().all():
            found = Commitment(**row)
            if found.lease_until is not None:
                rows = [sent.id for sent in fetch_sent_rows(connection, found)]
                another = ask_again(connection, found, rows, turn.now, "whether it was asked is not known", turn.now)
                _finish(connection, found, "failed", "whether it was asked is not known")
                if another is None:
                    continue
                found = another
            values = {"token": commitments.c.token + 1, "lease_until": turn.now + turn.lease_s}
            taken = update(commitments).where(commitments.c.id == found.id).values(values).returning(commitments)
            claimed.append(Commitment(**connection.execute(taken).mappings().one()))
    return claimed


def fetch_sent_rows(connection: Connection, commitment: Commitment) -> list[SentRow]:
    """Return what a transaction is about, as far as nothing else has become of it, in the order it was sent."""
    query = (
        select(outbox.c.id, outputs.c.job_id, outbox.c.attempts, outputs.c.sop_class_uid, outputs.c.sop_instance_uid)
        .join(outputs, outputs.c.id == outbox.c.output_id)
        .where(outbox.c.commitment_id == commitment.id, outbox.c.state == "sent")
        .order_by(outbox.c.output_id)
    )
    return [SentRow(*row[:3], Reference(*row[3:])) for row in connection.execute(query)]


def record_asked(connection: Connection, commitment: Commitment, report_due_at: float) -> None:
    """Record that the peer took the request: its report is waited for until then, unless it has come.

    Raises
    ------
    LeaseLostError
        If another caller claimed the row since; nothing changed.
    """
    asked = {"state": "asked", "not_before": report_due_at, "attempts": commitments.c.attempts + 1, "lease_until": None}
    held = (commitments.c.id == commitment.id) & (commitments.c.token == commitment.token)
    if connection.execute(update(commitments).where(held, commitments.c.state == "owed").values(asked)).rowcount == 0:
        state = connection.execute(select(commitments.c.state).where(held)).scalar_one_or_none()
        if state not in ("reported", "settled"):
            raise LeaseLostError(f"commitment {commitment.id}: token {commitment.token} does not hold it any more")


def take_report(database: Database, report: Report, peers: Collection[str]) -> Commitment:
    """Keep what one of these peers reports on a transaction, to be settled; on one that is over nothing changes.

    Returns
    -------
    Commitment
        As it was before.

    Raises
    ------
    StateError
        If the transaction was asked of none of them, or never was.
    DatabaseUnavailableError
        If the database could not be written.
    """
    with database.write() as connection:
        commitment = _record_report(connection, report, peers)
    reach(Step.REPORTED, commitment_id=commitment.id)
    return commitment


def are_reported(connection: Connection, asked: Iterable[Commitment]) -> bool:
    """Say whether a report has come on each of these."""
    query = select(func.count()).where(commitments.c.id.in_([one.id for one in asked]), commitments.c.state == "asked")
    return connection.execute(query).scalar_one() == 0


def fetch_reported(connection: Connection, destination: str) -> list[Commitment]:
    """Return, and in a transaction that writes hold, those whose report is to be settled."""
    return _hold(connection, (commitments.c.state == "reported") & (commitments.c.destination == destination))


def fetch_overdue(connection: Connection, destination: str, now: float, wait_at_most_s: float) -> list[Commitment]:
    """Return, and in a transaction that writes hold, those whose report has not come in time."""
    is_late = (commitments.c.not_before <= now) | (commitments.c.not_before > now + wait_at_most_s)
    return _hold(connection, (commitments.c.state == "asked") & (commitments.c.destination == destination) & is_late)


def fetch_due(connection: Connection, turn: Turn) -> list[Commitment]:
    """Return, and in a transaction that writes hold, those that are to be asked now of a peer."""
    return _hold(connection, _is_due(turn))


def fetch_uncommitted(connection: Connection) -> dict[str, int]:
    """Return how many instances each destination was sent and has not committed, though it was asked and late to."""
    is_troubled = (commitments.c.state == "dead") | (commitments.c.attempts > 1)
    query = select(outbox.c.destination, func.count()).join(commitments, commitments.c.id == outbox.c.commitment_id)
    counted = query.where(outbox.c.state == "sent", is_troubled).group_by(outbox.c.destination)
    return {row[0]: row[1] for row in connection.execute(counted)}


def put_commitment_off(connection: Connection, commitment: Commitment, not_before: float, reason: str) -> None:
    """Ask later under the same UID: it was not sent."""
    values = {"not_before": not_before, "reason": reason, "attempts": commitments.c.attempts + 1, "lease_until": None}
    connection.execute(update(commitments).where(commitments.c.id == commitment.id).values(values))


def release_commitments(connection: Connection, claimed: Iterable[Commitment]) -> None:
    """Give claimed rows back unchanged: they were not asked."""
    for one in claimed:
        held = (commitments.c.id == one.id) & (commitments.c.token == one.token) & (commitments.c.state == "owed")
        connection.execute(update(commitments).where(held).values(lease_until=None))


def renew_commitment(
    connection: Connection, commitment: Commitment, not_before: float, reason: str, now: float
) -> Commitment | None:
    """Let another transaction, with one attempt more if this was not `asked`, take the place of this one."""
    rows = [sent.id for sent in fetch_sent_rows(connection, commitment)]
    another = ask_again(connection, commitment, rows, not_before, reason, now)
    _finish(connection, commitment, "failed", reason)
    return another


def ask_again(
    connection: Connection, commitment: Commitment, row_ids: Collection[int], not_before: float, reason: str, now: float
) -> Commitment | None:
    """Owe a new transaction for these rows of an old one, unless there are none."""
    if not row_ids:
        return None
    attempts = commitment.attempts + (commitment.state == "owed")
    where = (commitment.destination, commitment.peer)
    uid = _add(connection, *where, row_ids, attempts=attempts, not_before=not_before, now=now, reason=reason)
    row = connection.execute(select(commitments).where(commitments.c.transaction_uid == uid)).mappings().one()
    return Commitment(**row)


def give_commitment_up(connection: Connection, commitment: Commitment, reason: str) -> None:
    """Ask no more: what is not committed stays `sent`, and says so."""
    record_uncommitted(connection, [sent.id for sent in fetch_sent_rows(connection, commitment)], reason)
    _finish(connection, commitment, "dead", reason)


def end_commitment(connection: Connection, commitment: Commitment, reason: str) -> None:
    """Ask no more, and send nothing again; what a report says is safe is committed."""
    if commitment.report is None:
        give_commitment_up(connection, commitment, reason)
        return
    safe = frozenset(commitment.report["committed"])
    rows = fetch_sent_rows(connection, commitment)
    record_committed(connection, [row.id for row in rows if row.reference.sop_instance_uid in safe])
    record_uncommitted(connection, [row.id for row in rows if row.reference.sop_instance_uid not in safe], reason)
    finish_settled(connection, commitment, reason)


def finish_settled(connection: Connection, commitment: Commitment, reason: str) -> None:
    """Record that everything a report says has been seen to; what it leaves `sent` is asked for no more."""
    state = "dead" if fetch_sent_rows(connection, commitment) else "settled"
    _finish(connection, commitment, state, reason)


def record_committed(connection: Connection, row_ids: Collection[int]) -> None:
    """Record that the destination keeps these safe; what it said when it took them stays."""
    reason = case((outbox.c.reason.startswith(NOT_COMMITTED), ""), else_=outbox.c.reason)
    _move(connection, row_ids, state="committed", reason=reason)


def record_uncommitted(connection: Connection, row_ids: Collection[int], reason: str) -> None:
    """Say of rows that stay `sent` why they are not committed."""
    _move(connection, row_ids, reason=f"{NOT_COMMITTED}{reason}")


def owe_again(connection: Connection, row_id: int, not_before: float, reason: str) -> bool:
    """Send an instance again that the destination does not have any more.

    False, and the row is given up, where it is not to be sent: whoever removed it there may have done so for that.
    """
    if withheld := find_withheld(connection, row_id):
        record_refused(connection, row_id, f"{reason}; not sent again: {withheld}")
        return False
    _move(connection, [row_id], state="retry", not_before=not_before, reason=reason, commitment_id=None)
    return True


def record_refused(connection: Connection, row_id: int, reason: str) -> None:
    """Give an instance up that the destination will never commit."""
    _move(connection, [row_id], state="dead", reason=reason)


def _move(connection: Connection, row_ids: Collection[int], **values: Any) -> None:
    if row_ids:
        rows = update(outbox).where(outbox.c.id.in_(row_ids), outbox.c.state == "sent")
        connection.execute(rows.values(**values))


def _add(
    connection: Connection,
    destination: str,
    peer: str,
    row_ids: Collection[int],
    *,
    attempts: int,
    not_before: float,
    now: float,
    reason: str = "",
) -> str:
    uid = make_transaction_uid()
    values = {"transaction_uid": uid, "destination": destination, "peer": peer, "state": "owed", "reason": reason}
    new = insert(commitments).values(**values, attempts=attempts, not_before=not_before, created_at=now)
    commitment_id = connection.execute(new.returning(commitments.c.id)).scalar_one()
    _move(connection, row_ids, commitment_id=commitment_id, is_commitment_owed=False)
    return uid


def _finish(connection: Connection, commitment: Commitment, state: str, reason: str) -> None:
    if state not in COMMITMENT_MOVES[commitment.state]:
        raise StateError(f"commitment {commitment.id}: {commitment.state} does not become {state}")
    values = {"state": state, "reason": reason, "report": None, "lease_until": None}
    connection.execute(update(commitments).where(commitments.c.id == commitment.id).values(values))


def _hold(connection: Connection, condition: Any) -> list[Commitment]:
    query: Select[Any] = select(commitments).where(condition).order_by(commitments.c.id)
    if not connection.get_execution_options().get("dicomnode_read_only", False):
        query = query.with_for_update(skip_locked=True)
    return [_commitment(row) for row in connection.execute(query).mappings()]


def _is_due(turn: Turn) -> Any:
    return is_due(commitments, turn, ["owed"])


def _commitment(row: RowMapping) -> Commitment:
    return Commitment(**row)


def _record_report(connection: Connection, report: Report, peers: Collection[str]) -> Commitment:
    known = select(commitments).where(commitments.c.transaction_uid == report.transaction_uid).with_for_update()
    row = connection.execute(known).mappings().first()
    if row is None or row["peer"] not in peers:
        whom = "nobody was asked" if row is None else f"{row['peer']} was asked"
        raise StateError(f"transaction {report.transaction_uid}: {whom} to commit anything under this UID")
    commitment = Commitment(**row)
    if commitment.state in TAKES_REPORT:
        said = {
            "committed": [one.sop_instance_uid for one in report.committed],
            "failed": {one.sop_instance_uid: reason for one, reason in report.failed.items()},
        }
        values = {"state": "reported", "report": said, "lease_until": None}
        connection.execute(update(commitments).where(commitments.c.id == commitment.id).values(values))
    return commitment
