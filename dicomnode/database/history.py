"""Ends rows that only say what was once done: settled, old, and nothing asks for them any more.

Flow: housekeeping/history > [history] > schema; cli reads
Never: a row that is owed, awaited or waits for a person; one that tells what was received or made and where it went;
the newest row of a table, whose number would be given a second time (SQLite counts on from the highest there is).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Select, Table, delete, func, or_, select, true, update

from dicomnode.database.commitment_requests import UNREPORTED
from dicomnode.database.commitments import COMMITMENT_MOVES
from dicomnode.database.index import DELETED
from dicomnode.database.notices import UNSENT, is_still_so
from dicomnode.database.queries import UNANSWERED
from dicomnode.database.schema import (
    associations,
    commitment_refusals,
    commitment_requests,
    commitments,
    conflicts,
    deletions,
    instances,
    notice_causes,
    notices,
    outbox,
    priors,
    queries,
    series,
)


@dataclass(frozen=True)
class Rule:
    """When rows of a table go: `is_over` is true of them, and `at` (UTC epoch seconds) is long ago."""

    table: Table
    at: ColumnElement[Any]
    is_over: ColumnElement[bool]
    stays: str  # what of it stays, however old
    parts: tuple[Column[Any], ...] = ()  # whose rows refer to one, and go with it
    references: tuple[Column[Any], ...] = ()  # that refer to one, and are emptied


@dataclass(frozen=True)
class Aged:
    """How many rows of a table are to go, how many stay, and what it is that stays."""

    table: str
    going: int
    staying: int
    stays: str


_OVER = tuple(state for state, moves in COMMITMENT_MOVES.items() if not moves or state == "dead")
_has_files = or_(
    select(instances.c.id).where(instances.c.association_id == associations.c.id).exists(),
    select(conflicts.c.id).where(conflicts.c.association_id == associations.c.id).exists(),
)
_is_sent_under_it = select(outbox.c.id).where(outbox.c.commitment_id == commitments.c.id, outbox.c.state == "sent")
_is_open_cause = select(notice_causes.c.id).where(notice_causes.c.notice_id == notices.c.id, is_still_so())
_seeker = select(series.c.id).where(series.c.state == DELETED)
_wanted = select(series.c.series_uid).where(series.c.state != DELETED)
_asked = select(queries.c.id).where(queries.c.series_id == priors.c.series_id)
_last_of_seeker = select(series.c.last_received_at).where(series.c.id == priors.c.series_id)

# In this order: what refers to others goes before them.
RULES = (
    Rule(deletions, deletions.c.done_at, deletions.c.done_at.is_not(None), "deletions that have not ended"),
    Rule(
        associations,
        associations.c.closed_at,
        associations.c.closed_at.is_not(None) & ~_has_files,
        "those that brought what is kept",
    ),
    Rule(
        commitments,
        commitments.c.created_at,
        commitments.c.state.in_(_OVER) & ~_is_sent_under_it.exists(),
        "those of which something is sent and not committed",
        references=(outbox.c.commitment_id,),
    ),
    Rule(
        commitment_requests,
        commitment_requests.c.requested_at,
        commitment_requests.c.state.not_in(UNREPORTED),
        "those whose report is owed",
    ),
    Rule(commitment_refusals, commitment_refusals.c.last_at, true(), "those of late"),
    Rule(
        notices,
        notices.c.created_at,
        notices.c.state.not_in(UNSENT) & ~_is_open_cause.exists(),
        "those that are owed, or about what still needs a person",
        parts=(notice_causes.c.notice_id,),
    ),
    Rule(
        queries,
        queries.c.finished_at,
        queries.c.state.not_in(UNANSWERED) & queries.c.series_id.in_(_seeker),
        "those about series that are kept",
    ),
    Rule(
        priors,
        _last_of_seeker.scalar_subquery(),
        priors.c.series_id.in_(_seeker) & ~_asked.exists() & priors.c.series_uid.not_in(_wanted),
        "those of series that are kept",
    ),
)


def end_rows(connection: Connection, before: float, limit: int) -> Mapping[str, int]:
    """Delete what was over before an instant (UTC epoch seconds), at most `limit` rows of each table.

    Returns
    -------
    mapping
        How many rows went, by table; tables of which none did are left out.
    """
    ended: dict[str, int] = {}
    for rule in RULES:
        due = _due(rule, rule.table.c.id, before).order_by(rule.table.c.id).limit(limit)
        # FOR UPDATE SKIP LOCKED on PostgreSQL; SQLite holds the only write lock since BEGIN IMMEDIATE.
        ids = list(connection.execute(due.with_for_update(skip_locked=True, of=rule.table)).scalars())
        if not ids:
            continue
        for column in rule.parts:
            connection.execute(delete(column.table).where(column.in_(ids)))
        for column in rule.references:
            connection.execute(update(column.table).where(column.in_(ids)).values({column.name: None}))
        ended[rule.table.name] = connection.execute(delete(rule.table).where(rule.table.c.id.in_(ids))).rowcount
    return ended


def count_rows(connection: Connection, before: float | None) -> list[Aged]:
    """Return, of each table whose rows end, how many do that were over before an instant; None is never."""
    counted = []
    for rule in RULES:
        rows = connection.execute(select(func.count()).select_from(rule.table)).scalar_one()
        going = 0 if before is None else connection.execute(_due(rule, func.count(), before)).scalar_one()
        counted.append(Aged(rule.table.name, going, rows - going, rule.stays))
    return counted


def _due(rule: Rule, what: Any, before: float) -> Select[Any]:
    newest = select(func.max(rule.table.alias("newest").c.id)).scalar_subquery()
    is_due = rule.is_over & (rule.at < before) & (rule.table.c.id < newest)
    return select(what).select_from(rule.table).where(is_due)
