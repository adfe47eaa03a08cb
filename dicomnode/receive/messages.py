"""Puts DIMSE messages together from P-DATA, reads a C-STORE request, writes its response: bytes in, bytes out.

Flow: receive.upper_layer > [messages]
Never: a socket; a pydicom Dataset; a data set kept beyond its limit, however it comes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

from dicomnode.errors import LimitExceededError, PeerProtocolError
from dicomnode.status import AbortReason

PDU_HEADER = struct.Struct(">BxL")  # PS3.8 9.3.1: type, reserved, length of what follows
P_DATA_TF = 0x04
C_STORE_RQ, C_STORE_RSP, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x8001, 0x0030, 0x0FFF  # PS3.7 E.1
N_EVENT_REPORT_RQ, N_ACTION_RQ = 0x0100, 0x0130
NO_DATA_SET = 0x0101
COMMAND_SET_BYTES_MAX = 16384  # the longest that PS3.7 E.1 allows is far below 1 KiB

_PDV = struct.Struct(">LBB")  # PS3.8 9.3.5.1: length, presentation context, and E.2: message control header
_IS_COMMAND, _IS_LAST = 1, 2
_ELEMENT = struct.Struct("<HHL")
_GROUP_LENGTH, _SOP_CLASS, _COMMAND_FIELD, _MESSAGE_ID, _RESPONDED_TO = 0x0000, 0x0002, 0x0100, 0x0110, 0x0120
_PRIORITY, _DATA_SET_TYPE, _STATUS, _SOP_INSTANCE = 0x0700, 0x0800, 0x0900, 0x1000
_MOVE_ORIGINATOR = frozenset({0x1030, 0x1031})
_STORE_NEEDS = frozenset({_SOP_CLASS, _COMMAND_FIELD, _MESSAGE_ID, _PRIORITY, _DATA_SET_TYPE, _SOP_INSTANCE})
_STORE_MAY_HAVE = _STORE_NEEDS | _MOVE_ORIGINATOR | {_GROUP_LENGTH}
_NUMBERS = (_COMMAND_FIELD, _MESSAGE_ID, _DATA_SET_TYPE)
_UID = re.compile(rb"[0-9.]{1,64}")


@dataclass(frozen=True)
class StoreCommand:
    """What a plain C-STORE-RQ says: PS3.7 9.3.1.1."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Message:
    """One whole DIMSE message."""

    context_id: int
    command_set: bytes
    data_set: bytes
    has_data_set: bool


class Assembler:
    """Takes the P-DATA of one association, fragment by fragment, and gives whole messages."""

    def __init__(self, data_set_bytes: int) -> None:
        self._data_set_bytes = data_set_bytes
        self._start_message()

    @property
    def is_between_messages(self) -> bool:
        """Whether no part of a message is waiting for the rest."""
        return self._context_id is None

    def take(self, pdvs: memoryview) -> Iterator[Message]:
        """Take what stands in one P-DATA-TF after its header, and yield what it completes.

        Raises
        ------
        PeerProtocolError
            If it is not a list of PDVs, or its fragments make no message (PS3.8 annex E).
        LimitExceededError
            If a data set is larger than allowed.
        """
        at = 0
        while at < len(pdvs):
            if len(pdvs) - at < _PDV.size:
                raise malformed(f"a PDV of at least {_PDV.size} bytes is needed, {len(pdvs) - at} are left in the PDU")
            length, context_id, control = _PDV.unpack_from(pdvs, at)
            end = at + 4 + length
            if length < 2 or end > len(pdvs):
                raise malformed(f"a PDV says it has {length} bytes, the PDU has {len(pdvs) - at - 4} left")
            self._add(context_id, control, pdvs[at + _PDV.size : end])
            if self._is_whole:
                yield self._finish_message()
            at = end

    def _start_message(self) -> None:
        self._context_id: int | None = None
        self._command_set = b""
        self._is_commanded = False  # its command set is whole
        self._has_data_set = False
        self._is_whole = False
        self._data_set: BytesIO = BytesIO()

    def _finish_message(self) -> Message:
        message = Message(
            self._context_id or 0,
            self._command_set,
            self._data_set.getvalue(),
            has_data_set=self._has_data_set,
        )
        self._start_message()
        return message

    def _add(self, context_id: int, control: int, fragment: memoryview) -> None:
        if self._context_id is None:
            self._context_id = context_id
        if context_id != self._context_id or bool(control & _IS_COMMAND) == self._is_commanded:
            raise PeerProtocolError(
                AbortReason.UNEXPECTED_PDU_PARAMETER,
                "a message is a command set, then its data set, all in one presentation context",
            )
        if control & _IS_COMMAND:
            self._add_command(fragment, is_last=bool(control & _IS_LAST))
        else:
            self._add_data(fragment)
            self._is_whole = bool(control & _IS_LAST)

    def _add_command(self, fragment: memoryview, *, is_last: bool) -> None:
        self._command_set += fragment
        if len(self._command_set) > COMMAND_SET_BYTES_MAX:
            raise malformed(f"a command set has at most {COMMAND_SET_BYTES_MAX} bytes")
        if is_last:
            self._is_commanded = True
            self._has_data_set = _read_number(read_command_set(self._command_set), _DATA_SET_TYPE) != NO_DATA_SET
            self._is_whole = not self._has_data_set

    def _add_data(self, fragment: memoryview) -> None:
        if self._data_set.tell() + len(fragment) > self._data_set_bytes:
            raise LimitExceededError("data_set_bytes", f"a data set of more than {self._data_set_bytes} bytes comes")
        self._data_set.write(fragment)


