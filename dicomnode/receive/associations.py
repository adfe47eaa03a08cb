"""Handles what happens in each association: admission, C-STORE, its end.

Flow: receive.scp > [associations] > receive.policy, receive.ingest
Never: a wait of a caller for a name server or for another association; an answer of Success that `ingest` did not give.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from typing import cast

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from dicomnode.audit import NODE_AUTHENTICATION, RESTRICTED_FUNCTION, Party
from dicomnode.certificates import read_peer_certificate
from dicomnode.errors import (
    CommitmentForbiddenError,
    CommitmentRefusedError,
    DatabaseUnavailableError,
    DicomnodeError,
    LimitExceededError,
    NotAuthorisedError,
    PeerProtocolError,
)
from dicomnode.logs import get_logger
from dicomnode.metrics import (
    ASSOCIATIONS,
    COMMITMENT_MESSAGES,
    INSTANCES,
    LIMIT_CROSSINGS,
    PROTOCOL_ERRORS,
    REFUSED_ASSOCIATIONS,
    REFUSED_CONTEXTS,
    Counts,
)
from dicomnode.receive.alerts import Alerts
from dicomnode.receive.attaching import attach
from dicomnode.receive.commitment import Kind, note_refusal, read_message, take_message
from dicomnode.receive.contexts import find_kept_out, find_unknown, make_contexts
from dicomnode.receive.ingest import StoreRequest, ingest
from dicomnode.receive.intake import Intake
from dicomnode.receive.load import Load, Overload
from dicomnode.receive.pdus import RequestHead
from dicomnode.receive.policy import Addresses, Admission, Caller, Refusal, admit
from dicomnode.receive.recording import Sender
from dicomnode.receive.upper_layer import UpperLayer
from dicomnode.receive.usage import Memory, Usage
from dicomnode.receive.waiting import WaitingConnections
from dicomnode.settings import Settings
from dicomnode.status import AcseReason, BusyReason, CommitmentStatus, RejectReason, StoreStatus
from dicomnode.storage_root import find_storage_problem

log = get_logger()

DATABASE_RETRY_S = 5.0
ABORT_GRACE_S = 1.0  # for the A-ABORT to leave before the socket is shut
POLL_S = 0.02
TOLD_CONTEXTS = 10  # of those that a caller offers, in one line: a PACS may offer a hundred that are of no use here
# PS3.8 table 9-21, Result and Source: a rule keeps the caller out for good; what is too much now may be less later.
REJECTED: Mapping[type[IntEnum], tuple[int, int]] = {RejectReason: (1, 1), AcseReason: (1, 2), BusyReason: (2, 3)}


@dataclass(frozen=True)
class Rules:
    """What a request is judged by: replaced as a whole when the settings change."""

    settings: Settings
    addresses: Addresses


class Associations:
    """The associations of one SCP; its methods are called in pynetdicom's threads, one for each association."""

    def __init__(self, rules: Rules, intake: Intake, clock: Callable[[], float], counts: Counts) -> None:
        self.rules = rules
        self.waiting = WaitingConnections()
        self.alerts = Alerts(clock)
        self._intake = intake
        self._clock = clock
        self.counts = counts
        self._load, self._memory = Load(), Memory()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[Association, UpperLayer] = {}
        self._admissions: dict[Association, Admission] = {}  # until the rest of the request is read
        self._senders: dict[Association, Sender] = {}

    def replace_rules(self, rules: Rules, instead_of: Rules | None = None) -> None:
        """Judge requests from now on by these rules, unless they were made of others than those in force."""
        with self._lock:
            if instead_of is None or instead_of is self.rules:
                self.rules = rules

    def let_wait(self, client: socket.socket, address: str) -> None:
        """Take a new connection, before any thread of its own; it asks for an association, or makes room for others."""
        limit = self.rules.settings.limits.waiting_connections
        if self.waiting.add(client, address, limit):
            self.counts.add(LIMIT_CROSSINGS, limit="waiting_connections")
            log.info("receive.cut", limit="waiting_connections", why=f"{limit} wait, and one from {address} came")

    def start(self, association: Association, client: socket.socket) -> None:
        """Start an association's thread, and follow it to its end, whichever way it ends.

        Raises
        ------
        OSError, RuntimeError
            If there is no descriptor or no thread for it: nothing is kept of it.
        """
        upper_layer = attach(association, client, Usage(self.rules.settings.limits, self._memory), self)
        run = association.run

        def end() -> None:
            self.waiting.remove(client)
            upper_layer.free()
            self._end(association)

        def run_to_end() -> None:
            try:
                run()
            finally:
                end()

        association.run = run_to_end  # type: ignore[method-assign]  # no event fires on every way out
        association.network_timeout_response = "A-RELEASE"  # some peers discard a study that ends with A-ABORT
        with self._lock:
            self._connections[association] = upper_layer
        try:
            association.start()
        except BaseException:
            end()
            raise

    def judge_head(self, association: Association, head: RequestHead) -> tuple[int, int, int] | None:
        """Admit a caller by what its request begins with, or return what to reject it with; the rest is unread."""
        client = _find_socket(association)
        certificate = read_peer_certificate(client) if isinstance(client, ssl.SSLSocket) else None
        caller = Caller(head, association.requestor.address, certificate)
        rules = self.rules
        verdict = admit(rules.settings, rules.addresses, caller)
        if isinstance(verdict, Refusal):
            return self._note_refusal(verdict, caller)
        if overload := self._find_overload(association, verdict, caller):
            self.counts.add(LIMIT_CROSSINGS, limit=overload.limit)
            why = f"{verdict.ae_title!a} at {caller.address}: {overload.message}"
            return self._note_rejection(f"limits.{overload.limit}", why, overload.reason)
        if client is not None:
            self.waiting.remove(client)  # who is rejected makes room for others until it has gone
        with self._lock:
            self._admissions[association] = verdict
        return None

    def handle_request(self, event: Event) -> None:
        """Begin who was admitted its association (`EVT_REQUESTED`); who is not in `_senders` stores nothing."""
        association = event.assoc
        with self._lock:
            admission = self._admissions.pop(association)
        self._add_sender(association, admission)
        request = cast(A_ASSOCIATE, association.requestor.primitive)
        self._narrow(association, admission, request.presentation_context_definition_list)

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
        try:
            return self.store(event.assoc, store_request)
        except PeerProtocolError as error:
            self._connections[event.assoc].break_off(error)
            return int(error.store_status)  # pynetdicom wants one; after the abort nothing is sent

    def handle_commitment(self, event: Event) -> tuple[int, None]:
        """Answer an N-ACTION or N-EVENT-REPORT (`EVT_N_ACTION`, `EVT_N_EVENT_REPORT`)."""
        sender, (kind, message) = self._senders.get(event.assoc), read_message(event)
        status = CommitmentStatus.SUCCESS
        try:
            if sender is None:
                raise NotAuthorisedError("the association was not admitted")
            take_message(self._intake, kind, message, sender, self.rules.settings, self._clock())
        except DicomnodeError as error:
            status = CommitmentStatus.PROCESSING_FAILURE
            if isinstance(error, CommitmentRefusedError):
                status = error.status
            if status is CommitmentStatus.RESOURCE_LIMITATION:
                self.counts.add(LIMIT_CROSSINGS, limit="commitment_instances")
            where = {"association_id": _id_of(sender), "kind": kind, "status": f"{status:04X}"}
            log.warning("receive.commitment_refused", **where, why=str(error))
            if sender is not None and isinstance(error, CommitmentRefusedError):
                self._tell_refusal(sender, kind, error)
        self.counts.add(COMMITMENT_MESSAGES, kind=kind, status=f"{status:04X}")
        return int(status), None

    def _tell_refusal(self, sender: Sender, kind: Kind, error: CommitmentRefusedError) -> None:
        """Note for an administrator, and for the audit trail where a peer does what it may not, what was refused."""
        note_refusal(self._intake.database, sender, kind, str(error), self._clock())
        if isinstance(error, CommitmentForbiddenError):
            party = Party(sender.ae_title, sender.address)
            self.alerts.note(RESTRICTED_FUNCTION, f"commitment {kind}", str(error), party)

    def store(self, association: Association, request: StoreRequest) -> int:
        """Answer a C-STORE with a status of PS3.4 B.2.3, whatever happens; raises `PeerProtocolError` for an abort."""
        sender = self._senders.get(association)
        try:
            if sender is None:
                raise NotAuthorisedError("the association was not admitted")
            ingest(self._intake, request, sender, limits=self.rules.settings.limits, now=self._clock())
            status = StoreStatus.SUCCESS
        except PeerProtocolError:
            raise
        except DicomnodeError as error:
            status = error.store_status
            log.warning("receive.failed", association_id=_id_of(sender), status=f"{status:04X}", why=str(error))
            if isinstance(error, NotAuthorisedError) and sender is not None:
                self.alerts.note(RESTRICTED_FUNCTION, "store", str(error), Party(sender.ae_title, sender.address))
        except Exception:  # the C-STORE handler's boundary: whatever happens, the sender gets an answer
            status = StoreStatus.PROCESSING_FAILURE
            log.exception("receive.failed", association_id=_id_of(sender), status=f"{status:04X}")
        self.counts.add(INSTANCES, status=f"{status:04X}")
        if sender is not None:
            sender.outcomes[f"{status:04X}"] += 1
        return int(status)

    def finish_rows(self, association: Association) -> None:
        """Let what an association has brought have its rows, and the end of its own, before its release is answered."""
        if (sender := self._senders.get(association)) is not None:
            self._close_row(sender)  # if it cannot be closed now, `_end` tries again

    def note_abort(self, association: Association, error: PeerProtocolError) -> None:
        """Record that a peer is cut off for breaking a rule or a limit of the upper layer."""
        limit = {}
        if isinstance(error, LimitExceededError):
            limit = {"limit": error.limit}
            self.counts.add(LIMIT_CROSSINGS, **limit)
        else:
            self.counts.add(PROTOCOL_ERRORS)
        sender, address = self._senders.get(association), association.requestor.address
        log.warning("receive.aborted", association_id=_id_of(sender), address=address, **limit, why=str(error))
        known = sender or self._admissions.get(association)  # admitted, while the rest of its request is read
        party = Party("" if known is None else known.ae_title, address)
        self.alerts.note(RESTRICTED_FUNCTION, limit.get("limit", "protocol"), str(error), party)

    def note_silence(self, address: str, idle_s: float) -> None:
        """Record that a peer that says nothing is let go: its association is released, or its connection closed."""
        self.counts.add(LIMIT_CROSSINGS, limit="idle_s")
        log.info("receive.let_go", address=address, limit="idle_s", why=f"nothing came for {idle_s:g} s")

    def refuse_all(self) -> None:
        """Admit nobody from now on."""
        self._stopping.set()

    def finish(self, deadline_s: float) -> bool:
        """Wait until those that run have finished, abort those that have not by the deadline.

        Returns False if even then an instance is being stored: nobody may touch the spool while the process lives.
        """
        self.waiting.cut_all()
        if self._wait_for_end(deadline_s):
            return True
        log.warning("receive.aborted", associations=len(self._unfinished()), after_s=deadline_s)
        for association in self._unfinished():
            if association.is_established:
                association.abort(block=False)
        self._wait_for_end(ABORT_GRACE_S)
        for upper_layer in self._unfinished().values():
            upper_layer.hang_up()  # its thread then ends by itself
        return self._wait_for_end(ABORT_GRACE_S)

    def _unfinished(self) -> dict[Association, UpperLayer]:
        with self._lock:
            return dict(self._connections)

    def _find_overload(self, association: Association, admission: Admission, caller: Caller) -> Overload | None:
        """Say what keeps an admitted caller out for now, or count it in."""
        limits = self.rules.settings.limits
        if self._stopping.is_set():
            return Overload(BusyReason.LOCAL_LIMIT_EXCEEDED, "shutdown_s", "the node stops")
        spool = self._intake.spool
        problem = find_storage_problem(spool.store.spool_folder(spool.node), limits.disk_reserve_bytes)
        if problem is not None:
            return Overload(BusyReason.LOCAL_LIMIT_EXCEEDED, "disk_reserve_bytes", problem)
        return self._load.enter(association, admission.peer or caller.address, limits, time.monotonic())

    def _note_refusal(self, refusal: Refusal, caller: Caller) -> tuple[int, int, int]:
        """Record that a rule keeps a caller out, and return what to tell it."""
        party = Party(caller.head.calling_ae, caller.address)
        self.alerts.note(NODE_AUTHENTICATION, refusal.rule, refusal.message, party)
        return self._note_rejection(refusal.rule, refusal.message, refusal.reason)

    def _note_rejection(self, rule: str, why: str, reason: IntEnum) -> tuple[int, int, int]:
        self.counts.add(REFUSED_ASSOCIATIONS, rule=rule)
        log.warning("receive.refused", rule=rule, why=why)
        return (*REJECTED[type(reason)], int(reason))

    def _add_sender(self, association: Association, admission: Admission) -> None:
        address = association.requestor.address
        who = (admission.ae_title, address, admission.may_store)
        sender = Sender(*who, opened_at=self._clock(), names=admission.names)
        with self._lock:
            self._senders[association] = sender
        self.counts.add(ASSOCIATIONS)
        calling_ae = ascii(admission.ae_title)
        log.info("receive.associated", calling_ae=calling_ae, peer=admission.peer, address=address)

    def _narrow(self, association: Association, admission: Admission, offered: Sequence[PresentationContext]) -> None:
        """Leave the association those presentation contexts that its peer may have, and tell of the others."""
        if unknown := find_unknown(offered):
            more = f" and {len(unknown) - TOLD_CONTEXTS} more" if len(unknown) > TOLD_CONTEXTS else ""
            shown = f"{', '.join(unknown[:TOLD_CONTEXTS])}{more}"
            self.counts.add(REFUSED_CONTEXTS)
            why = f"{admission.ae_title!a} offered {shown}, which this node takes from nobody"
            log.info("receive.context_refused", rule="SOP classes of this node", why=why)
        allowed = admission.sop_classes, admission.transfer_syntaxes
        if any(allowed):
            association.acceptor.supported_contexts = make_contexts(*allowed)
            for kept_out in find_kept_out(offered, *allowed):
                rule = "SOP class or transfer syntax of the peer"
                why = f"{admission.ae_title!a} offered {kept_out}, which peer {admission.peer} is not configured with"
                self.counts.add(REFUSED_CONTEXTS)
                log.warning("receive.context_refused", rule=rule, why=why)

    def _end(self, association: Association) -> None:
        """Let go of an association; its row is closed even if the database has to be waited for."""
        with self._lock:
            sender = self._senders.pop(association, None)
            self._admissions.pop(association, None)
        self._load.leave(association)
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


def _find_socket(association: Association) -> socket.socket | None:
    wrapper = association.dul.socket
    return None if wrapper is None else wrapper.socket


def _id_of(sender: Sender | None) -> int | None:
    return None if sender is None else sender.association_id
