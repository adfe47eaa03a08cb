"""What stands before a data set in a file of ours: a preamble that lets a crash be put right, and the File Meta.

Flow: receive.spool, receive.recovery > [part10]
Never: a byte of the data set changed; a patient's identity (the association is named, and when the instance came).
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from dicomnode.elements import EXPLICIT_LITTLE, collect_values
from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

PREAMBLE_BYTES = 128  # PS3.10 7.1: for the use of the implementation that wrote the file
_MAGIC = b"DCMNODE1"
# Magic, bytes of the data set, their SHA-256, when the instance came, when its association was opened, from where.
_RECORD = struct.Struct("<8sQ32sdd46s")
_CHECKSUM = struct.Struct("<L")  # of the record and the File Meta
_PREFIX = b"DICM"
_GROUP_LENGTH = struct.Struct("<HH2sHL")
_START_BYTES = len(_PREFIX) + _GROUP_LENGTH.size
ELEMENTS_BYTES_MAX = 1024  # ours have some 300
_TRANSFER_SYNTAX, _CALLING_AE = 0x00020010, 0x00020016


@dataclass(frozen=True)
class FileMeta:
    """What our File Meta says of an instance: PS3.10 7.1."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str

    def encode(self) -> bytes:
        """Return prefix and File Meta Information, Explicit VR Little Endian."""
        elements = b"".join(
            (
                struct.pack("<HH2sHLH", 0x0002, 0x0001, b"OB", 0, 2, 0x0100),
                _short_element(0x0002, b"UI", self.sop_class_uid),
                _short_element(0x0003, b"UI", self.sop_instance_uid),
                _short_element(0x0010, b"UI", self.transfer_syntax_uid),
                _short_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
                _short_element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
                _short_element(0x0016, b"AE", self.calling_ae),
            )
        )
        return _PREFIX + _GROUP_LENGTH.pack(0x0002, 0x0000, b"UL", 4, len(elements)) + elements


@dataclass(frozen=True)
class Origin:
    """By whom and when an instance came: what its row needs and its data set does not say. UTC epoch seconds."""

    address: str
    opened_at: float  # the association
    received_at: float


@dataclass(frozen=True)
class Whole:
    """A file that is whole, as its preamble proves."""

    transfer_syntax_uid: str
    calling_ae: str
    origin: Origin
    sha256: str  # of the data set
    data: bytes


def encode_head(meta: FileMeta, origin: Origin, size_bytes: int, sha256: bytes) -> bytes:
    """Return what stands before a data set of this length and SHA-256."""
    record = _RECORD.pack(
        _MAGIC, size_bytes, sha256, origin.received_at, origin.opened_at, origin.address.encode("ascii", "replace")
    )
    elements = meta.encode()
    checksum = _CHECKSUM.pack(zlib.crc32(elements, zlib.crc32(record)))
    return (record + checksum).ljust(PREAMBLE_BYTES, b"\0") + elements


def read_whole(file: BinaryIO) -> Whole | None:
    """Return what a file holds; None unless every byte is there that was to be written."""
    preamble, start = file.read(PREAMBLE_BYTES), file.read(_START_BYTES)
    if len(start) < _START_BYTES or not preamble.startswith(_MAGIC):
        return None
    _, size_bytes, sha256, received_at, opened_at, address = _RECORD.unpack_from(preamble)
    (checksum,) = _CHECKSUM.unpack_from(preamble, _RECORD.size)
    *_, elements_bytes = _GROUP_LENGTH.unpack_from(start, len(_PREFIX))
    elements = file.read(min(elements_bytes, ELEMENTS_BYTES_MAX))
    if zlib.crc32(start + elements, zlib.crc32(preamble[: _RECORD.size])) != checksum:
        return None
    data = file.read()
    if len(data) != size_bytes or hashlib.sha256(data).digest() != sha256:
        return None
    values = collect_values(elements, EXPLICIT_LITTLE, (_TRANSFER_SYNTAX, _CALLING_AE))
    syntax, calling_ae = (values[tag].decode("ascii").rstrip("\0 ") for tag in (_TRANSFER_SYNTAX, _CALLING_AE))
    origin = Origin(address.rstrip(b"\0").decode("ascii"), opened_at, received_at)
    return Whole(syntax, calling_ae, origin, sha256.hex(), data)


@lru_cache(maxsize=1024)
def _short_element(number: int, vr: bytes, value: str) -> bytes:
    encoded = value.encode("ascii")
    if len(encoded) % 2:
        encoded += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 0x0002, number, vr, len(encoded)) + encoded
