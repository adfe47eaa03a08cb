"""Handles what happens in each association: admission, C-STORE, its end.

Flow: receive.scp > [associations] > receive.policy, receive.ingest
Never: a wait for a name server or for another association; an answer of Success that `ingest` did not give.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import cast

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE

from dicomnode.certificates import PeerCertificate, read_peer_certificate
from dicomnode.errors import DatabaseUnavailableError, DicomnodeError, NotAuthorisedError, PeerProtocolError
from dicomnode.logs import get_logger
from dicomnode.receive.ingest import StoreRequest, ingest
from dicomnode.receive.intake import Intake
from dicomnode.receive.policy import Addresses, Admission, Caller, Refusal, admit
from dicomnode.receive.recording import Sender
from dicomnode.receive.upper_layer import UpperLayer, attach
from dicomnode.settings import Settings
from dicomnode.status import StoreStatus

log = get_logger()

DATABASE_RETRY_S = 5.0
ABORT_GRACE_S = 1.0  # for the A-ABORT to leave before the socket is shut
POLL_S = 0.02
REJECTED_PERMANENT, BY_SERVICE_USER = 1, 1  # PS3.8 table 9-21
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)  # transient, by the provider (presentation related): PS3.8 table 9-21


@dataclass(frozen=True)
class Rules:
    """What a request is judged by: replaced as a whole when the settings change."""

    settings: Settings
    addresses: Addresses


class Associations:
    """The associations of one SCP; its methods are called in pynetdicom's threads, one for each association."""

    def __init__(self, rules: Rules, intake: Intake, clock: Callable[[], float]) -> None:
        self.rules = rules
        self._intake = intake
        self._clock = clock
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[Association, UpperLayer] = {}
        self._waiting: dict[Association, None] = {}  # for a request, the oldest first
        self._senders: dict[Association, Sender] = {}

    def accept(self, association: Association, client: socket.socket) -> None:
        """Follow a connection to its end, whichever way it ends; called before its thread runs."""
        limits = self.rules.settings.limits
        upper_layer = attach(association, client, limits, self)
        run = association.run

        def run_to_end() -> None:
            try:
                run()
            finally:
                upper_layer.free()
                self._end(association)

        association.run = run_to_end  # type: ignore[method-assign]  # no event fires on every way out
        association.network_timeout_response = "A-RELEASE"  # some peers discard a study that ends with A-ABORT
        with self._lock:
            self._connections[association] = upper_layer
            self._waiting[association] = None
            crowded = list(self._waiting)[: -limits.waiting_connections]
            for silent in crowded:
                del self._waiting[silent]
        for silent in crowded:
            log.info("receive.cut", why="limits.waiting_connections is reached, and this one has waited longest")
            self._cut(silent)

    def handle_request(self, event: Event) -> None:
        """Admit or reject (`EVT_REQUESTED`). Who is not in `_senders` stores nothing, so that a fault here is safe."""
        association = event.assoc
        with self._lock:
            self._waiting.pop(association, None)
        request = cast(A_ASSOCIATE, association.requestor.primitive)
        caller = Caller(
            request.called_ae_title,
            request.calling_ae_title,
            association.requestor.address,
            _find_certificate(association),
        )
        rules = self.rules
        verdict = admit(rules.settings, rules.addresses, caller)
        if isinstance(verdict, Refusal):
            log.warning("receive.refused", rule=verdict.rule, why=verdict.message)
            _reject(association, REJECTED_PERMANENT, BY_SERVICE_USER, verdict.reason)
        elif not self._add_sender(association, verdict, caller.address, rules.settings.limits.associations):
            why = "the node stops" if self._stopping.is_set() else "limits.associations is reached"
            log.warning("receive.refused", rule="local limit", why=f"{verdict.ae_title!a} at {caller.address}: {why}")
            _reject(association, *LOCAL_LIMIT_EXCEEDED)

    def handle_store(self, event: Event) -> int:
        """Answer a C-STORE that pynetdicom read (`EVT_C_STORE`): one that is not plain."""
        request, context = cast(C_STORE, event.request), event.context
        store_request = StoreRequest(
            sop_class_uid=str(request.AffectedSOPClassUID),
            sop_instance_uid=str(request.AffectedSOPInstanceUID),
            context_sop_class_uid=str(context.abstract_syntax),
            transfer_syntax_uid=str(context.transfer_syntax),
            data=cast(BytesIO, request.DataSet).getvalue(),
        )
        return self.store(event.assoc, store_request)

    def store(self, association: Association, request: StoreRequest) -> int:
        """Answer a C-STORE with a status of PS3.4 B.2.3, whatever happens."""
        sender = self._senders.get(association)
        try:
            if sender is None:
                raise NotAuthorisedError("the association was not admitted")
            status = self._store(request, sender)
        except DicomnodeError as error:
            status = error.store_status
            log.warning("receive.failed", association_id=_id_of(sender), status=f"{status:04X}", why=str(error))
        except Exception:  # the C-STORE handler's boundary: whatever happens, the sender gets an answer
            status = StoreStatus.PROCESSING_FAILURE
            log.exception("receive.failed", association_id=_id_of(sender), status=f"{status:04X}")
        if sender is not None:
            sender.outcomes[f"{status:04X}"] += 1
        return int(status)

    def finish_rows(self, association: Association) -> None:
        """Let what an association has brought have its rows, and the end of its own, before its release is answered."""
        if (sender := self._senders.get(association)) is not None:
            self._close_row(sender)  # if it cannot be closed now, `_end` tries again

    def note_abort(self, association: Association, error: PeerProtocolError) -> None:
        """Record that a peer is cut off for breaking a rule or a limit of the upper layer."""
        sender = self._senders.get(association)
        address = association.requestor.address
        log.warning("receive.aborted", association_id=_id_of(sender), address=address, why=str(error))

    def refuse_all(self) -> None:
        """Admit nobody from now on."""
        self._stopping.set()

    def finish(self, deadline_s: float) -> bool:
        """Wait until those that run have finished, abort those that have not by the deadline.

        Returns False if even then an instance is being stored: nobody may touch the spool while the process lives.
        """
        with self._lock:
            silent = list(self._waiting)
        for association in silent:
            self._cut(association)
        if self._wait_for_end(deadline_s):
            return True
        log.warning("receive.aborted", associations=len(self._unfinished()), after_s=deadline_s)
        for association in self._unfinished():
            if association.is_established:
                association.abort(block=False)
        self._wait_for_end(ABORT_GRACE_S)
        for association in self._unfinished():
            self._cut(association)
        return self._wait_for_end(ABORT_GRACE_S)

    def _unfinished(self) -> list[Association]:
        with self._lock:
            return list(self._connections)

    def _cut(self, association: Association) -> None:
        """End the connection of a peer that does not react; its thread then ends by itself."""
        with self._lock:
            self._waiting.pop(association, None)
            upper_layer = self._connections.get(association)
        if upper_layer is not None:
            upper_layer.hang_up()

    def _store(self, request: StoreRequest, sender: Sender) -> StoreStatus:
        stored = ingest(self._intake, request, sender, limits=self.rules.settings.limits, now=self._clock())
        log.debug("receive.stored", association_id=sender.association_id, outcome=stored.value)
        return StoreStatus.SUCCESS

    def _add_sender(self, association: Association, admission: Admission, address: str, limit: int) -> bool:
        with self._lock:
            if self._stopping.is_set() or len(self._senders) >= limit:
                return False
            sender = Sender(admission.ae_title, address, admission.may_store, opened_at=self._clock())
            self._senders[association] = sender
        log.info("receive.associated", calling_ae=ascii(admission.ae_title), peer=admission.peer, address=address)
        return True

    def _end(self, association: Association) -> None:
        """Let go of an association; its row is closed even if the database has to be waited for."""
        with self._lock:
            self._waiting.pop(association, None)
            sender = self._senders.pop(association, None)
        if sender is not None:
            while not self._close_row(sender) and not self._stopping.wait(DATABASE_RETRY_S):
                pass  # what is left open when the node stops, `close_spool` or the next start closes
            log.info(
                "receive.ended",
                association_id=sender.association_id,
                calling_ae=ascii(sender.ae_title),
                statuses=dict(sender.outcomes),
            )
        with self._lock:
            del self._connections[association]

    def _close_row(self, sender: Sender) -> bool:
        try:
            self._intake.close(sender, self._clock())
        except DatabaseUnavailableError as error:
            log.warning("receive.database_away", association_id=sender.association_id, why=str(error))
            return False
        return True

    def _wait_for_end(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._connections:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True


def _find_certificate(association: Association) -> PeerCertificate | None:
    """Return what the caller showed in its TLS handshake; None without one, or without TLS."""
    wrapper = association.dul.socket
    connection = None if wrapper is None else wrapper.socket
    return read_peer_certificate(connection) if isinstance(connection, ssl.SSLSocket) else None


def _reject(association: Association, result: int, source: int, reason: int) -> None:
    """Send A-ASSOCIATE-RJ and wait until it has left, as pynetdicom's own rejection does."""
    association.acse.send_reject(result, source, reason)
    association.kill()


def _id_of(sender: Sender | None) -> int | None:
    return None if sender is None else sender.association_id
