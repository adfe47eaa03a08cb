"""What people are to be told: what was noticed, once each, and the notices in which it goes out together.

Flow: jobs, pairing and send by their rows > [notices] > send/notices; cli reads
Never: a patient's identity, a description or a UID: what a notice is about is named by our own numbers. Two notices of
one kind to one channel within its window, or two senders that hold one notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    RowMapping,
    Select,
    Text,
    cast,
    func,
    insert,
    literal,
    select,
    union_all,
    update,
)

from dicomnode.database.engine import Database
from dicomnode.database.index import insert_new
from dicomnode.database.schema import commitments, jobs, notice_causes, notices, outbox, outputs, pairs
from dicomnode.database.turns import claim_rows, is_free
from dicomnode.errors import LeaseLostError, StateError

# As for the outbox.
NOTICE_MOVES: Mapping[str, frozenset[str]] = {
    "owed": frozenset({"sent", "retry", "dead"}),
    "retry": frozenset({"sent", "retry", "dead"}),
    "sent": frozenset(),
    "dead": frozenset(),
}
NOTICE_MOVES_BY_PERSON: Mapping[str, frozenset[str]] = {"dead": frozenset({"owed"})}
UNSENT = ("owed", "retry")
SUBJECTS_AT_MOST = 20  # named in one notice; the others are counted


@dataclass(frozen=True)
class Cause:
    """One thing that needs a person; `occurrence` tells one time from the next when the same befalls it again."""

    kind: str
    subject: str
    occurrence: float


@dataclass(frozen=True)
class Notice:
    """What is owed to one channel; instants in UTC epoch seconds. The first subjects are named, all are counted."""

    id: int
    channel: str
    kind: str
    state: str
    reason: str
    attempts: int
    token: int
    lease_until: float | None
    not_before: float
    created_at: float
    sent_at: float | None
    count: int
    subjects: tuple[str, ...]
    first_at: float  # when the first of them was noticed


@dataclass(frozen=True)
class DueNotice:
    """Which notice of a channel may be sent now (UTC epoch seconds), and for how long it is held then, s."""

    channel: str
    now: float
    lease_s: float
    wait_at_most_s: float


def fetch_unnoted(connection: Connection, channel: str, others: Iterable[Cause] = ()) -> list[Cause]:
    """Return what needs a person, by the rows or by `others`, and was not noted for a channel yet."""
    by_rows = [Cause(*row) for source in _sources() for row in connection.execute(_not_noted(source, channel))]
    return [*by_rows, *(cause for cause in others if not _is_noted(connection, channel, cause))]


def note_causes(connection: Connection, channel: str, causes: Iterable[Cause], now: float) -> None:
    """Note what needs a person, each once for a channel."""
    rows = [{"channel": channel, **vars(cause), "noticed_at": now} for cause in causes]
    if rows:
        statement = insert_new(connection.dialect.name, notice_causes).on_conflict_do_nothing(
            index_elements=["channel", "kind", "subject", "occurrence"]
        )
        connection.execute(statement, rows)


def fetch_owable_kinds(connection: Connection, channel: str, now: float, window_s: float) -> list[str]:
    """Return the kinds of which something waits for a channel, and a notice may be owed now."""
    query = select(notice_causes.c.kind).where(_is_waiting(channel)).distinct().order_by(notice_causes.c.kind)
    kinds = connection.execute(query).scalars().all()
    return [kind for kind in kinds if _is_owable(connection, channel, kind, now, window_s)]


def owe_notice(connection: Connection, channel: str, kind: str, now: float, window_s: float) -> int | None:
    """Owe a channel one notice of all that waits of a kind, and return its id.

    None while the notice before has not been sent, or is younger than the window: what waits then goes with the next.
    """
    if not _is_owable(connection, channel, kind, now, window_s):
        return None
    values = {"channel": channel, "kind": kind, "state": "owed", "not_before": now, "created_at": now}
    notice_id = connection.execute(insert(notices).values(values).returning(notices.c.id)).scalar_one()
    waiting = update(notice_causes).where(_is_waiting(channel), notice_causes.c.kind == kind)
    if connection.execute(waiting.values(notice_id=notice_id)).rowcount == 0:  # another node was faster
        connection.execute(notices.delete().where(notices.c.id == notice_id))
        return None
    return int(notice_id)


def is_notice_due(connection: Connection, due: DueNotice) -> bool:
    """Tell whether a notice could be claimed."""
    return connection.execute(select(notices.c.id).where(_is_due(due)).limit(1)).first() is not None


def claim_notice(database: Database, due: DueNotice) -> Notice | None:
    """Take the oldest notice of a channel that is due, or None."""
    with database.write() as connection:
        ids = claim_rows(connection, notices, _is_due(due), due.now + due.lease_s, limit=1)
        return fetch_notice(connection, ids[0]) if ids else None


def finish_notice(connection: Connection, notice: Notice, state: str, now: float, reason: str = "") -> None:
    """Record that a claimed notice is `sent`, or `dead`.

    Raises
    ------
    LeaseLostError
        If another sender claimed it since; nothing changed.
    """
    sent_at = now if state == "sent" else None
    _leave(connection, notice, state, reason=reason, sent_at=sent_at)


def put_notice_off(connection: Connection, notice: Notice, not_before: float, reason: str) -> None:
    """Try again later, after a transient failure; raises `LeaseLostError` as `finish_notice` does."""
    _leave(connection, notice, "retry", reason=reason, not_before=not_before)


def retry_notice(connection: Connection, notice_id: int, now: float) -> None:
    """Owe a dead notice again, on a person's word; raises `StateError` if there is none or it is not dead."""
    notice = fetch_notice(connection, notice_id)
    if "owed" not in NOTICE_MOVES_BY_PERSON.get(notice.state, frozenset()):
        raise StateError(f"notice {notice_id}: it is {notice.state}, dead is needed")
    values = {"state": "owed", "attempts": 0, "not_before": now}
    connection.execute(update(notices).where(notices.c.id == notice_id).values(values))


