"""An association that stores, over a socket that is waited for: a file's own bytes out, one answer for each.

Flow: send/scu > [storing] > send/pdus > a peer
Never: a thread or a poll (they cost several times what an instance does); a data set decoded or changed on its way;
an association for anything but C-STORE (`association` opens those).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import ssl
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pynetdicom.pdu import A_ASSOCIATE_RJ

from dicomnode.digests import Beat, seek_data_set
from dicomnode.errors import PeerRejectedError, PeerUnreachableError, StorageFailedError
from dicomnode.send import pdus
from dicomnode.send.association import (
    Caller,
    acknowledge_at_once,
    check_certificate,
    explain_contexts,
    explain_nothing,
    explain_rejection,
    explain_tls,
    make_offer,
    name_with_address,
)
from dicomnode.send.pdus import Acceptance, ContextKey, StoreAnswer
from dicomnode.settings import PeerSettings

PREFIX = b"DICM"  # PS3.10 7.1: the end of what stands before the File Meta
RECEIVE_BYTES = 65536
MIB = 1 << 20
SHORTEST_WAIT_S = 0.001  # a socket takes 0 for "do not wait at all"
# What pynetdicom raises where bytes are not the PDU they begin as.
UNREADABLE = (ValueError, LookupError, AttributeError, TypeError, NotImplementedError, struct.error)
_ENDED = "the association ended, or timed out, before an answer"


@dataclass(frozen=True)
class Instance:
    """A Part-10 file to send as it is."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: Path
    sha256: str  # that the file must have

    @property
    def context(self) -> ContextKey:
        """The presentation context it needs."""
        return self.sop_class_uid, self.transfer_syntax_uid


class StoreAssociation:
    """An accepted association; one thread uses it, any other may hang up."""

    def __init__(self, wire: _Wire, acceptance: Acceptance) -> None:
        self._wire = wire
        self.is_over = False  # we hung up
        self.contexts = acceptance.contexts
        taken = min(acceptance.pdu_bytes or pdus.PDU_BYTES_AT_MOST, pdus.PDU_BYTES_AT_MOST)
        self._fragment_bytes = taken - pdus.PDV_BYTES
        if self._fragment_bytes < 1:
            raise PeerRejectedError(f"{wire.where} takes PDUs of {taken} bytes, more are needed")

    def store(self, instance: Instance, message_id: int, beat: Beat = lambda: None) -> StoreAnswer:
        """Send one instance and return the answer; whoever gets an error must not go on with this association.

        `beat` is called at least once a time-out, as long as the instance moves on. One of n MiB may take n + 1
        time-outs until it is sent: a peer may be slow, but none that takes a byte a minute holds an association for
        ever. It is as slow as a peer can be in any case: the system takes more only when a third of what it took ahead,
        up to 4 MiB, has left, and that must be within one time-out.

        Raises
        ------
        PeerUnreachableError
            If the connection ends, no answer comes in time, or the instance goes too slowly: whether the peer has it
            is not known.
        StorageFailedError
            If the file cannot be read; the association is as good as before, or `is_over` where some of it was sent.
        """
        try:
            with instance.path.open("rb", buffering=0) as file:
                left = _begin_data_set(file)
                go_on = partial(self._go_on, beat, time.monotonic(), left)
                self._send_file(file, left, instance, message_id, go_on)
        except OSError as error:
            raise StorageFailedError(f"{instance.path.name}: {error.strerror}; it is needed to be sent") from error
        return self._read_answer(message_id, beat)

    def _send_file(
        self, file: BinaryIO, left: int, instance: Instance, message_id: int, go_on: Callable[[int], None]
    ) -> None:
        """Send the command and the data set, what is `left` of a file."""
        command = pdus.encode_store_request(instance.sop_class_uid, instance.sop_instance_uid, message_id)
        context_id = self.contexts[instance.context]
        fragment = file.read(self._fragment_bytes)
        ahead = pdus.encode_pdv(context_id, pdus.COMMAND_LAST, command)
        while left > len(fragment):
            self._wire.send(ahead + pdus.encode_pdv(context_id, pdus.DATA, fragment))
            left -= len(fragment)
            go_on(left)
            ahead, fragment = b"", self._read_on(file)
        self._wire.send(ahead + pdus.encode_pdv(context_id, pdus.DATA_LAST, fragment))

    def _go_on(self, beat: Beat, started: float, size: int, left: int) -> None:
        """Say that a data set of `size` bytes moves on; hang up where it has taken too long for all but `left`."""
        taken, took_s, timeout_s = size - left, time.monotonic() - started, self._wire.timeout_s
        if took_s > timeout_s * (1 + taken / MIB):
            self.hang_up()
            raise PeerUnreachableError(
                f"{self._wire.name}: it is too slow: {taken} of {size} bytes went in {took_s:.0f} s; "
                f"1 MiB in each {timeout_s:g} s (send.timeout_s) is needed"
            )
        beat()

    def _read_on(self, file: BinaryIO) -> bytes:
        """Read on, and hang up when the file ends early, for then the peer waits for the rest."""
        try:
            if fragment := file.read(self._fragment_bytes):
                return fragment
            raise OSError(errno.EIO, "the file became shorter")
        except OSError:
            self.hang_up()
            raise

    def release(self) -> None:
        """Ask for the release, and wait for the peer's word or its end."""
        with contextlib.suppress(PeerUnreachableError):
            self._wire.send(pdus.RELEASE)
            deadline = self._wire.find_deadline()
            while self._wire.read_pdu(deadline)[0] not in (pdus.RELEASE_REQUEST, pdus.RELEASE_RESPONSE):
                pass

    def abort(self) -> None:
        """Tell the peer that it is over."""
        with contextlib.suppress(PeerUnreachableError):
            self._wire.send(pdus.ABORT)

    def hang_up(self) -> None:
        """End the connection from any thread: the one that waits for an answer gets `PeerUnreachableError`."""
        self.is_over = True
        self._wire.hang_up()

    def _read_answer(self, message_id: int, beat: Beat) -> StoreAnswer:
        command, deadline = b"", self._wire.await_answer(beat)
        while True:
            kind, pdu = self._wire.read_pdu(deadline)
            if kind != pdus.P_DATA:
                raise PeerUnreachableError(f"{self._wire.name}: the association ended, by the peer, before an answer")
            try:
                for _context, control, fragment in pdus.decode_pdvs(pdu[pdus.HEADER_BYTES :]):
                    command += fragment
                    if control == pdus.COMMAND_LAST:
                        answer = pdus.decode_store_answer(command)
                        return self._checked(answer, message_id)
            except ValueError as error:
                raise PeerUnreachableError(f"{self._wire.name}: its answer is not one to C-STORE: {error}") from error

    def _checked(self, answer: StoreAnswer, message_id: int) -> StoreAnswer:
        if answer.message_id != message_id:
            raise ValueError(f"it is to message {answer.message_id}, {message_id} was asked")
        return answer


