"""Sends what is due to a destination over one association, and records what became of each instance.

Flow: send/service > [delivery] > send/scu > a destination; outcomes > database/outbox
Never: a row that is still held when the association ends; an outcome recorded by itself (each commit waits for the
disk, and an instance that is sent again after a crash does no harm).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

from numpy.random import Generator
from sqlalchemy import Connection

from dicomnode.database.damages import record_damage
from dicomnode.database.engine import Database
from dicomnode.database.outbox import (
    DAMAGED,
    Due,
    Failure,
    OutboxRow,
    claim_more,
    claim_outbox,
    count_due_rows,
    extend_leases,
    fail_due_rows,
    fetch_held_ids,
    fetch_unsent_contexts,
    record_all_sent,
    record_dead,
    record_retry,
    record_sent,
    release_rows,
)
from dicomnode.errors import (
    DicomnodeError,
    FileDamagedError,
    LeaseLostError,
    PeerBusyError,
    PeerRejectedError,
    PeerUnreachableError,
    StorageFailedError,
)
from dicomnode.logs import get_logger
from dicomnode.send.breaker import Breaker
from dicomnode.send.copies import Copies, choose_copy, find_copies
from dicomnode.send.leases import make_keeper
from dicomnode.send.pdus import CONTEXTS_AT_MOST, ContextKey
from dicomnode.send.retry import draw_wait_s
from dicomnode.send.scu import Caller, Instance, open_store_association, send_instance
from dicomnode.send.storing import StoreAssociation
from dicomnode.settings import DestinationSettings, PeerSettings, SendSettings, Settings
from dicomnode.steps import Step, reach

log = get_logger()

Clock = Callable[[], float]
RECORD_EVERY_S = 1.0
CLAIM_AT_MOST = 100  # rows at one time; each needs at most one of an association's 128 presentation contexts
WORTH_ONE = 10  # instances: with fewer for each, another association takes longer to open than it saves
MESSAGE_ID_AT_MOST = 0xFFFF  # PS3.7 9.3.1.1: two bytes
# Besides two time-outs, for the association and for an answer, an instance needs a little to be recorded. One that
# takes longer keeps its lease as long as it moves on.
LEASE_MARGIN_S = 5.0


def find_due(destination: DestinationSettings, settings: SendSettings, now: float) -> Due:
    """Return which rows of a destination may be sent now."""
    lease_s = 2 * settings.timeout_s + LEASE_MARGIN_S
    return Due(destination.peer, now, lease_s, settings.retry_ceiling_s, destination.registration_object)


@dataclass(frozen=True)
class Lane:
    """One destination, shared by its deliveries: how it does, and the associations that are open with it."""

    breaker: Breaker
    generator: Generator
    open: set[StoreAssociation] = field(default_factory=set)


@dataclass(frozen=True)
class Delivery:
    """What is due to one destination, sent over one association; `is_over` ends it after the instance on its way."""

    database: Database
    clock: Clock
    settings: Settings
    caller: Caller
    destination: DestinationSettings
    lane: Lane
    is_over: Callable[[], bool]
    # What became of the rows that were tried and is not recorded yet: those just sent, and what else is to be written.
    sent: list[OutboxRow] = field(default_factory=list)
    outcomes: list[tuple[OutboxRow, Callable[[Connection], None]]] = field(default_factory=list)
    on_its_way: list[OutboxRow] = field(default_factory=list)  # at most one

    @property
    def due(self) -> Due:
        """Which rows of the destination may be sent now."""
        return find_due(self.destination, self.settings.send, self.clock())

    def run(self, when_taken: Callable[[], None]) -> bool:
        """Send what is due, a share of it claimed at a time; at the end none of it is held any more.

        Returns whether something was due and nothing failed. `when_taken` is called when the first of each claim
        was answered.
        """
        due = self.due
        left = deque(claim_outbox(self.database, due, self._find_share()))
        if not left:
            return False
        keep = make_keeper(partial(self._extend_leases, left), self.clock, due.lease_s, due.now)
        reach(Step.TAKEN, destination=self.destination.peer, rows=len(left))
        seen, peer = self.lane.breaker.failures, self.settings.peer(self.destination.peer)
        with ExitStack() as stack:
            stack.callback(release_rows, self.database, left)
            try:
                contexts = self._find_contexts(left)
                association = stack.enter_context(open_store_association(peer, self.caller, contexts))
            except (PeerUnreachableError, PeerBusyError, PeerRejectedError) as error:
                self._fail_association(peer, left, error, seen)
                return False
            reach(Step.ASSOCIATED, destination=peer.name)
            self.lane.open.add(association)
            stack.callback(self.lane.open.discard, association)
            stack.callback(self._record)  # before the release, which a peer may take a time-out to answer
            message_ids = cycle(range(1, MESSAGE_ID_AT_MOST + 1))
            keep()
            while left and contexts.issuperset(self._needed_contexts(left)):
                if not self._send_rows(partial(self._send_row, association, keep), left, message_ids, when_taken):
                    return False
                left.extend(self._record(claim=self._find_share()))
                # Two associations that record at the same time do not see that together they made something due.
                left.extend(() if left else claim_outbox(self.database, self.due, self._find_share()))
        return True

    def _find_share(self) -> int:
        """Return how many rows to claim: what is due, shared by the associations there may be, so that all end at once.

        A claim of the same size each time would leave one of them with the last, and the others with nothing to do.
        """
        due = self.due
        associations = max(self.lane.breaker.allows(due.now, self.destination.associations, self.settings.send), 1)
        share = math.ceil(count_due_rows(self.database, due, CLAIM_AT_MOST * associations) / associations)
        return max(share, WORTH_ONE)

    @property
    def _root(self) -> Path:
        return self.settings.node.storage_root

    def _find_contexts(self, rows: Iterable[OutboxRow]) -> set[ContextKey]:
        """Return what these rows need, and as many more contexts as fit of what else is unsent."""
        needed = self._needed_contexts(rows)
        others = sorted(fetch_unsent_contexts(self.database, self.destination.peer) - needed)
        return needed.union(others[: CONTEXTS_AT_MOST - len(needed)])

    def _needed_contexts(self, rows: Iterable[OutboxRow]) -> set[ContextKey]:
        """Return the context of every form in which one of these rows may be sent."""
        return {copy.context for row in rows for copy in self._copies(row)}

    def _copies(self, row: OutboxRow) -> Copies:
        path = self._root / row.path
        instance = Instance(row.sop_instance_uid, row.sop_class_uid, row.transfer_syntax_uid, path, row.sha256)
        return find_copies(instance, self.destination.compression, row.copies)

    def _send_rows(
        self,
        send_row: Callable[[OutboxRow, int], bool],
        left: deque[OutboxRow],
        message_ids: Iterator[int],
        when_taken: Callable[[], None],
    ) -> bool:
        """Send one after the other, taking from `left` what was tried; False when it is over before they all were."""
        recorded_at = self.clock()
        is_first = True
        while left:
            if self.is_over():
                return False
            self.on_its_way.append(left.popleft())
            try:
                if not send_row(self.on_its_way[0], next(message_ids)):
                    return False
            finally:
                self.on_its_way.clear()
            if is_first:
                is_first = False
                when_taken()
            if abs(self.clock() - recorded_at) >= RECORD_EVERY_S:  # a clock that is put back counts as well
                recorded_at = self.clock()
                self._record()
                self._drop_lost(left, fetch_held_ids(self.database, left) if left else set())
        return True

    def _extend_leases(self, left: deque[OutboxRow], lease_until: float) -> None:
        """Keep what is on its way and what waits behind it; what went before is recorded instead."""
        self._record()
        self._drop_lost(left, extend_leases(self.database, [*self.on_its_way, *left], lease_until))

    def _drop_lost(self, left: deque[OutboxRow], held: set[int]) -> None:
        """Let go of what was given up meanwhile, as a person's rejection does, or is another sender's by now."""
        for row in [row for row in left if row.id not in held]:
            log.warning("send.lost", outbox_id=row.id)
            left.remove(row)

    def _send_row(
        self, association: StoreAssociation, keep: Callable[[], None], row: OutboxRow, message_id: int
    ) -> bool:
        """Send one instance and note what became of it; False when nothing more goes over this association."""
        seen, peer = self.lane.breaker.failures, self.settings.peer(self.destination.peer)
        try:
            copy = choose_copy(self._copies(row), association.contexts)
            warning = send_instance(association, peer, copy, message_id, keep)
        except PeerRejectedError as error:
            self._note_dead(row, str(error))
        except FileDamagedError as error:
            self._note_damaged(row, str(error))
        except StorageFailedError as error:
            self._note_retry(row, str(error))
            return not association.is_over  # the others need another one, and are not to blame
        except (PeerUnreachableError, PeerBusyError) as error:
            self._note_retry(row, str(error))
            self.lane.breaker.fail(self.clock(), seen, self.settings.send)
            return False
        else:
            self.lane.breaker.succeed()
            reach(Step.STORED, outbox_id=row.id, job_id=row.job_id, destination=row.destination)
            if warning:
                owed = bool(self.destination.commitment)
                self._note(row, partial(record_sent, row=row, now=self.clock(), reason=warning, owes_commitment=owed))
            else:
                self.sent.append(row)
        return True

    def _fail_association(self, peer: PeerSettings, left: deque[OutboxRow], error: DicomnodeError, seen: int) -> None:
        """Let everything due to the destination share the failed attempt; or ask for fewer where others are open."""
        release_rows(self.database, left)
        left.clear()
        if others := len(self.lane.open):  # it takes no more than these
            self.lane.breaker.narrow(others)
            log.info("send.narrowed", destination=peer.name, associations=others)
            return
        retry_at = self.lane.breaker.fail(self.clock(), seen, self.settings.send)
        failure = Failure(str(error), None if isinstance(error, PeerRejectedError) else retry_at)
        dead = fail_due_rows(self.database, self.due, failure, self.settings.send.attempts)
        log.warning("send.no_association", destination=peer.name, failures=self.lane.breaker.failures, dead=dead)

    def _note_dead(self, row: OutboxRow, reason: str) -> None:
        # The peer's own words stay out of the log: they may name a patient.
        log.warning("send.dead", outbox_id=row.id, job_id=row.job_id, destination=row.destination)
        self._note(row, partial(record_dead, row=row, reason=reason))

    def _note_damaged(self, row: OutboxRow, reason: str) -> None:
        """Give up a row whose file is not what was made: it is made again on a person's word."""
        self._note_dead(row, f"{DAMAGED}{reason}; dicomnode jobs reprocess {row.job_id} makes it again and sends it")
        now = self.clock()
        self._note(row, lambda connection: _record_damage(connection, row, reason, now))

    def _note_retry(self, row: OutboxRow, reason: str) -> None:
        settings = self.settings.send
        if row.attempts + 1 >= settings.attempts:
            self._note_dead(row, f"{reason}; attempt {row.attempts + 1} of {settings.attempts} was the last")
            return
        not_before = self.clock() + draw_wait_s(row.attempts + 1, settings, self.lane.generator)
        log.info("send.retry", outbox_id=row.id, job_id=row.job_id, destination=row.destination)
        self._note(row, partial(record_retry, row=row, not_before=not_before, reason=reason))

    def _note(self, row: OutboxRow, record: Callable[[Connection], None]) -> None:
        self.outcomes.append((row, record))

    def _record(self, claim: int = 0) -> list[OutboxRow]:
        """Record what is noted, and claim so many rows more with the same commit; return those.

        A row that another sender claimed meanwhile is left: it sends the same bytes.
        """
        if not (self.sent or self.outcomes or claim):
            return []
        with self.database.write() as connection:
            owed = bool(self.destination.commitment)
            recorded = record_all_sent(connection, self.sent, self.clock(), owes_commitment=owed)
            for row in self.sent:
                if row.id not in recorded:
                    log.warning("send.lost", outbox_id=row.id)
            for row, record in self.outcomes:
                try:
                    record(connection)
                except LeaseLostError:
                    log.warning("send.lost", outbox_id=row.id)
            claimed = claim_more(connection, self.due, claim) if claim else []
        self.sent.clear()
        self.outcomes.clear()
        reach(Step.SENT, destination=self.destination.peer)
        return claimed


def _record_damage(connection: Connection, row: OutboxRow, reason: str, now: float) -> None:
    if record_damage(connection, reason, now, output_id=row.output_id):
        log.error("send.damaged", outbox_id=row.id, job_id=row.job_id, path=row.path)
