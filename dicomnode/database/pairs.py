"""Which MR and PET belong together: the decision, what it was made from, and a person's word on it.

Flow: pairing > [pairs] > jobs; cli reads
Never: a rule (those stand in `pairing`); an identity in a reason or an explanation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, insert, select, union, update

from dicomnode.database.index import MIXED_REASONS
from dicomnode.database.schema import pairs, patients, series
from dicomnode.database.series import IdentifiedSeries, fetch_instance_uids, fetch_series_by_id
from dicomnode.errors import StateError

# `held` waits for a person; the node itself rejects only what a newer pair of the same two series replaces.
PAIR_MOVES: Mapping[str, frozenset[str]] = {
    "held": frozenset({"ready", "rejected"}),
    "ready": frozenset({"rejected"}),
    "rejected": frozenset(),
}


@dataclass(frozen=True)
class NewPair:
    """A decision to record."""

    fixed_series_id: int
    moving_series_id: int
    input_digest: str
    state: str
    reason: str
    explanation: Mapping[str, Any]
    is_requested: bool = False


@dataclass(frozen=True)
class Pair:
    """A decision as recorded; `created_at` in UTC epoch seconds."""

    id: int
    fixed_series_id: int
    moving_series_id: int
    fixed_series_uid: str
    moving_series_uid: str
    input_digest: str
    state: str
    reason: str
    is_requested: bool
    explanation: Mapping[str, Any]
    created_at: float


def add_pair(connection: Connection, pair: NewPair, now: float) -> int | None:
    """Record a pair and return its id, or None if the same instances were paired before, whatever came of it."""
    same = _same_series(pair) & (pairs.c.input_digest == pair.input_digest)
    if connection.execute(select(pairs.c.id).where(same)).first() is not None:
        return None
    key = connection.execute(insert(pairs).values(**vars(pair), created_at=now)).inserted_primary_key
    assert key is not None  # noqa: S101  a single-row insert always has one
    return int(key[0])


def reject_superseded_pairs(connection: Connection, pair: NewPair, reason: str) -> list[int]:
    """Reject the held pairs of the same two series made from other instances.

    Returns
    -------
    ids : list of int
        Of all other pairs of these two series: their jobs that have not started are superseded as well.
    """
    others = _same_series(pair) & (pairs.c.input_digest != pair.input_digest)
    held = others & (pairs.c.state == "held")
    connection.execute(update(pairs).where(held).values(state="rejected", reason=reason))
    return list(connection.execute(select(pairs.c.id).where(others)).scalars())


def move_pair(connection: Connection, pair_id: int, state: str, reason: str) -> None:
    """Move a pair to another state; raises `StateError` if there is no such pair or `PAIR_MOVES` does not allow it."""
    allowed = [old for old, new in PAIR_MOVES.items() if state in new]
    is_movable = (pairs.c.id == pair_id) & pairs.c.state.in_(allowed)
    if connection.execute(update(pairs).where(is_movable).values(state=state, reason=reason)).rowcount == 0:
        pair = fetch_pair(connection, pair_id)
        raise StateError(f"pair {pair_id}: it is {pair.state}, {' or '.join(sorted(allowed))} is needed")


def fetch_pairs(connection: Connection, states: Iterable[str] = ()) -> list[Pair]:
    """Return the pairs in any of these states, or all, oldest first."""
    wanted = list(states)
    query = _query().where(pairs.c.state.in_(wanted)) if wanted else _query()
    return [_pair(row) for row in connection.execute(query).mappings()]


def fetch_pair(connection: Connection, pair_id: int) -> Pair:
    """Return one pair; raises `StateError` if there is none with this id."""
    row = connection.execute(_query().where(pairs.c.id == pair_id)).mappings().first()
    if row is None:
        raise StateError(f"pair {pair_id}: there is no pair with this number")
    return _pair(row)


def lock_pair(connection: Connection, pair_id: int) -> Pair:
    """Return one pair as `fetch_pair` does; nobody else moves it until the end of the transaction."""
    connection.execute(select(pairs.c.id).where(pairs.c.id == pair_id).with_for_update())
    return fetch_pair(connection, pair_id)


def fetch_patient_series(connection: Connection, patient_id: str) -> list[IdentifiedSeries]:
    """Return every series received under a PatientID, whatever its issuer, by id; the rows stay locked until the end.

    Those that a person asked to pair with one of them are among them. The lock keeps two nodes that share a PostgreSQL
    database from pairing one patient at once.
    """
    of_patient = select(series.c.id).join(patients).where(patients.c.patient_id == patient_id)
    asked = _is_requested()
    partners = union(
        select(pairs.c.fixed_series_id).where(asked, pairs.c.moving_series_id.in_(of_patient)),
        select(pairs.c.moving_series_id).where(asked, pairs.c.fixed_series_id.in_(of_patient)),
    )
    wanted = select(series.c.id).where(series.c.id.in_(of_patient) | series.c.id.in_(partners)).order_by(series.c.id)
    ids = list(connection.execute(wanted.with_for_update()).scalars())
    return [fetch_series_by_id(connection, series_id) for series_id in ids]


def fetch_requests(connection: Connection, series_ids: Iterable[int]) -> dict[int, int]:
    """Return which MR a person asked each of these PETs to be laid on, the latest request for each: ids of series."""
    is_about = _is_requested() & pairs.c.moving_series_id.in_(list(series_ids))
    query = select(pairs.c.moving_series_id, pairs.c.fixed_series_id).where(is_about).order_by(pairs.c.id)
    return {row.moving_series_id: row.fixed_series_id for row in connection.execute(query)}


def fetch_pairs_of_series(connection: Connection, series_id: int) -> list[Pair]:
    """Return the pairs that a series was ever part of, oldest first."""
    is_part = (pairs.c.fixed_series_id == series_id) | (pairs.c.moving_series_id == series_id)
    return [_pair(row) for row in connection.execute(_query().where(is_part)).mappings()]


def fetch_input_digest(connection: Connection, fixed_series_id: int, moving_series_id: int) -> str:
    """Return the SHA-256, in hexadecimal, of the SOP Instance UIDs that both series hold now."""
    uids = [fetch_instance_uids(connection, series_id) for series_id in (fixed_series_id, moving_series_id)]
    return hashlib.sha256("\n\n".join("\n".join(of_series) for of_series in uids).encode("ascii")).hexdigest()


def is_current_pair(connection: Connection, pair: Pair) -> bool:
    """Say whether both series still hold the instances that a pair was made of, no others, and are one patient's."""
    ids = pair.fixed_series_id, pair.moving_series_id
    mixed = select(series.c.id).where(series.c.id.in_(ids), series.c.reason.in_(MIXED_REASONS))
    return pair.input_digest == fetch_input_digest(connection, *ids) and connection.execute(mixed).first() is None


def lock_parts(connection: Connection, pair: Pair) -> None:
    """Let nobody add to the series of a pair, or refuse one, until the end of the transaction."""
    parts = select(series.c.id).where(series.c.id.in_([pair.fixed_series_id, pair.moving_series_id]))
    connection.execute(parts.order_by(series.c.id).with_for_update(key_share=True))


def _same_series(pair: NewPair) -> Any:
    return (pairs.c.fixed_series_id == pair.fixed_series_id) & (pairs.c.moving_series_id == pair.moving_series_id)


def _is_requested() -> Any:
    """One that a person asked for and nobody has rejected since."""
    return pairs.c.is_requested & (pairs.c.state != "rejected")


def _query() -> Select[Any]:
    fixed, moving = series.alias("fixed"), series.alias("moving")
    return (
        select(pairs, fixed.c.series_uid.label("fixed_series_uid"), moving.c.series_uid.label("moving_series_uid"))
        .join(fixed, fixed.c.id == pairs.c.fixed_series_id)
        .join(moving, moving.c.id == pairs.c.moving_series_id)
        .order_by(pairs.c.id)
    )


def _pair(row: RowMapping) -> Pair:
    return Pair(**row)
