"""Storage commitment that peers ask of the node: each request until it is reported, and what the node holds of it.

Flow: receive > [commitment_requests] > send/commitments
Never: a request taken that cannot be kept; a judgement of a file (`send/safekeeping` looks at those).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select, true, tuple_, update

from dicomnode.commitment import Reference, Request
from dicomnode.database.engine import Database
from dicomnode.database.schema import commitment_requests, conflicts, instances, outputs, series
from dicomnode.database.store import Store
from dicomnode.database.turns import Turn, claim_rows, is_due
from dicomnode.errors import CommitmentRefusedError, LeaseLostError
from dicomnode.status import CommitmentStatus

REQUEST_MOVES: Mapping[str, frozenset[str]] = {
    "owed": frozenset({"reported", "retry", "failed"}),
    "retry": frozenset({"reported", "retry", "failed"}),
    "reported": frozenset({"owed"}),  # when the peer asks the same again
    "failed": frozenset({"owed"}),
}
UNREPORTED = ("owed", "retry")
UIDS_AT_ONCE = 500


@dataclass(frozen=True)
class CommitmentRequest:
    """One request of a peer, and how its report goes; instants in UTC epoch seconds."""

    id: int
    transaction_uid: str
    peer: str
    digest: str
    is_duplicate: bool
    instances: Sequence[Sequence[str]]
    instance_count: int
    state: str
    reason: str
    attempts: int
    token: int
    lease_until: float | None
    not_before: float
    requested_at: float
    reported_at: float | None

    @property
    def references(self) -> tuple[Reference, ...]:
        """What it names."""
        return tuple(Reference(*one) for one in self.instances)


@dataclass(frozen=True)
class Untold:
    """A peer that has not taken some of our reports: how many, why the last, and whether it has taken one since."""

    peer: str
    requests: int
    requested_at: float  # the last of them, UTC epoch seconds
    reason: str
    has_taken_since: bool


@dataclass(frozen=True)
class Held:
    """A file that the node keeps under a SOP Instance UID; `sha256` is of the data set, or `is_of_whole_file`."""

    sop_class_uid: str
    path: Path
    sha256: str
    is_of_whole_file: bool


def record_request(connection: Connection, peer: str, request: Request, now: float, instances_at_most: int) -> None:
    """Owe a peer the report on what it asks; the same request again is reported again.

    Raises
    ------
    CommitmentRefusedError
        If the reports that are owed to the peer would name more than `instances_at_most`.
    """
    table = commitment_requests
    digest = hashlib.sha256("\n".join(sorted(map("/".join, request.references))).encode()).hexdigest()
    of_peer = select(table.c.digest, table.c.state).where(table.c.peer == peer)
    known = {row.digest: row.state for row in connection.execute(of_peer.where(_is_under(request)))}
    if known.get(digest) in UNREPORTED:
        return
    owed = select(func.coalesce(func.sum(table.c.instance_count), 0)).where(table.c.peer == peer)
    count = connection.execute(owed.where(table.c.state.in_(UNREPORTED))).scalar_one()
    if count + len(request.references) > instances_at_most:
        words = f"{count} instances wait to be reported, and {len(request.references)} are asked for"
        words += f"; limits.commitment_instances = {instances_at_most} may wait"
        raise CommitmentRefusedError(CommitmentStatus.RESOURCE_LIMITATION, words)
    named = {"instances": [list(one) for one in request.references], "instance_count": len(request.references)}
    values = {"state": "owed", "reason": "", "attempts": 0, "not_before": now, "requested_at": now, **named}
    if digest in known:
        again = update(table).where(table.c.peer == peer, table.c.digest == digest, _is_under(request))
        connection.execute(again.values(values))
        return
    about = {"transaction_uid": request.transaction_uid, "peer": peer, "digest": digest, "is_duplicate": bool(known)}
    connection.execute(insert(table).values(values | about))


def fetch_told_peers(connection: Connection) -> set[str]:
    """Return the names of the peers that a report is owed to."""
    owed = select(commitment_requests.c.peer).where(commitment_requests.c.state.in_(UNREPORTED))
    return set(connection.execute(owed.distinct()).scalars())


def has_due_requests(connection: Connection, turn: Turn) -> bool:
    """Say whether a peer is to be sent a report now."""
    return connection.execute(select(commitment_requests.c.id).where(_is_due(turn)).limit(1)).first() is not None


def claim_requests(database: Database, turn: Turn, limit: int) -> list[CommitmentRequest]:
    """Take the requests of a peer whose reports are due, at most `limit`, the oldest first."""
    table = commitment_requests
    with database.write() as connection:
        ids = claim_rows(connection, table, _is_due(turn), turn.now + turn.lease_s, limit)
        claimed = connection.execute(select(table).where(table.c.id.in_(ids)).order_by(table.c.id)).mappings()
        return [CommitmentRequest(**row) for row in claimed]


def extend_requests(database: Database, claimed: Iterable[CommitmentRequest], lease_until: float) -> set[int]:
    """Keep claimed rows that are looked into or wait for their turn, and return the ids of those that are kept.

    Those that were lost meanwhile stay lost.
    """
    kept = update(commitment_requests).where(_are_held(claimed)).values(lease_until=lease_until)
    with database.write() as connection:
        return set(connection.execute(kept.returning(commitment_requests.c.id)).scalars())


def finish_request(connection: Connection, request: CommitmentRequest, state: str, now: float, reason: str) -> None:
    """Record that the peer has its report (`reported`), or will not take it (`failed`).

    Raises
    ------
    LeaseLostError
        If another sender claimed it since; nothing changed. A second report says the same.
    """
    _leave(connection, request, state=state, reason=reason, reported_at=now, instances=[])


def put_due_requests_off(
    connection: Connection, turn: Turn, reason: str, not_before: float | None, attempts_at_most: int
) -> int:
    """Let every request whose report is due share the fate of one association.

    Each has one attempt more. Those that have used up `attempts_at_most`, or all where there is no other time to try,
    become `failed`, the others `retry`. Returns how many became `failed`.
    """
    table = commitment_requests
    more = {"reason": reason, "attempts": table.c.attempts + 1}
    due = update(table).where(_is_due(turn))
    failing = due if not_before is None else due.where(table.c.attempts + 1 >= attempts_at_most)
    failed = connection.execute(failing.values(state="failed", instances=[], **more)).rowcount
    connection.execute(due.values(state="retry", not_before=not_before or turn.now, **more))
    return failed


def release_requests(connection: Connection, claimed: Iterable[CommitmentRequest]) -> None:
    """Give claimed rows back: they were not tried."""
    table = commitment_requests
    held = update(table).where(_are_held(claimed))
    connection.execute(held.values(lease_until=None, attempts=table.c.attempts - 1))


def fetch_untold(connection: Connection) -> list[Untold]:
    """Return the peers that were tried to be told and have not taken it, by name."""
    table = commitment_requests
    of_peer: dict[str, list[Any]] = {}
    late = select(table).where(table.c.state.in_(("retry", "failed"))).order_by(table.c.peer, table.c.requested_at)
    for row in connection.execute(late):
        of_peer.setdefault(row.peer, []).append(row)
    taken = select(table.c.peer, func.max(table.c.requested_at)).where(table.c.state == "reported")
    last_taken = {row[0]: row[1] for row in connection.execute(taken.group_by(table.c.peer))}
    return [
        Untold(
            peer, len(rows), rows[-1].requested_at, rows[-1].reason, last_taken.get(peer, 0.0) > rows[-1].requested_at
        )
        for peer, rows in of_peer.items()
    ]


def fetch_held(connection: Connection, store: Store, references: Iterable[Reference]) -> dict[str, Held]:
    """Return what the node keeps of these, by SOP Instance UID: as it was received, or as it was made."""
    found: dict[str, Held] = {}
    received, made = instances.c, outputs.c
    for uids in _in_groups(references):
        columns = (received.sop_instance_uid, received.sop_class_uid, received.file_name, received.sha256)
        for uid, sop_class, name, sha256 in connection.execute(select(*columns).where(columns[0].in_(uids))):
            found[uid] = Held(sop_class, store.find_instance(name), sha256, is_of_whole_file=False)
        columns = (made.sop_instance_uid, made.sop_class_uid, made.path, made.sha256)
        kept = select(*columns).where(columns[0].in_(uids), made.deleted_at.is_(None))
        for uid, sop_class, path, sha256 in connection.execute(kept):
            found.setdefault(uid, Held(sop_class, store.root / path, sha256, is_of_whole_file=True))
    return found


def fetch_conflicting(connection: Connection, references: Iterable[Reference]) -> set[str]:
    """Return the SOP Instance UIDs, of these, that came with different contents: whose is meant is not known."""
    found: set[str] = set()
    for uids in _in_groups(references):
        query = select(conflicts.c.sop_instance_uid).where(conflicts.c.sop_instance_uid.in_(uids))
        found.update(connection.execute(query).scalars())
    return found


def record_promises(connection: Connection, references: Iterable[Reference], now: float) -> set[str]:
    """Record that a peer is told that these are kept; return the SOP Instance UIDs of those that are here still.

    Before it is told: what is promised is not deleted, and what was deleted since it was looked at is not promised.
    """
    promised: set[str] = set()
    for uids in _in_groups(references):
        of_series = select(instances.c.series_id).where(instances.c.sop_instance_uid.in_(uids))
        homes = select(series.c.id).where(series.c.id.in_(of_series)).order_by(series.c.id)
        # Who deletes a series has locked it (`deletions.lock_series`): its instances are here afterwards, or are not.
        connection.execute(homes.with_for_update(read=True, key_share=True)).all()
        for table, is_kept in ((instances, true()), (outputs, outputs.c.deleted_at.is_(None))):
            kept = update(table).where(table.c.sop_instance_uid.in_(uids), is_kept).values(committed_at=now)
            promised.update(connection.execute(kept.returning(table.c.sop_instance_uid)).scalars())
    return promised


def _in_groups(references: Iterable[Reference]) -> Iterator[list[str]]:
    uids = [one.sop_instance_uid for one in references]
    for start in range(0, len(uids), UIDS_AT_ONCE):
        yield uids[start : start + UIDS_AT_ONCE]


def _leave(connection: Connection, request: CommitmentRequest, *, state: str, **values: Any) -> None:
    moved = update(commitment_requests).where(_are_held([request])).values(state=state, lease_until=None, **values)
    if state not in REQUEST_MOVES[request.state] or connection.execute(moved).rowcount == 0:
        raise LeaseLostError(f"commitment request {request.id}: token {request.token} does not hold it any more")


def _are_held(claimed: Iterable[CommitmentRequest]) -> Any:
    table = commitment_requests
    return tuple_(table.c.id, table.c.token).in_([(one.id, one.token) for one in claimed]) & table.c.state.in_(
        UNREPORTED
    )


def _is_due(turn: Turn) -> Any:
    return is_due(commitment_requests, turn, UNREPORTED)


def _is_under(request: Request) -> Any:
    return commitment_requests.c.transaction_uid == request.transaction_uid
