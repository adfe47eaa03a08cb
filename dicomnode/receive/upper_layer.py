"""pynetdicom's upper layer without its polling: it waits for the socket, and stores a plain C-STORE on the spot.

Flow: receive.scp > [upper_layer] > receive.connection, receive.pdus, receive.messages, receive.service
Never: a thread of its own (whoever waits for a primitive reads the socket meanwhile); an answer to anything but a plain
C-STORE: negotiation, C-ECHO, release and all else are pynetdicom's; more bytes or time than the limits give.
"""

from __future__ import annotations

import math
import struct
import threading
import time
from functools import cached_property
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu_primitives import A_ABORT, A_ASSOCIATE, A_P_ABORT, A_RELEASE, P_DATA

from dicomnode.commitment import PUSH_MODEL
from dicomnode.errors import LimitExceededError, PeerProtocolError
from dicomnode.logs import get_logger
from dicomnode.receive.connection import Connection
from dicomnode.receive.ingest import StoreRequest
from dicomnode.receive.messages import (
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_STORE_RQ,
    N_ACTION_RQ,
    N_EVENT_REPORT_RQ,
    P_DATA_TF,
    PDU_HEADER,
    Assembler,
    Message,
    encode_store_response,
    malformed,
    read_command_field,
    read_store_command,
)
from dicomnode.receive.pdus import (
    A_ASSOCIATE_RQ,
    A_RELEASE_RQ,
    AWAITING_CLOSE,
    AWAITING_REQUEST,
    ESTABLISHED,
    RELEASING,
    check_turn,
    encode_abort,
    encode_reject,
    read_request_head,
    tidy_request_head,
)
from dicomnode.receive.service import Service
from dicomnode.receive.usage import Usage
from dicomnode.status import AbortReason

log = get_logger()

CLOSE_S = 1.0  # for the peer to read our last word and close: to close first could take it from the peer
RESPONSE_BYTES_MAX = 256  # of a C-STORE-RSP; a peer that takes no PDU of this size gets it in pieces, from pynetdicom
# What pynetdicom raises on what it cannot decode.
_UNREADABLE = (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError, struct.error)
# What pynetdicom answers, by the SOP class of the presentation context; a C-CANCEL can only come too late.
_ANYWHERE = frozenset({C_ECHO_RQ, C_CANCEL_RQ})
_OF_PUSH_MODEL, _OF_OTHERS = frozenset({N_ACTION_RQ, N_EVENT_REPORT_RQ}), frozenset({C_STORE_RQ})
UNREADABLE_MESSAGE = "Evt19"  # PS3.8 table 9-10, so that pynetdicom aborts


