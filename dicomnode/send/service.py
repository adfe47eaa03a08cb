"""Delivers what is owed, each destination in a thread of its own, so that one that is down holds up no other.

Flow: jobs > database/outbox > [send/service] > send/scu > destinations
Never: an instance given up for a transient failure before its attempts are used up; more than one connection attempt
for each step of a destination's back-off, however much is owed to it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from numpy.random import Generator
from pynetdicom.association import Association

from dicomnode.database.engine import Database
from dicomnode.database.outbox import (
    Failure,
    OutboxRow,
    claim_outbox,
    extend_leases,
    fail_due_rows,
    record_dead,
    record_retry,
    record_sent,
    release_rows,
)
from dicomnode.errors import (
    DicomnodeError,
    LeaseLostError,
    PeerBusyError,
    PeerRejectedError,
    PeerUnreachableError,
    StorageFailedError,
)
from dicomnode.logs import get_logger
from dicomnode.send.copies import Copies, choose_copy, find_copies
from dicomnode.send.retry import draw_wait_s
from dicomnode.send.scu import Caller, Instance, accepted_contexts, make_caller, open_association, send_instance
from dicomnode.settings import PeerSettings, Settings

log = get_logger()

Clock = Callable[[], float]
BATCH = 100  # instances to an association; five SOP classes in two forms are far below its 128 presentation contexts
# Besides two time-outs, for the association and for an answer, an instance needs a little to be recorded.
LEASE_MARGIN_S = 5.0


@dataclass
class _Lane:
    """One destination: its thread, how often it failed in a row, and when it may be tried again (UTC epoch s)."""

    executor: ThreadPoolExecutor
    generator: Generator
    running: Future[None] | None = None
    association: Association | None = None
    failures: int = 0
    not_before: float = 0.0


class SendService:
    """The senders of this node; `step` is called by a clock and returns at once."""

    def __init__(self, settings: Settings, database: Database, clock: Clock, generator: Generator) -> None:
        self._in_force = (settings, make_caller(settings))  # replaced as a whole
        self._database = database
        self._clock = clock
        self._generator = generator
        self._lanes: dict[str, _Lane] = {}
        self._stopping = threading.Event()

    def reload(self, settings: Settings) -> None:
        """Use other settings from the next batch on; one that was down may have moved: it is tried at once."""
        self._in_force = (settings, make_caller(settings))
        for lane in self._lanes.values():
            lane.failures, lane.not_before = 0, 0.0

    def step(self) -> None:
        """Set every destination going that is idle and may be tried."""
        for destination in self._in_force[0].destinations:
            lane = self._lanes.get(destination.peer) or self._open_lane(destination.peer)
            is_idle = lane.running is None or lane.running.done()
            if is_idle and not self._stopping.is_set() and self._clock() >= lane.not_before:
                lane.running = lane.executor.submit(self._deliver, lane, destination.peer)

    def stop(self, deadline_s: float) -> None:
        """Finish the instances on their way, or abort after `deadline_s` seconds; the rest stays owed."""
        self._stopping.set()
        _, late = wait([lane.running for lane in self._lanes.values() if lane.running is not None], timeout=deadline_s)
        for lane in self._lanes.values():
            association = lane.association
            if late and association is not None:
                association.abort()
            lane.executor.shutdown(wait=True)
        self._lanes = {}

    def _open_lane(self, name: str) -> _Lane:
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"send-{name}")
        self._lanes[name] = _Lane(executor, self._generator.spawn(1)[0])
        return self._lanes[name]

    def _deliver(self, lane: _Lane, name: str) -> None:
        """Send batch after batch until nothing is due, or the destination fails."""
        try:
            while not self._stopping.is_set() and self._clock() >= lane.not_before:
                settings, caller = self._in_force
                lease_s = 2 * settings.send.timeout_s + LEASE_MARGIN_S
                rows = claim_outbox(self._database, name, self._clock(), lease_s, BATCH)
                if not rows:
                    return
                batch = _Batch(self._database, self._clock, settings, caller, lane, self._stopping)
                batch.send(settings.peer(name), rows)
        except DicomnodeError as error:  # the database: the leases run out, and a later step tries again
            log.warning("send.interrupted", destination=name, reason=str(error))


@dataclass(frozen=True)
class _Batch:
    """Claimed rows on their way over one association."""

    database: Database
    clock: Clock
    settings: Settings
    caller: Caller
    lane: _Lane
    stopping: threading.Event

    def send(self, peer: PeerSettings, rows: list[OutboxRow]) -> None:
        """Send the rows and record what became of each; afterwards none of them is held any more."""
        left = deque(rows)
        wanted = [one.compression for one in self.settings.destinations if one.peer == peer.name]
        compression = wanted[0] if wanted else "none"  # a destination that is one no more
        copies = {row.id: find_copies(_instance(row, self.settings.node.storage_root), compression) for row in rows}
        contexts = {copy.context for some in copies.values() for copy in some}
        with ExitStack() as stack:
            stack.callback(release_rows, self.database, left)
            try:
                association = stack.enter_context(open_association(peer, self.caller, contexts))
            except (PeerUnreachableError, PeerBusyError, PeerRejectedError) as error:
                self._fail_association(peer, left, error)
                return
            self.lane.association = association
            stack.callback(setattr, self.lane, "association", None)
            self._send_rows(association, peer, left, copies)

    def _send_rows(
        self, association: Association, peer: PeerSettings, left: deque[OutboxRow], copies: Mapping[int, Copies]
    ) -> None:
        """Send one after the other, taking from `left` what was tried, until the destination fails."""
        lease_s = 2 * self.settings.send.timeout_s + LEASE_MARGIN_S
        leased_until = self.clock() + lease_s
        message_id, accepted = 0, accepted_contexts(association)
        while left and not self.stopping.is_set():
            if leased_until - self.clock() < lease_s / 2:
                leased_until = self.clock() + lease_s
                extend_leases(self.database, left, leased_until)
            message_id += 1
            row = left.popleft()
            try:
                warning = send_instance(association, peer, choose_copy(copies[row.id], accepted), message_id)
            except PeerRejectedError as error:
                self._record_dead(row, str(error))
            except StorageFailedError as error:
                self._record_retry(row, str(error))
            except (PeerUnreachableError, PeerBusyError) as error:
                self._record_retry(row, str(error))
                self._back_off()
                return
            else:
                self.lane.failures = 0
                self._record_sent(row, warning)

    def _fail_association(self, peer: PeerSettings, left: deque[OutboxRow], error: DicomnodeError) -> None:
        """Let everything due to the destination share the failed attempt, and wait before the next."""
        release_rows(self.database, left)
        left.clear()
        self._back_off()
        not_before = None if isinstance(error, PeerRejectedError) else self.lane.not_before
        failure = Failure(str(error), not_before)
        dead = fail_due_rows(self.database, peer.name, self.clock(), failure, self.settings.send.attempts)
        log.warning("send.no_association", destination=peer.name, failures=self.lane.failures, dead=dead)

    def _back_off(self) -> None:
        lane = self.lane
        lane.failures += 1
        lane.not_before = self.clock() + draw_wait_s(lane.failures, self.settings.send, lane.generator)

    def _record_sent(self, row: OutboxRow, warning: str) -> None:
        log.debug("send.sent", outbox_id=row.id, job_id=row.job_id, destination=row.destination, warning=warning)
        with _ignoring_lost_lease(row), self.database.write() as connection:
            record_sent(connection, row, self.clock(), warning)

    def _record_dead(self, row: OutboxRow, reason: str) -> None:
        # The peer's own words stay out of the log: they may name a patient.
        log.warning("send.dead", outbox_id=row.id, job_id=row.job_id, destination=row.destination)
        with _ignoring_lost_lease(row), self.database.write() as connection:
            record_dead(connection, row, reason)

    def _record_retry(self, row: OutboxRow, reason: str) -> None:
        settings = self.settings.send
        if row.attempts + 1 >= settings.attempts:
            self._record_dead(row, f"{reason}; attempt {row.attempts + 1} of {settings.attempts} was the last")
            return
        not_before = self.clock() + draw_wait_s(row.attempts + 1, settings, self.lane.generator)
        log.info("send.retry", outbox_id=row.id, job_id=row.job_id, destination=row.destination)
        with _ignoring_lost_lease(row), self.database.write() as connection:
            record_retry(connection, row, not_before, reason)


@contextmanager
def _ignoring_lost_lease(row: OutboxRow) -> Iterator[None]:
    """Leave a row alone that another sender claimed meanwhile: it sends the same bytes, and records that."""
    try:
        yield
    except LeaseLostError:
        log.warning("send.lost", outbox_id=row.id)


def _instance(row: OutboxRow, root: Path) -> Instance:
    return Instance(row.sop_instance_uid, row.sop_class_uid, row.transfer_syntax_uid, root / row.path)
