"""What peers are to be asked for a series: how many instances it has, which priors there are, and one to be fetched.

Flow: pairing > [queries] > send/queries > series.source_count, priors; cli reads
Never: two callers that hold one query: a claim gives a lease and a fencing token, as for jobs; an identity in a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, RowMapping, insert, select, update

from dicomnode.database.engine import Database
from dicomnode.database.index import PatientIdentity
from dicomnode.database.schema import patients, priors, queries, series, studies
from dicomnode.database.series import IDENTITY, make_identity
from dicomnode.database.turns import Turn, claim_rows, is_due
from dicomnode.errors import LeaseLostError

Kind = Literal["count", "priors", "fetch"]
QUERY_MOVES: Mapping[str, frozenset[str]] = {
    "owed": frozenset({"done", "retry", "failed"}),
    "retry": frozenset({"done", "retry", "failed"}),
    "done": frozenset(),
    "failed": frozenset(),
}
UNANSWERED = ("owed", "retry")


@dataclass(frozen=True)
class Query:
    """One question to one peer, and what is known of the series it is about; instants in UTC epoch seconds."""

    id: int
    kind: Kind
    series_id: int
    prior_id: int | None
    peer: str
    state: str
    reason: str
    attempts: int
    token: int
    lease_until: float | None
    not_before: float
    created_at: float
    finished_at: float | None


@dataclass(frozen=True)
class Subject:
    """What a question is about: for `fetch` the prior, else the series that is here."""

    study_uid: str
    series_uid: str
    study_date: str
    modality: str
    patient: PatientIdentity


def add_query(
    connection: Connection, kind: Kind, series_id: int, peer: str, now: float, prior_id: int | None = None
) -> None:
    """Owe a question to a peer."""
    values = {"kind": kind, "series_id": series_id, "prior_id": prior_id, "peer": peer, "state": "owed"}
    connection.execute(insert(queries).values(**values, not_before=now, created_at=now))


def has_due_queries(connection: Connection, turn: Turn) -> bool:
    """Say whether something is due to be asked of a peer."""
    return connection.execute(select(queries.c.id).where(_is_due(turn)).limit(1)).first() is not None


def claim_query(database: Database, turn: Turn) -> Query | None:
    """Take the oldest question to a peer that is due, or None."""
    with database.write() as connection:
        ids = claim_rows(connection, queries, _is_due(turn), turn.now + turn.lease_s, limit=1)
        return fetch_query(connection, ids[0]) if ids else None


def finish_query(connection: Connection, query: Query, state: str, now: float, reason: str = "") -> None:
    """Record that a claimed question is `done`, or `failed` for good.

    Raises
    ------
    LeaseLostError
        If another caller claimed it since; nothing changed.
    """
    _leave(connection, query, state=state, reason=reason, finished_at=now)


def put_query_off(connection: Connection, query: Query, not_before: float, reason: str) -> None:
    """Ask again later, after a transient failure; raises `LeaseLostError` as `finish_query` does."""
    _leave(connection, query, state="retry", reason=reason, not_before=not_before)


def record_source_count(connection: Connection, series_id: int, count: int) -> None:
    """Record how many instances a peer that has the series counts."""
    connection.execute(update(series).where(series.c.id == series_id).values(source_count=count))


def fetch_subject(connection: Connection, query: Query) -> Subject:
    """Return what a question is about, with whose it is."""
    if query.prior_id is not None:
        chosen = select(priors, *IDENTITY).join(patients, patients.c.id == priors.c.patient_id)
        return _subject(connection.execute(chosen.where(priors.c.id == query.prior_id)).one())
    here = (
        select(series, studies.c.study_uid, studies.c.study_date, *IDENTITY)
        .join(studies, studies.c.id == series.c.study_id)
        .join(patients, patients.c.id == series.c.patient_id)
    )
    return _subject(connection.execute(here.where(series.c.id == query.series_id)).one())


def fetch_query(connection: Connection, query_id: int) -> Query | None:
    """Return one question, or None."""
    row = connection.execute(select(queries).where(queries.c.id == query_id)).mappings().first()
    return None if row is None else _query(row)


def fetch_queries(connection: Connection, series_ids: Iterable[int]) -> list[Query]:
    """Return the questions that were owed for these series, oldest first."""
    asked = select(queries).where(queries.c.series_id.in_(list(series_ids))).order_by(queries.c.id)
    return [_query(row) for row in connection.execute(asked).mappings()]


def _is_due(turn: Turn) -> Any:
    return is_due(queries, turn, UNANSWERED)


def _leave(connection: Connection, query: Query, *, state: str, **values: Any) -> None:
    is_held = (queries.c.id == query.id) & (queries.c.token == query.token) & queries.c.state.in_(UNANSWERED)
    moved = update(queries).where(is_held).values(state=state, lease_until=None, **values)
    if state not in QUERY_MOVES[query.state] or connection.execute(moved).rowcount == 0:
        raise LeaseLostError(f"query {query.id}: token {query.token} does not hold it any more")


def _subject(row: Row[Any]) -> Subject:
    return Subject(row.study_uid, row.series_uid, row.study_date, row.modality, make_identity(row))


def _query(row: RowMapping) -> Query:
    return Query(**row)