@lru_cache(maxsize=32)  # each is asked for twice
def read_command_set(encoded: bytes) -> Mapping[int, bytes]:
    """Return the values of a command set by element number; group 0000, Implicit VR Little Endian (PS3.7 6.3.1).

    Raises
    ------
    PeerProtocolError
        If the bytes are no command set.
    """
    values: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if at + _ELEMENT.size > len(encoded):
            raise malformed("a command set ends inside an element")
        group, element, length = _ELEMENT.unpack_from(encoded, at)
        at += _ELEMENT.size
        if group != 0 or at + length > len(encoded):
            raise malformed(f"({group:04X},{element:04X}) of {length} bytes does not fit into a command set")
        values[element] = encoded[at : at + length]
        at += length
    return values


def read_command_field(encoded: bytes) -> int | None:
    """Return which command a command set is (PS3.7 E.1); None where it does not say. Raises as `read_command_set`."""
    return _read_number(read_command_set(encoded), _COMMAND_FIELD)


def read_store_command(encoded: bytes) -> StoreCommand | None:
    """Read a command set that is a plain C-STORE-RQ with a data set; None for everything else."""
    values = read_command_set(encoded)
    if not _STORE_NEEDS <= values.keys() <= _STORE_MAY_HAVE:
        return None
    field, message_id, data_set_type = (_read_number(values, element) for element in _NUMBERS)
    sop_class, sop_instance = (values[element].rstrip(b"\0 ") for element in (_SOP_CLASS, _SOP_INSTANCE))
    is_plain = field == C_STORE_RQ and data_set_type != NO_DATA_SET and message_id is not None
    if not is_plain or not _UID.fullmatch(sop_class) or not _UID.fullmatch(sop_instance):
        return None
    return StoreCommand(message_id or 0, sop_class.decode("ascii"), sop_instance.decode("ascii"))


def encode_store_response(command: StoreCommand, context_id: int, status: int) -> bytes:
    """Return the P-DATA-TF that answers a C-STORE-RQ: PS3.7 9.3.1.2."""
    elements = b"".join(
        (
            _element(_SOP_CLASS, _padded(command.sop_class_uid)),
            _number(_COMMAND_FIELD, C_STORE_RSP),
            _number(_RESPONDED_TO, command.message_id),
            _number(_DATA_SET_TYPE, NO_DATA_SET),
            _number(_STATUS, status),
            _element(_SOP_INSTANCE, _padded(command.sop_instance_uid)),
        )
    )
    command_set = _element(_GROUP_LENGTH, struct.pack("<L", len(elements))) + elements
    pdv = _PDV.pack(len(command_set) + 2, context_id, _IS_COMMAND | _IS_LAST) + command_set
    return PDU_HEADER.pack(P_DATA_TF, len(pdv)) + pdv


def malformed(message: str) -> PeerProtocolError:
    """Return the error that ends an association whose peer does not speak DIMSE."""
    return PeerProtocolError(AbortReason.INVALID_PDU_PARAMETER_VALUE, message)


def _read_number(values: Mapping[int, bytes], element: int) -> int | None:
    value = values.get(element, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else None  # US


def _element(element: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, element, len(value)) + value


def _number(element: int, value: int) -> bytes:
    return _element(element, struct.pack("<H", value))


def _padded(uid: str) -> bytes:
    return uid.encode("ascii") + b"\0" * (len(uid) % 2)