def fetch_notices(connection: Connection, states: Iterable[str] = ()) -> list[Notice]:
    """Return the notices in any of these states, or all, oldest first."""
    wanted = list(states)
    query = _query().where(notices.c.state.in_(wanted)) if wanted else _query()
    return [_notice(connection, row) for row in connection.execute(query).mappings().all()]


def fetch_notice(connection: Connection, notice_id: int) -> Notice:
    """Return one notice; raises `StateError` if there is none with this id."""
    row = connection.execute(_query().where(notices.c.id == notice_id)).mappings().first()
    if row is None:
        raise StateError(f"notice {notice_id}: there is no notice with this number")
    return _notice(connection, row)


def is_still_so() -> ColumnElement[bool]:
    """Return the condition that a row still needs the person who was told of it: a cause that goes is told again."""
    found = union_all(*_sources()).subquery()
    return (
        select(found.c.kind)
        .where(
            found.c.kind == notice_causes.c.kind,
            found.c.subject == notice_causes.c.subject,
            found.c.at == notice_causes.c.occurrence,
        )
        .exists()
    )


def _sources() -> Iterable[Select[Any]]:
    """Select kind, subject and occurrence of every row that needs a person.

    It is another occurrence once a job was claimed again (its token rises), a row owed again (its `not_before`), or its
    commitment asked for by another transaction (its number).
    """
    for kind, state in (("review", "review"), ("job_failed", "failed")):
        yield _source(kind, "job ", jobs.c.id, jobs.c.token).where(jobs.c.state == state)
    yield _source("review", "pair ", pairs.c.id, pairs.c.created_at).where(pairs.c.state == "held")
    # A person who rejects a result gives up what is unsent of it, and need not be told so.
    of_job = outputs.join(jobs, jobs.c.id == outputs.c.job_id)
    yield (
        _source("delivery_dead", "outbox row ", outbox.c.id, outbox.c.not_before)
        .join_from(outbox, of_job, outputs.c.id == outbox.c.output_id)
        .where(outbox.c.state == "dead", jobs.c.decision != "rejected")
    )
    # Found by the few transactions that were given up, each of one job: what is sent may be millions of rows.
    job_id = (
        select(jobs.c.id)
        .join_from(outbox, of_job, outputs.c.id == outbox.c.output_id)
        .where(outbox.c.commitment_id == commitments.c.id, outbox.c.state == "sent", jobs.c.decision != "rejected")
        .limit(1)
        .scalar_subquery()
    )
    is_given_up = (commitments.c.state == "dead") & job_id.is_not(None)
    yield _source("not_committed", "job ", job_id, commitments.c.id).where(is_given_up)


