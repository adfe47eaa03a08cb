"""Asks peers to keep safe what destinations were sent, and does what their reports ask for.

Flow: database/outbox > database/commitments > [committing] > send/commitment > peers
Never: an instance given up because nobody reports on it: it stays sent, and says so; a request under a used UID.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from numpy.random import Generator
from pynetdicom.association import Association
from sqlalchemy import Connection

from dicomnode.database.commitments import (
    NOT_COMMITTED,
    Commitment,
    SentRow,
    are_reported,
    ask_again,
    claim_commitments,
    fetch_due,
    fetch_overdue,
    fetch_reported,
    fetch_sent_rows,
    finish_settled,
    give_commitment_up,
    is_commitment_owed,
    owe_again,
    owe_commitments,
    put_commitment_off,
    record_asked,
    record_committed,
    record_refused,
    record_uncommitted,
    release_commitments,
    renew_commitment,
)
from dicomnode.database.engine import Database
from dicomnode.database.turns import Turn
from dicomnode.errors import LeaseLostError, PeerBusyError, PeerRejectedError, PeerUnreachableError, TransientError
from dicomnode.logs import get_logger
from dicomnode.send.association import Caller, Service, open_association
from dicomnode.send.commitment import COMMITMENT_CONTEXTS, ask_for_commitment, make_report_service
from dicomnode.send.retry import draw_wait_s
from dicomnode.send.statuses import FailureMeaning, classify_failure
from dicomnode.settings import DestinationSettings, PeerSettings, Settings
from dicomnode.steps import Step, reach

log = get_logger()

CLAIM_AT_MOST = 20  # over one association
LEASE_MARGIN_S = 5.0  # besides an association, a request and its answer
# A peer that reports over the association it was asked over does so at once; others are waited for no longer.
SAME_ASSOCIATION_S, POLL_S = 10.0, 0.2


@dataclass(frozen=True)
class Work:
    """What asking and reporting need: the settings in force, and what the threads of all peers share."""

    database: Database
    clock: Callable[[], float]
    generator: Generator
    settings: Settings
    caller: Caller
    stopping: threading.Event
    open: set[Association]  # to be aborted where they take too long to end

    def make_turn(self, peer: str) -> Turn:
        """Return what may be taken now for a peer."""
        send = self.settings.send
        return Turn(peer, self.clock(), 3 * send.timeout_s + LEASE_MARGIN_S, send.retry_ceiling_s)

    @contextmanager
    def associate(self, peer: PeerSettings, service: Service) -> Iterator[Association]:
        """Open an association for storage commitment that `stop` can abort; raises as `open_association` does."""
        with open_association(peer, self.caller, COMMITMENT_CONTEXTS, service) as association:
            self.open.add(association)
            try:
                yield association
            finally:
                self.open.discard(association)

    def draw_retry_at(self, failures: int) -> float:
        """Draw when to try again after so many failures in a row, UTC epoch seconds."""
        return self.clock() + draw_wait_s(max(failures, 1), self.settings.send, self.generator)


def see_to_destination(work: Work, destination: DestinationSettings) -> None:
    """Open transactions for what a destination was sent, replace those nobody reported on, settle the others."""
    name, now = destination.peer, work.clock()
    late = (name, now, work.settings.send.commitment_s)
    with work.database.read() as connection:
        is_owed = is_commitment_owed(connection, name)
        if not (is_owed or fetch_overdue(connection, *late) or fetch_reported(connection, name)):
            return
    with work.database.write() as connection:
        opened = owe_commitments(connection, name, destination.commitment, now)
        for commitment in fetch_overdue(connection, *late):
            _replace(connection, work, commitment, f"{commitment.peer} did not report in time", now)
        reported = fetch_reported(connection, name)
        for commitment in reported:
            _settle(connection, work, commitment)
    if opened:
        reach(Step.OWED, destination=name, transactions=opened)
    if reported:
        reach(Step.SETTLED, destination=name, transactions=len(reported))


def ask_due(work: Work, peer: PeerSettings) -> bool:
    """Ask a peer for what is due, over one association; False when nothing was, or when the peer failed."""
    turn = work.make_turn(peer.name)
    left = claim_commitments(work.database, turn, CLAIM_AT_MOST)
    if not left:
        return False
    asked: list[Commitment] = []
    service = make_report_service(work.database, peer, work.settings.limits.commitment_instances, work.clock)
    try:
        with work.associate(peer, service) as association:
            while left and not work.stopping.is_set():
                asked += _ask(work, association, peer, left)
            _await_reports(work, asked)
    except (PeerUnreachableError, PeerBusyError, PeerRejectedError) as error:
        _put_due_off(work, turn, left, error)
        return False
    with work.database.write() as connection:
        release_commitments(connection, left)
    return not left


def _ask(work: Work, association: Association, peer: PeerSettings, left: list[Commitment]) -> list[Commitment]:
    """Ask for the first of what is left, and take it away; return it if its report is to be waited for."""
    commitment = left.pop(0)
    about = {"transaction_uid": commitment.transaction_uid, "peer": peer.name}
    with work.database.read() as connection:
        references = [row.reference for row in fetch_sent_rows(connection, commitment)]
    try:
        ask_for_commitment(association, peer, commitment.transaction_uid, references, len(left) + 1)
    except PeerRejectedError as error:
        with work.database.write() as connection:
            give_commitment_up(connection, commitment, str(error))
        log.warning("commitment.given_up", **about, reason=str(error))
        return []
    except (PeerUnreachableError, PeerBusyError) as error:
        with work.database.write() as connection:
            _replace(connection, work, commitment, str(error), work.draw_retry_at(commitment.attempts + 1))
        raise
    reach(Step.ASKED, commitment_id=commitment.id)
    with suppress(LeaseLostError), work.database.write() as connection:
        record_asked(connection, commitment, work.clock() + work.settings.send.commitment_s)
    log.info("commitment.asked", **about, instances=len(references))
    return [commitment]


def _await_reports(work: Work, asked: Collection[Commitment]) -> None:
    """Keep the association open for reports over it, until all have come by whatever way, or for a while."""
    deadline = time.monotonic() + min(SAME_ASSOCIATION_S, work.settings.send.timeout_s)
    is_over = not asked
    while not is_over and time.monotonic() < deadline:
        with work.database.read() as connection:
            is_over = are_reported(connection, asked)
        is_over |= work.stopping.wait(POLL_S)  # the answer to a report goes out after its row is there


def _put_due_off(work: Work, turn: Turn, left: list[Commitment], error: TransientError | PeerRejectedError) -> None:
    """Let everything that is due to be asked of a peer share one failed association."""
    with work.database.write() as connection:
        release_commitments(connection, left)
        due = fetch_due(connection, turn)
        retry_at = work.draw_retry_at(1 + max((one.attempts for one in due), default=0))
        for commitment in due:
            if isinstance(error, PeerRejectedError):
                give_commitment_up(connection, commitment, str(error))
            elif _is_last(work, commitment):
                give_commitment_up(connection, commitment, _say_last(work, str(error)))
            else:
                put_commitment_off(connection, commitment, retry_at, str(error))
    log.warning("commitment.not_asked", peer=turn.peer, transactions=len(due), reason=str(error))


def _replace(connection: Connection, work: Work, commitment: Commitment, reason: str, not_before: float) -> None:
    """Let another transaction ask for the same, or give up after the last attempt."""
    about = {"transaction_uid": commitment.transaction_uid, "peer": commitment.peer, "reason": reason}
    if _is_last(work, commitment):
        give_commitment_up(connection, commitment, _say_last(work, reason))
        log.warning("commitment.given_up", **about)
    else:
        renew_commitment(connection, commitment, not_before, reason, work.clock())
        log.warning("commitment.retry", **about)


def _is_last(work: Work, commitment: Commitment) -> bool:
    """Say whether the attempt that has just failed was the last; one that was asked is counted already."""
    return commitment.attempts + (commitment.state == "owed") >= work.settings.send.attempts


def _say_last(work: Work, reason: str) -> str:
    return f"{reason}; attempt {work.settings.send.attempts} was the last"


def _settle(connection: Connection, work: Work, commitment: Commitment) -> None:
    """Do what a peer's report asks for, instance by instance."""
    report = commitment.report or {}
    committed, failed = frozenset(report.get("committed", ())), report.get("failed", {})
    outcomes: dict[str, list[int]] = {"committed": [], "sent again": [], "asked again": [], "given up": []}
    for row in fetch_sent_rows(connection, commitment):
        uid = row.reference.sop_instance_uid
        if uid in committed:
            outcomes["committed"].append(row.id)
        else:
            meaning, said = _judge(work, row, failed.get(uid))
            said = f"{commitment.peer}: {NOT_COMMITTED}{said}"
            if meaning == "given up":
                record_refused(connection, row.id, said)
            elif meaning == "sent again":
                is_owed = owe_again(connection, row.id, work.draw_retry_at(row.attempts), said)
                meaning = "sent again" if is_owed else "given up"
            outcomes[meaning].append(row.id)
    record_committed(connection, outcomes["committed"])
    if open_rows := outcomes["asked again"]:
        if commitment.attempts >= work.settings.send.attempts:
            record_uncommitted(connection, open_rows, _say_last(work, f"{commitment.peer} left it open"))
        else:
            retry_at = work.draw_retry_at(commitment.attempts)
            ask_again(connection, commitment, open_rows, retry_at, "left open by a report", work.clock())
    counts = {name.replace(" ", "_"): len(ids) for name, ids in outcomes.items() if ids}
    finish_settled(connection, commitment, ", ".join(f"{len(ids)} {name}" for name, ids in outcomes.items() if ids))
    about = {"transaction_uid": commitment.transaction_uid, "peer": commitment.peer, **counts}
    if counts.keys() <= {"committed"}:
        log.info("commitment.settled", **about)
    else:
        log.warning("commitment.settled", **about)


def _judge(work: Work, row: SentRow, reason: int | None) -> tuple[FailureMeaning, str]:
    """Return what becomes of an instance that is not committed, and the words for it."""
    if reason is None:
        return "asked again", "the report does not name it"
    meaning, name = classify_failure(reason)
    words = f"0x{reason:04X} {name}"
    if meaning == "sent again" and row.attempts >= work.settings.send.attempts:
        return "given up", _say_last(work, words)
    return meaning, words
