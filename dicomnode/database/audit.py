"""The spool of the audit trail, and which transfers it does not tell of yet.

Flow: app, receive, send > [audit] > send/audit
Never: a PatientID in a message (`fetch_patient_ids` gives it for the moment of sending); a message that is given up
unsaid; two senders that hold one channel.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, true, update

from dicomnode.database.engine import Database
from dicomnode.database.index import insert_new
from dicomnode.database.outbox import UNSENT
from dicomnode.database.schema import (
    associations,
    audit_channels,
    audit_messages,
    instances,
    jobs,
    outbox,
    outputs,
    pairs,
    patients,
    series,
    studies,
)
from dicomnode.database.turns import is_free
from dicomnode.errors import LeaseLostError

SENT = ("sent", "committed")
AT_ONCE = 100  # associations, or groups of rows, in one transaction


@dataclass(frozen=True)
class Received:
    """What one association brought of one study and patient; `sop_classes` counts by SOP Class UID."""

    calling_ae: str
    address: str
    study_uid: str
    patient_row: int
    sop_classes: dict[str, int]
    at: float  # UTC epoch seconds: when the association ended


@dataclass(frozen=True)
class Sent:
    """What a destination has taken of one job; `path` of one of its instances, below the storage root."""

    destination: str
    job_id: int
    path: str
    patient_row: int
    sop_classes: Mapping[str, int]
    at: float  # UTC epoch seconds: when the last of them was sent


@dataclass(frozen=True)
class Kept:
    """What the node keeps of one series, until it is deleted; `sop_classes` counts by SOP Class UID."""

    study_uid: str
    patient_row: int
    sop_classes: Mapping[str, int]


@dataclass(frozen=True)
class AuditMessage:
    """One message that waits for a channel."""

    id: int
    recorded_at: float
    text: str


@dataclass(frozen=True)
class ChannelClaim:
    """The right to send to a channel, as long as nobody claimed it after; `attempts` failed in a row before."""

    name: str
    token: int
    attempts: int


@dataclass(frozen=True)
class ChannelState:
    """How a channel does: how many messages wait for it, and why it takes none, if it does not."""

    name: str
    waiting: int
    reason: str


def open_audit(connection: Connection, channels: Iterable[str], now: float) -> None:
    """Begin the audit trail of these channels; what was transferred before there was one is not told of."""
    if connection.execute(select(audit_channels.c.name)).first() is None:
        connection.execute(update(associations).where(associations.c.closed_at.is_not(None)).values(is_audited=true()))
        connection.execute(update(outbox).where(outbox.c.state.in_(SENT)).values(is_audited=true()))
    rows = [{"name": name, "reason": "", "attempts": 0, "token": 0, "not_before": now} for name in channels]
    if rows:
        new = insert_new(connection.dialect.name, audit_channels).on_conflict_do_nothing(index_elements=["name"])
        connection.execute(new, rows)


def record_message(connection: Connection, channels: Iterable[str], text: str, now: float) -> None:
    """Let a message wait for each of these channels."""
    rows = [{"channel": name, "recorded_at": now, "text": text} for name in channels]
    if rows:
        connection.execute(insert(audit_messages), rows)


def fetch_kept(connection: Connection, series_id: int) -> Kept:
    """Return what the node keeps of a series."""
    of_series = (
        select(studies.c.study_uid, series.c.patient_id)
        .join(series, series.c.study_id == studies.c.id)
        .where(series.c.id == series_id)
    )
    uid = instances.c.sop_class_uid
    counted = select(uid, func.count().label("instance_count")).where(instances.c.series_id == series_id).group_by(uid)
    counts = {row.sop_class_uid: row.instance_count for row in connection.execute(counted)}
    study_uid, patient_row = connection.execute(of_series).one()
    return Kept(study_uid, patient_row, counts)


def has_untold(connection: Connection) -> bool:
    """Tell whether there is a transfer that the audit trail may have to tell of."""
    closed = select(associations.c.id).where(~associations.c.is_audited, associations.c.closed_at.is_not(None))
    sent = select(outbox.c.id).where(~outbox.c.is_audited, outbox.c.state.in_(SENT))
    return any(connection.execute(query.limit(1)).first() is not None for query in (closed, sent))


def take_received(connection: Connection) -> list[Received]:
    """Return what associations that have ended brought, and mark them as told of."""
    ended = (
        select(associations.c.id)
        .where(~associations.c.is_audited, associations.c.closed_at.is_not(None))
        .order_by(associations.c.id)
        .limit(AT_ONCE)
    )
    # FOR UPDATE SKIP LOCKED on PostgreSQL; SQLite holds the only write lock since BEGIN IMMEDIATE.
    ids = list(connection.execute(ended.with_for_update(skip_locked=True)).scalars())
    connection.execute(update(associations).where(associations.c.id.in_(ids)).values(is_audited=true()))
    brought = (
        select(
            associations.c.id,
            associations.c.calling_ae,
            associations.c.address,
            associations.c.closed_at,
            studies.c.study_uid,
            series.c.patient_id,
            instances.c.sop_class_uid,
            func.count().label("instance_count"),
        )
        .join_from(instances, associations, associations.c.id == instances.c.association_id)
        .join(series, series.c.id == instances.c.series_id)
        .join(studies, studies.c.id == series.c.study_id)
        .where(associations.c.id.in_(ids))
        .group_by(associations.c.id, studies.c.study_uid, series.c.patient_id, instances.c.sop_class_uid)
        .order_by(associations.c.id, studies.c.study_uid)
    )
    groups: dict[tuple[int, str, int], Received] = {}
    for row in connection.execute(brought):
        whole = Received(row.calling_ae, row.address, row.study_uid, row.patient_id, {}, row.closed_at)
        group = groups.setdefault((row.id, row.study_uid, row.patient_id), whole)
        group.sop_classes[row.sop_class_uid] = row.instance_count
    return list(groups.values())


def take_sent(connection: Connection, now: float, wait_s: float) -> list[Sent]:
    """Return what destinations have taken, and mark it as told of.

    That is by job and destination: when all of the job is there that will be, or the first has waited for `wait_s`.
    """
    ready = (
        select(
            outbox.c.id,
            outbox.c.destination,
            outbox.c.sent_at,
            outputs.c.job_id,
            outputs.c.path,
            outputs.c.sop_class_uid,
            series.c.patient_id,
        )
        .join(outputs, outputs.c.id == outbox.c.output_id)
        .join(jobs, jobs.c.id == outputs.c.job_id)
        .join(pairs, pairs.c.id == jobs.c.pair_id)
        .join(series, series.c.id == pairs.c.fixed_series_id)
        .where(~outbox.c.is_audited, outbox.c.state.in_(SENT))
        .order_by(outbox.c.id)
    )
    groups: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for row in connection.execute(ready.with_for_update(skip_locked=True, of=outbox)):
        groups[row.destination, row.job_id].append(row)
    told = []
    for (destination, job_id), rows in groups.items():
        first_at = min(row.sent_at for row in rows)
        if not (first_at <= now < first_at + wait_s and _is_going_on(connection, destination, job_id)):
            counts = Counter(row.sop_class_uid for row in rows)
            last_at = max(row.sent_at for row in rows)
            told.append(Sent(destination, job_id, rows[0].path, rows[0].patient_id, counts, last_at))
            ids = [row.id for row in rows]
            connection.execute(update(outbox).where(outbox.c.id.in_(ids)).values(is_audited=true()))
    return told


def give_up_oldest(connection: Connection, channel: str, messages_at_most: int) -> tuple[int, float, float] | None:
    """Delete what is too much, the oldest first, and a tenth besides.

    Returns
    -------
    messages, first_at, last_at : int, float, float
        How many, and when the first and the last of them were recorded (UTC epoch seconds); None where none.
    """
    of_channel = audit_messages.c.channel == channel
    waiting = connection.execute(select(func.count()).select_from(audit_messages).where(of_channel)).scalar_one()
    if waiting <= messages_at_most:
        return None
    too_many = waiting - messages_at_most + messages_at_most // 10
    ids = select(audit_messages.c.id).where(of_channel).order_by(audit_messages.c.id).limit(too_many)
    ends = select(func.count(), func.min(audit_messages.c.recorded_at), func.max(audit_messages.c.recorded_at))
    count, first_at, last_at = connection.execute(ends.where(audit_messages.c.id.in_(ids))).one()
    connection.execute(audit_messages.delete().where(audit_messages.c.id.in_(ids)))
    return int(count), float(first_at), float(last_at)


def claim_channel(
    database: Database, name: str, now: float, lease_s: float, wait_at_most_s: float
) -> ChannelClaim | None:
    """Take a channel for which something waits and that need not wait itself, or None."""
    waits = select(audit_messages.c.id).where(audit_messages.c.channel == name).exists()
    found = select(audit_channels).where(audit_channels.c.name == name, waits)
    found = found.where(is_free(audit_channels, now, lease_s, wait_at_most_s))
    with database.read() as connection:
        if connection.execute(found).first() is None:
            return None
    with database.write() as connection:
        row = connection.execute(found.with_for_update(skip_locked=True, of=audit_channels)).first()
        if row is None:
            return None
        taken = update(audit_channels).where(audit_channels.c.name == name)
        connection.execute(taken.values(token=row.token + 1, lease_until=now + lease_s))
        return ChannelClaim(name, row.token + 1, row.attempts)


def fetch_messages(connection: Connection, channel: str, at_most: int) -> list[AuditMessage]:
    """Return the oldest messages that wait for a channel, in the order in which they were recorded."""
    query = select(audit_messages.c.id, audit_messages.c.recorded_at, audit_messages.c.text)
    oldest = query.where(audit_messages.c.channel == channel).order_by(audit_messages.c.id).limit(at_most)
    return [AuditMessage(*row) for row in connection.execute(oldest)]


def fetch_patient_ids(connection: Connection, rows: Iterable[int]) -> dict[int, str]:
    """Return the PatientIDs behind the node's own numbers."""
    query = select(patients.c.id, patients.c.patient_id).where(patients.c.id.in_(list(rows)))
    return {row.id: row.patient_id for row in connection.execute(query)}