def _source(kind: str, noun: str, number: Any, occurrence: Any) -> Select[Any]:
    subject = literal(noun, Text) + cast(number, Text)
    return select(literal(kind, Text).label("kind"), subject.label("subject"), cast(occurrence, Double).label("at"))


def _not_noted(source: Select[Any], channel: str) -> Select[Any]:
    seen = source.subquery()
    same = (
        (notice_causes.c.channel == channel)
        & (notice_causes.c.kind == seen.c.kind)
        & (notice_causes.c.subject == seen.c.subject)
        & (notice_causes.c.occurrence == seen.c.at)
    )
    return select(seen).where(~select(notice_causes.c.id).where(same).exists())


def _is_noted(connection: Connection, channel: str, cause: Cause) -> bool:
    same = (notice_causes.c.kind == cause.kind) & (notice_causes.c.subject == cause.subject)
    query = select(notice_causes.c.id).where(same, notice_causes.c.occurrence == cause.occurrence)
    return connection.execute(query.where(notice_causes.c.channel == channel)).first() is not None


def _is_owable(connection: Connection, channel: str, kind: str, now: float, window_s: float) -> bool:
    of_kind = (notices.c.channel == channel) & (notices.c.kind == kind)
    created_at, unsent = connection.execute(
        select(func.max(notices.c.created_at), func.count().filter(notices.c.state.in_(UNSENT))).where(of_kind)
    ).one()
    return not unsent and (created_at is None or not created_at <= now < created_at + window_s)


def _is_waiting(channel: str) -> Any:
    return notice_causes.c.notice_id.is_(None) & (notice_causes.c.channel == channel)


def _is_due(due: DueNotice) -> Any:
    is_owed = (notices.c.channel == due.channel) & notices.c.state.in_(UNSENT)
    return is_owed & is_free(notices, due.now, due.lease_s, due.wait_at_most_s)


def _leave(connection: Connection, notice: Notice, state: str, **values: Any) -> None:
    if state not in NOTICE_MOVES[notice.state]:
        raise StateError(f"notice {notice.id}: {notice.state} does not become {state}")
    is_held = (notices.c.id == notice.id) & (notices.c.token == notice.token) & notices.c.state.in_(UNSENT)
    moved = update(notices).where(is_held).values(state=state, lease_until=None, **values)
    if connection.execute(moved).rowcount == 0:
        raise LeaseLostError(f"notice {notice.id}: token {notice.token} does not hold it any more")


def _query() -> Select[Any]:
    counted = select(
        notice_causes.c.notice_id, func.count().label("count"), func.min(notice_causes.c.noticed_at).label("first_at")
    ).group_by(notice_causes.c.notice_id)
    causes = counted.subquery()
    return (
        select(notices, causes.c["count"], causes.c.first_at)
        .join(causes, causes.c.notice_id == notices.c.id)
        .order_by(notices.c.id)
    )


def _notice(connection: Connection, row: RowMapping) -> Notice:
    named = select(notice_causes.c.subject).where(notice_causes.c.notice_id == row["id"])
    subjects = connection.execute(named.order_by(notice_causes.c.id).limit(SUBJECTS_AT_MOST)).scalars()
    return Notice(**row, subjects=tuple(subjects))