@contextmanager
def open_store_association(
    peer: PeerSettings, caller: Caller, contexts: Iterable[ContextKey]
) -> Iterator[StoreAssociation]:
    """Open an association that offers exactly these presentation contexts; release it, or abort it after an error.

    Raises
    ------
    PeerUnreachableError, PeerBusyError, PeerRejectedError
        As `association.open_association` does.
    """
    offered = make_offer(peer, caller, contexts)
    with _connected(peer, caller) as connection:
        wire = _Wire(connection, peer, caller.timeout_s)
        association = StoreAssociation(wire, _associate(wire, peer, caller, offered))
        try:
            yield association
        except BaseException:
            association.abort()
            raise
        else:
            association.release()


class _Wire:
    """PDUs over a connected socket; every failure is `PeerUnreachableError`."""

    def __init__(self, connection: socket.socket, peer: PeerSettings, timeout_s: float) -> None:
        self._connection = connection
        self.timeout_s = timeout_s
        self._received = bytearray()
        self.name = peer.name
        self.where = name_with_address(peer)

    def send(self, data: bytes) -> None:
        """Send bytes, all within the time-out, or hang up: half a PDU cannot be taken back.

        `sendall` of SSLSocket begins another time-out with each record.
        """
        deadline, left = self.find_deadline(), memoryview(data)
        try:
            while left:
                self._connection.settimeout(max(deadline - time.monotonic(), SHORTEST_WAIT_S))
                left = left[self._connection.send(left) :]
        except OSError as error:
            self.hang_up()
            raise PeerUnreachableError(f"{self.name}: the association ended before the instance was sent") from error

    def find_deadline(self) -> float:
        """Return until when an answer may take that is asked for now, monotonic seconds."""
        return time.monotonic() + self.timeout_s

    def await_answer(self, beat: Beat) -> float:
        """Wait until an answer begins, and return until when the rest of it may take, monotonic seconds.

        That is for one time-out, and for one more for each MiB that the system took ahead of a slow line and that has
        not left yet, as long as it goes on leaving. `beat` is called at least once a time-out.
        """
        queued = self._count_queued()
        end = self.find_deadline() + self.timeout_s * queued / MIB
        while True:
            beat()
            deadline = min(self.find_deadline(), end)
            try:
                if not self._received:
                    self._receive(deadline)
            except TimeoutError as error:
                before, queued = queued, self._count_queued()
                if queued >= before or time.monotonic() >= end:
                    raise PeerUnreachableError(f"{self.name}: {_ENDED}") from error
            else:
                return deadline

    def read_pdu(self, deadline: float) -> tuple[int, bytes]:
        """Return the type of the next PDU, and the whole of it, however slowly its bytes come."""
        self._fill(pdus.HEADER_BYTES, deadline)
        length = pdus.HEADER_BYTES + int.from_bytes(self._received[2:6], "big")
        if length > pdus.OUR_PDU_BYTES + pdus.HEADER_BYTES:
            raise PeerUnreachableError(f"{self.name}: a PDU of {length} bytes, at most {pdus.OUR_PDU_BYTES} were asked")
        self._fill(length, deadline)
        pdu = bytes(self._received[:length])
        del self._received[:length]
        return pdu[0], pdu

    def hang_up(self) -> None:
        """End the connection, whoever waits for it."""
        with contextlib.suppress(OSError):
            # That of SSLSocket drops TLS under a running send.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def _fill(self, size: int, deadline: float) -> None:
        """Receive until `size` bytes are there."""
        while len(self._received) < size:
            try:
                self._receive(deadline)
            except TimeoutError as error:
                raise PeerUnreachableError(f"{self.name}: {_ENDED}") from error

    def _receive(self, deadline: float) -> None:
        """Receive what is there, or comes next; raises TimeoutError, too."""
        acknowledge_at_once(self._connection)
        try:
            self._connection.settimeout(max(deadline - time.monotonic(), SHORTEST_WAIT_S))
            received = self._connection.recv(RECEIVE_BYTES)
        except TimeoutError:
            raise
        except ssl.SSLError as error:
            raise PeerUnreachableError(f"{self.where}: {explain_tls(error)}") from error
        except OSError as error:
            raise PeerUnreachableError(f"{self.name}: {_ENDED}") from error
        if not received:
            raise PeerUnreachableError(f"{self.name}: {_ENDED}")
        self._received += received

    def _count_queued(self) -> int:
        """Return how many bytes the peer's system has not acknowledged; 0 where ours does not tell."""
        try:
            return int.from_bytes(fcntl.ioctl(self._connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0


@contextmanager
def _connected(peer: PeerSettings, caller: Caller) -> Iterator[socket.socket]:
    """Connect, by TLS where the peer is called so, and close at the end."""
    try:
        plain = socket.create_connection((peer.host, peer.port), caller.timeout_s)
    except socket.gaierror as error:  # the host's name has no address
        raise PeerUnreachableError(f"{peer.name}: {peer.host}: {error.strerror}") from error
    except OSError as error:
        raise explain_nothing(peer) from error
    with plain:
        # A command would wait for the acknowledgement of the one before.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not peer.tls or caller.tls is None:
            yield plain
            return
        try:
            secured = caller.tls.wrap_socket(plain, server_hostname=peer.host)
        except ssl.SSLError as error:
            raise PeerUnreachableError(f"{name_with_address(peer)}: {explain_tls(error)}") from error
        except OSError as error:
            raise explain_nothing(peer) from error
        with secured:
            try:
                check_certificate(secured, peer)
            except ssl.SSLError as error:
                raise PeerUnreachableError(f"{name_with_address(peer)}: {explain_tls(error)}") from error
            yield secured


def _associate(wire: _Wire, peer: PeerSettings, caller: Caller, offered: list[ContextKey]) -> Acceptance:
    """Ask for the association; raise for every way in which it does not come about."""
    try:
        wire.send(pdus.encode_association(caller.ae_title, peer.ae_title, offered))
        kind, pdu = wire.read_pdu(wire.find_deadline())
    except PeerUnreachableError as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise
        raise explain_nothing(peer) from error
    if kind not in (pdus.A_ASSOCIATE_REJECT, pdus.A_ASSOCIATE_ACCEPT):
        raise explain_nothing(peer)
    try:
        if kind == pdus.A_ASSOCIATE_REJECT:
            rejection = A_ASSOCIATE_RJ()
            rejection.decode(pdu)
            raise explain_rejection(peer, rejection)
        acceptance = pdus.decode_acceptance(pdu, offered)
    except UNREADABLE as error:
        raise PeerUnreachableError(f"{wire.where}: its answer to the request for an association is broken") from error
    if not acceptance.contexts:
        wire.send(pdus.ABORT)
        raise explain_contexts(peer, len(offered))
    return acceptance


def _begin_data_set(file: BinaryIO) -> int:
    """Go to where the data set of a Part-10 file begins, and return its length."""
    before = seek_data_set(file)
    length = os.fstat(file.fileno()).st_size - file.tell()
    if not before.endswith(PREFIX) or length <= 0:
        raise OSError(errno.EINVAL, "not a DICOM file")
    return length