def remove_messages(
    connection: Connection, claim: ChannelClaim, messages: Iterable[AuditMessage], lease_until: float
) -> None:
    """Forget messages that have arrived, and keep the channel; raises `LeaseLostError` if another sender has it now."""
    _keep(connection, claim, lease_until=lease_until, attempts=0, reason="")
    ids = [message.id for message in messages]
    connection.execute(audit_messages.delete().where(audit_messages.c.id.in_(ids)))


def release_channel(
    connection: Connection, claim: ChannelClaim, *, not_before: float, attempts: int = 0, reason: str = ""
) -> None:
    """Give a channel up, until `not_before` if it failed; raises `LeaseLostError` as `remove_messages` does."""
    _keep(connection, claim, lease_until=None, not_before=not_before, attempts=attempts, reason=reason)


def fetch_channel_states(connection: Connection) -> list[ChannelState]:
    """Return how every channel does."""
    waits = audit_messages.c.channel == audit_channels.c.name
    waiting = select(func.count()).select_from(audit_messages).where(waits).scalar_subquery()
    query = select(audit_channels.c.name, waiting.label("waiting"), audit_channels.c.reason)
    return [ChannelState(*row) for row in connection.execute(query.order_by(audit_channels.c.name))]


def _is_going_on(connection: Connection, destination: str, job_id: int) -> bool:
    """Tell whether more of a job is owed to a destination."""
    unsent = select(outbox.c.id).join(outputs, outputs.c.id == outbox.c.output_id).where(outputs.c.job_id == job_id)
    query = unsent.where(outbox.c.destination == destination, outbox.c.state.in_(UNSENT)).limit(1)
    return connection.execute(query).first() is not None


def _keep(connection: Connection, claim: ChannelClaim, **values: Any) -> None:
    is_held = (audit_channels.c.name == claim.name) & (audit_channels.c.token == claim.token)
    if connection.execute(update(audit_channels).where(is_held).values(values)).rowcount == 0:
        raise LeaseLostError(f"audit channel {claim.name}: token {claim.token} does not hold it any more")