class UpperLayer(DULServiceProvider):
    """The upper layer of one accepted connection; only `send_pdu` and `hang_up` are for other threads."""

    def __init__(self, association: Association, usage: Usage, service: Service) -> None:
        super().__init__(association)
        self._limits = usage.limits
        self._usage = usage
        self._service = service
        self._assembler = Assembler(self._limits.data_set_bytes)
        self._heard_at = time.monotonic()
        self._pdu_since = self._message_since = math.inf  # when what is incomplete began to arrive
        self._close_by = math.inf
        self._reports_due = 0  # N-EVENT-REPORTs that are not answered

    # What pynetdicom asks of the thread that this class does without.

    def start(self) -> None:
        """Be ready."""
        self.assoc._dul_ready.set()  # noqa: SLF001  pynetdicom's thread says so, and the association waits for it

    def is_alive(self) -> bool:
        """Say whether the connection is still served."""
        return not self._kill_thread

    def stop_dul(self) -> bool:
        """See the connection to its end."""
        while self.is_alive():
            if self._state != AWAITING_CLOSE and self.to_provider_queue.empty():
                self._close()
            else:
                self._step(math.inf)
        return True

    def idle_timer_expired(self) -> bool:
        """Say whether the peer has been silent for too long."""
        return time.monotonic() >= self._idle_at

    def send_pdu(self, primitive: A_ABORT | A_P_ABORT | A_ASSOCIATE | A_RELEASE | P_DATA) -> None:
        """Queue a primitive; it is sent before anything else is read. After an abort nothing is."""
        if self._state == AWAITING_CLOSE:
            return
        if isinstance(primitive, P_DATA):
            self._reports_due = 0
        super().send_pdu(primitive)
        if threading.current_thread() is not self.assoc:
            self._connection.wake()

    def receive_pdu(
        self,
        wait: bool = False,  # noqa: FBT001  pynetdicom fixes the signature
        timeout: float | None = None,
    ) -> A_ABORT | A_P_ABORT | A_ASSOCIATE | A_RELEASE | None:
        """Return a primitive for the association, reading until there is one if asked to wait."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while wait and self.is_alive() and self.to_user_queue.empty() and time.monotonic() < deadline:
            self._step(deadline)
        if self.is_alive() and self._state == AWAITING_REQUEST:  # and pynetdicom closes it now
            self._service.note_silence(self.assoc.requestor.address, timeout or 0)
        return super().receive_pdu(wait=False)

    def wait_for_user(self) -> None:
        """Read, and store, until there is something that is the association's business; the last such is done with."""
        self._let_go()
        while self.is_alive() and self.to_user_queue.empty() and self.assoc.dimse.msg_queue.empty():
            if self.idle_timer_expired():
                self._service.note_silence(self.assoc.requestor.address, self._limits.idle_s)
                return
            self._step(math.inf)

    def hang_up(self) -> None:
        """End the connection, from any thread, whatever the peer does."""
        if self.socket is not None:
            self._connection.hang_up()

    def note_unread(self) -> None:
        """Record that the peer does not read what it is sent: its connection is shut, and nothing can be said to it."""
        words = f"it did not read an answer within {self._limits.pdu_s} s"
        self._service.note_abort(self.assoc, LimitExceededError("pdu_s", words))

    def break_off(self, error: PeerProtocolError) -> None:
        """Send A-ABORT with the reason, forget what came, and tell the association."""
        self._service.note_abort(self.assoc, error)
        self._say_last(encode_abort(error.reason))
        if self.assoc.requestor.primitive is not None:
            primitive = A_P_ABORT()
            primitive.provider_reason = error.reason
            self.to_user_queue.put(primitive)

    def free(self) -> None:
        """Give everything back; the association has ended."""
        self._close()
        self._forget()
        self._connection.release()

    # One step: send one primitive, or take what has come.

    def _step(self, until: float) -> None:
        if self.artim_timer.expired:
            if self._state == AWAITING_REQUEST:
                self._service.note_silence(self.assoc.requestor.address, self.assoc.acse_timeout or 0)
            self.event_queue.put("Evt18")
        elif not self._process_recv_primitive():
            try:
                self._read(until)
            except PeerProtocolError as error:
                self.break_off(error)
        while self.is_alive() and not self.event_queue.empty():
            try:
                self.state_machine.do_action(self.event_queue.get(block=False))
            except (InvalidEventError, *_UNREADABLE) as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End what pynetdicom gave up: over a request that it could not read, or an answer of ours after the end."""
        if self._state == AWAITING_REQUEST:
            self._kill_thread = False  # until the peer has been told
            self.break_off(malformed(f"an association request that cannot be read: {type(error).__name__}"))
        else:
            log.warning("receive.closed", address=self.assoc.requestor.address, why=type(error).__name__)
            self._close()

    def _read(self, until: float) -> None:
        received = self._connection.received
        if self._state == AWAITING_CLOSE:
            self._await_close()
        elif len(received) >= (needed := self._count_needed()) and received:
            self._take_pdu(needed)
            self._pdu_since = time.monotonic() if self._connection.received else math.inf
            self._check_deadlines()  # who never pauses is not waited for
        else:
            try:
                self._receive(min(until, self._next_deadline()))
            except TimeoutError:
                self._check_deadlines()

    def _receive(self, deadline: float) -> None:
        chunk = self._connection.receive(deadline)
        if chunk is None:
            return
        if not chunk:
            self.event_queue.put("Evt17")
            return
        self._heard_at = time.monotonic()
        if not self._connection.received:
            self._pdu_since = self._heard_at
        self._connection.received += chunk

    def _count_needed(self) -> int:
        """Return how many bytes the next PDU has, or at least its header; judge its length before it comes."""
        received = self._connection.received
        if len(received) < PDU_HEADER.size:
            return PDU_HEADER.size
        pdu_type, length = PDU_HEADER.unpack_from(received)
        check_turn(pdu_type, self._state)
        is_data = pdu_type == P_DATA_TF
        limit = int(self.assoc.acceptor.maximum_length or 0) if is_data else self._limits.associate_bytes
        if length > limit:
            raise LimitExceededError(
                "pdu_bytes" if is_data else "associate_bytes",
                f"a PDU of type {pdu_type:02X} says it has {length} bytes, at most {limit} are taken",
                AbortReason.INVALID_PDU_PARAMETER_VALUE,
            )
        return PDU_HEADER.size + int(length)

    def _take_pdu(self, size: int) -> None:
        pdu_type = self._connection.received[0]
        if pdu_type == P_DATA_TF:
            self._take_data(size)
        elif pdu_type != A_ASSOCIATE_RQ or self._is_read_on(size):
            if pdu_type == A_RELEASE_RQ:
                self._service.finish_rows(self.assoc)
            self._read_pdu_data()  # pynetdicom's: it takes the bytes by `Connection.recv`
            if UNREADABLE_MESSAGE in self.event_queue.queue:
                self.event_queue.queue.clear()
                raise malformed(f"a PDU of type {pdu_type:02X} cannot be read")

    def _is_read_on(self, size: int) -> bool:
        """Have a request judged by what pynetdicom could not read, or would not; reject it, or make it readable."""
        received = self._connection.received
        head = read_request_head(received[:size])
        rejection = self._service.judge_head(self.assoc, head)
        if rejection is not None:
            self._say_last(encode_reject(*rejection))
            return False
        tidy_request_head(received, head)
        return True

    def _take_data(self, size: int) -> None:
        connection = self._connection
        pdu, connection.received = connection.received, connection.received[size:]
        if self._state == RELEASING:
            return  # we asked for the release: nothing may be answered any more
        self._usage.take_data(size)
        for message in self._assembler.take(memoryview(pdu)[PDU_HEADER.size : size]):
            self._take_message(message)
            self._let_go()
            self._message_since = math.inf
        if not self._assembler.is_between_messages:
            self._message_since = min(self._message_since, time.monotonic())

    def _let_go(self) -> None:
        """Hold nothing more of what came, unless pynetdicom has still to answer some of it."""
        if self.assoc.dimse.msg_queue.empty():
            self._usage.let_go()

    def _take_message(self, message: Message) -> None:
        if message.has_data_set:
            self._usage.take_instance()
        command = read_store_command(message.command_set)
        context = self._contexts.get(message.context_id)
        if command is None or context is None or 0 < (self.assoc.requestor.maximum_length or 0) < RESPONSE_BYTES_MAX:
            self._hand_over(message, None if context is None else context[0])
            return
        request = StoreRequest(command.sop_class_uid, command.sop_instance_uid, *context, message.data_set)
        status = self._service.store(self.assoc, request)
        self._connection.send(encode_store_response(command, message.context_id, status))
        self._heard_at = time.monotonic()

    @cached_property
    def _contexts(self) -> dict[int | None, tuple[str, str]]:
        """SOP class and transfer syntax of each presentation context; they are fixed once messages come."""
        return {
            context.context_id: (str(context.abstract_syntax), str(context.transfer_syntax[0]))
            for context in self.assoc.accepted_contexts
        }

    def _hand_over(self, message: Message, sop_class_uid: str | None) -> None:
        """Let pynetdicom judge and answer what it knows; it would leave the rest unanswered."""
        field = read_command_field(message.command_set)
        known = _ANYWHERE | (_OF_PUSH_MODEL if sop_class_uid == PUSH_MODEL else _OF_OTHERS)
        if sop_class_uid is None or field not in known:
            shown = "none" if field is None else f"{field:04X}"
            raise malformed(f"command {shown} came in presentation context {message.context_id}, {sop_class_uid}")
        if field == N_EVENT_REPORT_RQ:
            self._reports_due += 1  # each has a thread of pynetdicom's
            if self._reports_due > 1:
                raise malformed("a report came before the answer to the last one")
        primitive = P_DATA()
        pdvs: Any = [[message.context_id, b"\x03" + message.command_set]]  # pynetdicom says tuples and wants lists
        if message.has_data_set:
            pdvs.append([message.context_id, b"\x02" + message.data_set])
        primitive.presentation_data_value_list = pdvs
        try:
            self.assoc.dimse.receive_primitive(primitive)
        except _UNREADABLE as error:
            raise malformed("a message of no known kind") from error
        waiting = self.assoc.dimse.msg_queue.queue
        if UNREADABLE_MESSAGE in self.event_queue.queue or (waiting and not waiting[-1][1].is_valid_request):
            self.event_queue.queue.clear()
            waiting.clear()
            raise malformed(f"command {field:04X} lacks a value that it needs, or has one that cannot be read")

    # Limits of time.

    @property
    def _idle_at(self) -> float:
        return self._heard_at + self._limits.idle_s if self._state == ESTABLISHED else math.inf

    @property
    def _state(self) -> str:
        return self.state_machine.current_state

    def _deadlines(self) -> tuple[tuple[float, str, str], ...]:
        """Return until when what is incomplete must have come, with the limit and the words for who is later."""
        limits = self._limits
        return (
            (self._pdu_since + limits.pdu_s, "pdu_s", f"a PDU took longer than {limits.pdu_s} s to arrive"),
            (
                self._message_since + limits.data_set_s,
                "data_set_s",
                f"an instance took longer than {limits.data_set_s} s to arrive",
            ),
        )

    def _next_deadline(self) -> float:
        is_armed = self._state == AWAITING_REQUEST
        associate_at = time.monotonic() + max(self.artim_timer.remaining, 0) if is_armed else math.inf
        return min(self._idle_at, associate_at, *(at for at, *_ in self._deadlines()))

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for at, limit, words in self._deadlines():
            if now >= at:
                raise LimitExceededError(limit, words)
        if now >= self._idle_at and not (self._assembler.is_between_messages and not self._connection.received):
            raise LimitExceededError("idle_s", f"nothing came for {self._limits.idle_s} s in the middle of a message")

    # The end.

    def _say_last(self, words: bytes) -> None:
        """Forget what came, and send a last PDU; then only the end of the connection is waited for."""
        self._forget()
        self._connection.send(words)
        self.state_machine.transition(AWAITING_CLOSE)

    def _forget(self) -> None:
        self._connection.received.clear()
        self._assembler = Assembler(0)
        self._usage.let_go()

    def _await_close(self) -> None:
        """Let the peer close first, for a while, whatever it still sends."""
        self._close_by = min(self._close_by, time.monotonic() + CLOSE_S)
        try:
            is_over = self._connection.receive(self._close_by) == b"" or time.monotonic() >= self._close_by
        except TimeoutError:
            is_over = True
        if is_over:
            self._connection.close()

    def _close(self) -> None:
        self._connection.close()
        self.kill_dul()

    @property
    def _connection(self) -> Connection:
        assert isinstance(self.socket, Connection)  # noqa: S101  `attach` sets it
        return self.socket
