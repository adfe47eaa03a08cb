"""What an association begins and ends with: whose turn a PDU is, how a request begins, rejections and aborts.

Flow: receive.upper_layer, receive.policy > [pdus] > receive.messages
Never: a socket; the rest of a request, which pynetdicom reads.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dicomnode.errors import PeerProtocolError
from dicomnode.receive.messages import P_DATA_TF, PDU_HEADER, malformed
from dicomnode.status import AbortReason

PDU_TYPES = range(0x01, 0x08)  # PS3.8 9.3.1
A_ASSOCIATE_RQ, A_ASSOCIATE_RJ, A_RELEASE_RQ, A_RELEASE_RP, A_ABORT = 0x01, 0x03, 0x05, 0x06, 0x07
PROTOCOL_VERSION = 0x0001  # PS3.8 9.3.2: a bit for each version; there is one
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1: DICOM's
# States of PS3.8 table 9-10 that matter here.
AWAITING_REQUEST, ESTABLISHED, RELEASING, AWAITING_CLOSE = "Sta2", "Sta6", "Sta7", "Sta13"
# What an acceptor takes in each state of that table; all else ends the association there (AA-1, AA-8).
EXPECTED = {
    AWAITING_REQUEST: {A_ASSOCIATE_RQ, A_ABORT},
    ESTABLISHED: {P_DATA_TF, A_RELEASE_RQ, A_ABORT},
    RELEASING: {P_DATA_TF, A_RELEASE_RQ, A_RELEASE_RP, A_ABORT},
    "Sta10": {A_RELEASE_RP, A_ABORT},  # both asked for the release
}

_REQUEST_HEAD = struct.Struct(">6xH2x16s16s32x")  # PS3.8 9.3.2: protocol version, called and calling AE title
_ITEM = struct.Struct(">BxH")  # PS3.8 9.3.2: type and length of what follows
_APPLICATION_CONTEXT_ITEM = 0x10


@dataclass(frozen=True)
class RequestHead:
    """What an A-ASSOCIATE-RQ begins with: PS3.8 9.3.2. Titles and name lack padding; each byte is a character."""

    protocol_version: int
    called_ae: str
    calling_ae: str
    application_context: str  # empty where it names none


def check_turn(pdu_type: int, state: str) -> None:
    """Judge by its type whether a PDU may come in a state of the association.

    Raises
    ------
    PeerProtocolError
        If there is no such PDU, or another is expected.
    """
    if pdu_type not in PDU_TYPES:
        raise PeerProtocolError(AbortReason.UNRECOGNISED_PDU, f"a PDU of type {pdu_type:02X} is none of PS3.8")
    if pdu_type not in EXPECTED.get(state, {A_ABORT}):
        words = f"a PDU of type {pdu_type:02X} came where PS3.8 table 9-10 expects none ({state})"
        raise PeerProtocolError(AbortReason.UNEXPECTED_PDU, words)


def read_request_head(request: bytes | bytearray) -> RequestHead:
    """Return what a whole A-ASSOCIATE-RQ begins with; some pad titles with NUL, which others read as a character.

    Raises
    ------
    PeerProtocolError
        If it is too short for that, or an item before the application context is longer than what is left.
    """
    if len(request) < _REQUEST_HEAD.size:
        raise malformed(f"an association request of {len(request)} bytes came, it has at least {_REQUEST_HEAD.size}")
    version, *titles = _REQUEST_HEAD.unpack_from(request)
    called, calling = (title.strip(b" \0").decode("latin-1") for title in titles)
    return RequestHead(version, called, calling, _read_application_context(request))


def tidy_request_head(request: bytearray, head: RequestHead) -> None:
    """Write a head that was read over that of its request: with spaces for padding, and the one version there is."""
    titles = (title.encode("latin-1").ljust(16) for title in (head.called_ae, head.calling_ae))
    struct.pack_into(">H2x16s16s", request, PDU_HEADER.size, PROTOCOL_VERSION, *titles)


def _read_application_context(request: bytes | bytearray) -> str:
    at = _REQUEST_HEAD.size
    while at + _ITEM.size <= len(request):
        kind, length = _ITEM.unpack_from(request, at)
        at += _ITEM.size
        if length > len(request) - at:
            raise malformed(
                f"an item {kind:02X} of an association request says it has {length} bytes, {len(request) - at} are left"
            )
        if kind == _APPLICATION_CONTEXT_ITEM:
            return request[at : at + length].strip(b" \0").decode("latin-1")
        at += length
    return ""


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """Return the A-ASSOCIATE-RJ of PS3.8 9.3.4."""
    return PDU_HEADER.pack(A_ASSOCIATE_RJ, 4) + struct.pack("xBBB", result, source, reason)


def encode_abort(reason: AbortReason) -> bytes:
    """Return the A-ABORT by which the service provider, source 2, ends an association: PS3.8 9.3.8."""
    return PDU_HEADER.pack(A_ABORT, 4) + struct.pack("2xBB", 2, reason)
