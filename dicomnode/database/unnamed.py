"""Ends what is owed to peers that the settings name no more, so that it does not wait for ever without a word.

Flow: housekeeping > [unnamed] > schema; cli and notices read what became of it
Never: a row that somebody has tried within a day: settings are edited, and nodes on one database follow one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, select, tuple_, update

from dicomnode.database.commitment_requests import UNREPORTED
from dicomnode.database.commitments import AWAITED, NOT_COMMITTED, Commitment, end_commitment
from dicomnode.database.outbox import UNSENT
from dicomnode.database.queries import UNANSWERED
from dicomnode.database.schema import commitment_requests, commitments, outbox, queries

OLD_S = 86400.0


@dataclass(frozen=True)
class Named:
    """Whom the settings name: where results go, who is asked, who can be called, and which peer commits for whom."""

    destinations: Collection[str]
    answering: Collection[str]
    callable: Collection[str]
    committing: Mapping[str, str]  # peer by destination


def end_unnamed(connection: Connection, named: Named, now: float) -> Mapping[str, int]:
    """End what nobody has tried for a day (`now` in UTC epoch seconds), and is owed to whom the settings do not name.

    Returns
    -------
    mapping
        How many rows ended, by table; tables of which none did are left out.
    """
    before = now - OLD_S
    ended = {
        "outbox": _end_outbox(connection, named, before),
        "commitments": _end_commitments(connection, named, before),
        "queries": _end_queries(connection, named, before, now),
        "commitment_requests": _end_requests(connection, named, before),
    }
    return {table: count for table, count in ended.items() if count}


def _end_outbox(connection: Connection, named: Named, before: float) -> int:
    is_unnamed = outbox.c.destination.not_in(list(named.destinations)) & outbox.c.state.in_(UNSENT)
    reason = "it is no destination any more; name it in [[destinations]], then: dicomnode outbox retry"
    unsent = update(outbox).where(is_unnamed, outbox.c.not_before < before)
    return connection.execute(unsent.values(state="dead", reason=reason, lease_until=None)).rowcount


def _end_commitments(connection: Connection, named: Named, before: float) -> int:
    """Give up what nobody is asked to commit any more: it stays `sent`, and says so. What was reported safe is safe."""
    of_pair = tuple_(commitments.c.destination, commitments.c.peer).in_(list(named.committing.items()))
    is_open = commitments.c.state.in_(AWAITED) & (commitments.c.not_before < before)
    open_rows = connection.execute(select(commitments).where(is_open, ~of_pair).with_for_update(skip_locked=True))
    ended = [Commitment(**row) for row in open_rows.mappings()]
    for commitment in ended:
        end_commitment(connection, commitment, f"{commitment.peer} is not asked to commit any more")
    is_unasked = outbox.c.is_commitment_owed & outbox.c.destination.not_in(list(named.committing))
    unasked = update(outbox).where(is_unasked, outbox.c.state == "sent", outbox.c.sent_at < before)
    reason = f"{NOT_COMMITTED}nobody is asked to commit it any more"
    return len(ended) + connection.execute(unasked.values(is_commitment_owed=False, reason=reason)).rowcount


def _end_queries(connection: Connection, named: Named, before: float, now: float) -> int:
    is_unnamed = queries.c.peer.not_in(list(named.answering)) & queries.c.state.in_(UNANSWERED)
    reason = "it is not asked any more: no [[peers]] of this name has answers = [...]"
    owed = update(queries).where(is_unnamed, queries.c.not_before < before)
    return connection.execute(owed.values(state="failed", reason=reason, finished_at=now, lease_until=None)).rowcount


def _end_requests(connection: Connection, named: Named, before: float) -> int:
    table = commitment_requests
    is_unnamed = table.c.peer.not_in(list(named.callable)) & table.c.state.in_(UNREPORTED)
    reason = "it cannot be told any more: no [[peers]] of this name has a host"
    owed = update(table).where(is_unnamed, table.c.not_before < before)
    return connection.execute(owed.values(state="failed", reason=reason, instances=[], lease_until=None)).rowcount
