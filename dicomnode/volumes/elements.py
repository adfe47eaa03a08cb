"""The elements of an ordinary header, found in one pass over its bytes: three times as fast as by pydicom's reader.

Flow: headers > [elements]
Never: a second opinion: what pydicom's reader would find otherwise, or complain of, is left to it.
"""

from __future__ import annotations

import struct
from io import BytesIO

from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR
from pydicom.values import convert_string

SPECIFIC_CHARACTER_SET = 0x00080005
UNDEFINED_LENGTH = 0xFFFFFFFF
_VRS = {vr.value.encode(): vr.value for vr in VR if len(vr.value) == 2}
_LONG_VRS = {vr.value.encode() for vr in EXPLICIT_VR_LENGTH_32}  # PS3.5 7.1.2
_unpack_element = struct.Struct("<HH2sH").unpack_from
_unpack_length = struct.Struct("<L").unpack_from


def find_elements(content: bytes, start: int, stop_at: int) -> tuple[Dataset, int] | None:
    """Find the elements in Explicit VR Little Endian from byte `start` up to tag `stop_at`, or a later one.

    Returns
    -------
    (Dataset, int) or None
        Elements as pydicom's reader gives them, raw, and where the one stands that ended it. None where the bytes end
        before, or hold anything but whole elements of known value representations.
    """
    elements: dict[BaseTag, DataElement | RawDataElement] = {}
    encodings: list[str] = convert_encodings(None)
    position, end = start, len(content) - 12
    while position <= end:
        group, element, vr, length = _unpack_element(content, position)
        number = group << 16 | element
        if number >= stop_at:
            data_set = Dataset(elements)
            data_set.set_original_encoding(False, True, encodings)
            return data_set, position
        tag, name = BaseTag(number), _VRS.get(vr)
        if name is None:
            return None
        at = position + 8
        if vr in _LONG_VRS:
            (length,), at = _unpack_length(content, at), at + 4
        if length == UNDEFINED_LENGTH:
            if name != "SQ":
                return None
            buffer = BytesIO(content)
            buffer.seek(at)
            items = read_sequence(buffer, False, True, length, encodings)
            elements[tag] = DataElement(tag, name, items, at, is_undefined_length=True)
            position = buffer.tell()
            continue
        position = at + length
        if position > len(content):
            return None
        value = content[at:position]
        if number == SPECIFIC_CHARACTER_SET:
            encodings = convert_encodings(convert_string(value, True))
        elements[tag] = RawDataElement(tag, name, length, value, at, False, True)
    return None
