"""The bytes of an association that stores: what is asked, what was accepted, C-STORE and its answer.

Flow: send/storing > [pdus]
Never: a socket; a data set (its bytes go out as the file has them); a PDU that we neither send nor need to understand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

ContextKey = tuple[str, str]  # SOP class UID, transfer syntax UID

# PS3.8 9.3.1: the types of PDU.
A_ASSOCIATE_ACCEPT, A_ASSOCIATE_REJECT, P_DATA, RELEASE_REQUEST, RELEASE_RESPONSE = 0x02, 0x03, 0x04, 0x05, 0x06
RELEASE = struct.pack(">BxLL", RELEASE_REQUEST, 4, 0)
ABORT = struct.pack(">BxLL", 0x07, 4, 0)  # by the service user: PS3.8 9.3.8
HEADER_BYTES = 6
CONTEXTS_AT_MOST = 128  # PS3.8 9.3.2.2: odd identifiers from 1 to 255
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1
# What we take: answers to C-STORE, which are short.
OUR_PDU_BYTES = 16384
# What we send at most, whatever the peer takes: larger ones gain nothing.
PDU_BYTES_AT_MOST = 131072
PDV_BYTES = 6  # length, context and message control header: PS3.8 9.3.5.1
COMMAND_LAST, DATA, DATA_LAST = 0x03, 0x00, 0x02  # PS3.8 E.2
STORE_REQUEST, STORE_RESPONSE = 0x0001, 0x8001  # PS3.7 9.3.1
MEDIUM, DATA_SET_FOLLOWS = 0x0000, 0x0001  # PS3.7 9.3.1.1
COMMAND_FIELD, MESSAGE_ID_ANSWERED, STATUS, ERROR_COMMENT = 0x0100, 0x0120, 0x0900, 0x0902  # elements of group 0000


@dataclass(frozen=True)
class Acceptance:
    """What a peer accepted: an identifier for each presentation context, and the longest PDU it takes."""

    contexts: Mapping[ContextKey, int]
    pdu_bytes: int


@dataclass(frozen=True)
class StoreAnswer:
    """The status of a C-STORE and the peer's own words, empty where it has none."""

    message_id: int
    status: int
    comment: str


def encode_association(calling: str, called: str, offered: Iterable[ContextKey]) -> bytes:
    """Return an A-ASSOCIATE-RQ that offers each context with one transfer syntax, as 1, 3, 5 and so on."""
    request = A_ASSOCIATE()
    request.application_context_name = UID(APPLICATION_CONTEXT)
    request.calling_ae_title, request.called_ae_title = calling, called
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in offered]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = OUR_PDU_BYTES
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    request.user_information = [length, implementation, version]
    return A_ASSOCIATE_RQ(request).encode()


def decode_acceptance(pdu: bytes, offered: Iterable[ContextKey]) -> Acceptance:
    """Return what an A-ASSOCIATE-AC accepts of what was offered, in the same order as to `encode_association`.

    Raises what pynetdicom does, and `ValueError`, where the bytes are not that.
    """
    decoded = A_ASSOCIATE_AC()
    decoded.decode(pdu)
    asked = {2 * number + 1: context for number, context in enumerate(offered)}
    results = [(item.context_id, item.result, str(item.transfer_syntax)) for item in decoded.presentation_context]
    if not results:
        raise ValueError("an acceptance that names no presentation context")
    accepted = {
        asked[number]: number
        for number, result, syntax in results
        if number in asked and result == 0 and syntax == asked[number][1]
    }
    information = decoded.user_information
    return Acceptance(accepted, information.maximum_length or 0 if information else 0)


def encode_store_request(sop_class_uid: str, sop_instance_uid: str, message_id: int) -> bytes:
    """Return the command set of a C-STORE-RQ (PS3.7 9.3.1.1), Implicit VR Little Endian."""
    elements = b"".join(
        (
            _element(0x0002, _uid(sop_class_uid)),
            _element(COMMAND_FIELD, _short(STORE_REQUEST)),
            _element(0x0110, _short(message_id)),
            _element(0x0700, _short(MEDIUM)),
            _element(0x0800, _short(DATA_SET_FOLLOWS)),
            _element(0x1000, _uid(sop_instance_uid)),
        )
    )
    return _element(0x0000, struct.pack("<L", len(elements))) + elements


def encode_pdv(context_id: int, control: int, fragment: bytes) -> bytes:
    """Return a P-DATA-TF PDU with one presentation data value (PS3.8 9.3.5)."""
    length = len(fragment)
    return struct.pack(">BxLLBB", P_DATA, length + PDV_BYTES, length + 2, context_id, control) + fragment


def decode_pdvs(body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the context, control header and fragment of each value in a P-DATA-TF; raises `ValueError` if it lies."""
    at = 0
    while at < len(body):
        length, context_id, control = struct.unpack_from(">LBB", body.ljust(at + PDV_BYTES, b"\0"), at)
        if length < 2 or at + 4 + length > len(body):
            raise ValueError(f"a value of {length} bytes in a PDU of {len(body)}")
        yield context_id, control, body[at + PDV_BYTES : at + 4 + length]
        at += 4 + length


def decode_store_answer(command: bytes) -> StoreAnswer:
    """Return what a C-STORE-RSP says; raises `ValueError` if the command set is another, or broken."""
    found = dict(_decode_elements(command))
    try:
        field, message_id, status = (
            int.from_bytes(found[element][:2], "little") for element in (COMMAND_FIELD, MESSAGE_ID_ANSWERED, STATUS)
        )
    except KeyError as error:
        raise ValueError("a command set without what an answer needs") from error
    if field != STORE_RESPONSE:
        raise ValueError(f"command 0x{field:04X}, 0x{STORE_RESPONSE:04X} is needed")
    comment = found.get(ERROR_COMMENT, b"").decode("ascii", errors="replace").strip(" \0")
    return StoreAnswer(message_id, status, comment)


def _decode_elements(command: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(command):
        group, element, length = struct.unpack_from("<HHL", command, at)
        if group == 0:
            yield element, command[at + 8 : at + 8 + length]
        at += 8 + length


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0x0000, element, len(value)) + value


def _short(value: int) -> bytes:
    return struct.pack("<H", value)


def _uid(value: str) -> bytes:
    encoded = value.encode("ascii")
    return encoded + b"\0" * (len(encoded) % 2)
