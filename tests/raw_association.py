"""An association as bytes on a socket: whatever PDUs a test makes are sent as they are, and what comes back is given.

Flow: tests > [raw_association] > a Storage SCP
Never: a rule of the upper layer kept for the sender's sake; our own encoders (pydicom's and pynetdicom's are here).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

from tests.peers_programs import LOOPBACK
from tests.receiving import MR, ROOT

ANSWER_TIMEOUT_S = 20.0
A_ASSOCIATE_AC, A_RELEASE_RP, A_ABORT, P_DATA = 0x02, 0x06, 0x07, 0x04
A_RELEASE_RQ = bytes.fromhex("05000000000400000000")
COMMAND, LAST = 1, 2


def pdu(pdu_type: int, body: bytes) -> bytes:
    """Return a PDU: PS3.8 9.3.1."""
    return struct.pack(">BxL", pdu_type, len(body)) + body


def pdv(context_id: int, control: int, fragment: bytes) -> bytes:
    """Return a presentation data value: PS3.8 9.3.5.1."""
    return struct.pack(">LBB", len(fragment) + 2, context_id, control) + fragment


def fragments(context_id: int, kind: int, data: bytes, size: int) -> list[bytes]:
    """Return PDVs of at most `size` bytes of data each, the last one marked."""
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    return [pdv(context_id, kind | (LAST if part == len(parts) - 1 else 0), value) for part, value in enumerate(parts)]


def store_command(sop_class_uid: str, sop_instance_uid: str, message_id: int = 1, **more: Any) -> bytes:
    """Return the command set of a C-STORE-RQ; further elements, or others in their place, by keyword."""
    command = Dataset()
    command.AffectedSOPClassUID, command.AffectedSOPInstanceUID = UID(sop_class_uid), UID(sop_instance_uid)
    command.CommandField, command.MessageID, command.Priority, command.CommandDataSetType = (
        0x0001,
        message_id,
        2,
        0x0001,
    )
    for keyword, value in more.items():
        setattr(command, keyword, value)
    return with_group_length(command)


def echo_command(message_id: int = 1) -> bytes:
    """Return the command set of a C-ECHO-RQ."""
    command = Dataset()
    command.AffectedSOPClassUID = UID("1.2.840.10008.1.1")
    command.CommandField, command.MessageID, command.CommandDataSetType = 0x0030, message_id, 0x0101
    return with_group_length(command)


def with_group_length(command: Dataset) -> bytes:
    """Return an encoded command set that begins with its length."""
    elements = encode(command, True, True)
    assert elements is not None
    return struct.pack("<HHLL", 0, 0, 4, len(elements)) + elements


def associate_request(
    calling: str, called: str, contexts: Sequence[tuple[str, Sequence[str]]], maximum_length: int
) -> bytes:
    """Return an A-ASSOCIATE-RQ with presentation contexts 1, 3, 5 and so on."""
    request = A_ASSOCIATE()
    request.application_context_name = UID("1.2.840.10008.3.1.1.1")
    request.calling_ae_title, request.called_ae_title = calling, called
    offered = [build_context(uid, list(syntaxes)) for uid, syntaxes in contexts]
    for number, context in enumerate(offered):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = offered
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = maximum_length
    implementation.implementation_class_uid = UID(f"{ROOT}.9")
    request.user_information = [length, implementation]
    return A_ASSOCIATE_RQ(request).encode()


class RawAssociation:
    """A connection inside the `with` block; `associate` makes an association of it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((LOOPBACK, port), timeout=ANSWER_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.maximum_length = 0  # of a PDU to the peer, as it said when it accepted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def associate(
        self,
        contexts: Sequence[tuple[str, Sequence[str]]] = ((MR, (ExplicitVRLittleEndian,)),),
        *,
        calling: str = "SCANNER",
        called: str = "DICOMNODE",
        maximum_length: int = 16384,
    ) -> Self:
        """Ask for an association, and fail unless it is accepted."""
        self.send(associate_request(calling, called, contexts, maximum_length))
        answer = self.read()
        assert answer is not None
        assert answer[0] == A_ASSOCIATE_AC, answer
        at = answer.rindex(b"\x51\0\0\x04") + 4  # PS3.8 D.1.2: the maximum length sub-item
        self.maximum_length = int.from_bytes(answer[at : at + 4], "big")
        return self

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def send_pdvs(self, pdus: Iterable[Sequence[bytes]]) -> None:
        """Send one P-DATA-TF for each group of PDVs."""
        for pdvs in pdus:
            self.send(pdu(P_DATA, b"".join(pdvs)))

    def read(self) -> bytes | None:
        """Return the next PDU, or None when the connection is closed."""
        header = self._read_exactly(6)
        return None if header is None else header + (self._read_exactly(int.from_bytes(header[2:], "big")) or b"")

    def is_closed(self) -> bool:
        """Read to the end; fail when something else comes first."""
        return self.read() is None

    def release(self) -> None:
        """Ask for the release, and fail unless it is answered."""
        self.send(A_RELEASE_RQ)
        answer = self.read()
        assert answer is not None
        assert answer[0] == A_RELEASE_RP

    def _read_exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                chunk = self.socket.recv(size - len(data))
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            data += chunk
        return data
