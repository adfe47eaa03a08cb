"""Walks the bytes of a data set from end to end, keeping a few values and proving that nothing is cut off.

Flow: receive.header, commitment > [elements]
Never: recursion (a hostile data set nests as deep as it likes), a copy of pixel data, a meaning of a value.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dicomnode.errors import InstanceNotUnderstoodError, LimitExceededError

UNDEFINED_LENGTH = 0xFFFFFFFF
DEPTH_MAX = 64  # the default of limits.nesting_depth: real instances stay below 10

_ITEM, _ITEM_DELIMITER, _SEQUENCE_DELIMITER = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD  # PS3.5 table 7.5-1
_NO_DATA_GROUPS = (0x0000, 0xFFFE)  # of command sets and of items
_HEADER_BYTES, _LONG_HEADER_BYTES = 8, 12
# PS3.5 7.1.2: these VRs have a length of two bytes, and stand in most elements.
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
# PS3.5 7.1.2: these VRs have two reserved bytes and a length of four bytes.
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_NESTING_VRS = frozenset({b"SQ", b"UN", b""})  # in these sequences come, the last for an encoding without VRs


@dataclass(frozen=True)
class Encoding:
    """How elements are laid out: PS3.5 7.1 and 7.3."""

    is_implicit: bool
    byte_order: str  # "<" or ">", as in struct

    @cached_property
    def item(self) -> bytes:
        """The tag of an item, as it stands at the start of a sequence's value."""
        return struct.pack(f"{self.byte_order}HH", _ITEM >> 16, _ITEM & 0xFFFF)

    @cached_property
    def short(self) -> struct.Struct:
        """An element of a short VR up to its value."""
        return struct.Struct(f"{self.byte_order}HH2sH")


IMPLICIT_LITTLE = Encoding(is_implicit=True, byte_order="<")
EXPLICIT_LITTLE = Encoding(is_implicit=False, byte_order="<")
EXPLICIT_BIG = Encoding(is_implicit=False, byte_order=">")


class _Element(NamedTuple):
    tag: int
    vr: bytes  # empty where the encoding has none
    length: int
    value_at: int


def collect_values(
    data: bytes, encoding: Encoding, wanted: Collection[int], depth: int = DEPTH_MAX
) -> dict[int, bytes]:
    """Return the raw values of the wanted tags at the top level of a data set.

    Parameters
    ----------
    data : bytes
        A data set as C-STORE carries it: no preamble, no File Meta.
    wanted : collection of int
        Tags as one number, `0x00100020`. Of a tag that stands twice the last counts; values of undefined length
        are left out.
    depth : int
        How deep sequences may nest, whether they say their length or not.

    Raises
    ------
    InstanceNotUnderstoodError
        If the bytes are not one whole data set: an element that needs more bytes than there are, an item where none
        belongs, or a missing delimiter.
    LimitExceededError
        If sequences nest deeper than `depth`.
    """
    found: dict[int, bytes] = {}
    position = 0
    size = len(data)
    shallow = _HEADER_BYTES * 2 * depth  # bytes: what is shorter has no room for more levels
    read_short = encoding.short.unpack_from
    while position < size:
        if not encoding.is_implicit and position + _HEADER_BYTES <= size:  # all that follows, in short
            group, number, vr, length = read_short(data, position)
            end = position + _HEADER_BYTES + length
            if vr in _SHORT_VRS and end <= size and group not in _NO_DATA_GROUPS:
                tag = group << 16 | number
                if tag in wanted:
                    found[tag] = data[position + _HEADER_BYTES : end]
                position = end
                continue
        element = _read_element(data, position, encoding)
        if element.tag >> 16 in _NO_DATA_GROUPS:
            raise InstanceNotUnderstoodError(f"{_name(element.tag)} at byte {position} does not belong in a data set")
        if element.length == UNDEFINED_LENGTH:
            position = _skip_sequence(data, element, encoding, depth)
            continue
        position = _end_of(data, element)
        if element.length >= shallow:
            _check_depth(data, element, encoding, depth)
        if element.tag in wanted:
            found[element.tag] = data[element.value_at : position]
    return found


def collect_item_values(
    data: bytes, encoding: Encoding, sequence: int, wanted: Collection[int], depth: int = DEPTH_MAX
) -> Iterator[dict[int, bytes]]:
    """Yield for each item of a sequence at the top level the raw values of the wanted tags.

    Nothing is read beyond the item that is yielded. `data` must have passed `collect_values`; raises as that does.
    """
    position = 0
    while position < len(data):
        element = _read_element(data, position, encoding)
        is_open = element.length == UNDEFINED_LENGTH
        if element.tag == sequence:
            inner = _inner_encoding(element, encoding)
            end = len(data) if is_open else _end_of(data, element)
            for item in _split_items(data[element.value_at : end], inner, depth):
                yield collect_values(item, inner, wanted, depth)
            return
        position = _skip_sequence(data, element, encoding, depth) if is_open else _end_of(data, element)


def _split_items(data: bytes, encoding: Encoding, depth: int) -> Iterator[bytes]:
    """Yield the contents of each item at the start of `data`, up to the delimiter of their sequence or to the end."""
    position = 0
    while position < len(data):
        item = _read_element(data, position, encoding)
        if item.tag == _SEQUENCE_DELIMITER:
            return
        if item.tag != _ITEM:
            raise InstanceNotUnderstoodError(f"{_name(item.tag)} at byte {position} does not belong in a sequence")
        if item.length == UNDEFINED_LENGTH:
            position = _skip_levels(data, item.value_at, [(False, encoding)], depth, may_nest=True)
            yield data[item.value_at : position - _HEADER_BYTES]
        else:
            position = _end_of(data, item)
            yield data[item.value_at : position]


def _skip_sequence(data: bytes, element: _Element, encoding: Encoding, depth: int) -> int:
    """Return where an element of undefined length ends: PS3.5 7.5, and A.4 for encapsulated pixel data."""
    may_nest = element.vr in _NESTING_VRS  # the others hold fragments of pixel data
    return _skip_levels(data, element.value_at, [(True, _inner_encoding(element, encoding))], depth, may_nest=may_nest)


def _skip_levels(data: bytes, position: int, levels: list[tuple[bool, Encoding]], depth: int, *, may_nest: bool) -> int:
    """Return where the outermost level ends; each is a sequence or an item of undefined length, with its encoding."""
    while levels:
        is_sequence, inner = levels[-1]
        found = _read_element(data, position, inner)
        if found.length == UNDEFINED_LENGTH and found.tag not in (_ITEM_DELIMITER, _SEQUENCE_DELIMITER):
            if is_sequence != (found.tag == _ITEM):
                raise InstanceNotUnderstoodError(f"{_name(found.tag)} at byte {position} does not belong in a sequence")
            if len(levels) >= 2 * depth:
                raise LimitExceededError("nesting_depth", f"sequences nest deeper than {depth} at byte {position}")
            levels.append((not is_sequence, inner if is_sequence else _inner_encoding(found, inner)))
            position = found.value_at
        elif found.tag == (_SEQUENCE_DELIMITER if is_sequence else _ITEM_DELIMITER):
            levels.pop()
            position = found.value_at
        elif is_sequence == (found.tag == _ITEM) and (is_sequence or found.tag >> 16 != 0xFFFE):
            position = _end_of(data, found)
            if may_nest:
                _check_depth(data, found, inner, depth, above=len(levels))
        else:
            raise InstanceNotUnderstoodError(f"{_name(found.tag)} at byte {position} does not belong in a sequence")
    return position


def _check_depth(data: bytes, element: _Element, encoding: Encoding, depth: int, above: int = 0) -> None:
    """Refuse an element of known length, `above` levels deep, whose sequences nest too deep.

    What does not read as sequences and items is left as it is: nothing depends on where its parts end.
    """
    if element.length < _HEADER_BYTES * (2 * depth - above) or not _may_nest(data, element, encoding):
        return
    position = element.value_at
    # Each level is a sequence or an item, with the encoding of its elements and where it ends at the latest.
    levels = [(element.tag != _ITEM, _inner_encoding(element, encoding), _end_of(data, element))]
    while levels:
        is_sequence, inner, end = levels[-1]
        found = _read_element(data, position, inner) if position + _LONG_HEADER_BYTES <= end else None
        if found is None or found.tag in (_ITEM_DELIMITER, _SEQUENCE_DELIMITER):
            levels.pop()
            position = end if found is None else found.value_at
            continue
        ends_at = end if found.length == UNDEFINED_LENGTH else found.value_at + found.length
        if is_sequence != (found.tag == _ITEM) or ends_at > end:
            return
        if _may_nest(data, found, inner):
            if above + len(levels) >= 2 * depth:
                raise LimitExceededError("nesting_depth", f"sequences nest deeper than {depth} at byte {position}")
            levels.append((not is_sequence, inner if is_sequence else _inner_encoding(found, inner), ends_at))
            position = found.value_at
        else:
            position = ends_at


def _may_nest(data: bytes, element: _Element, encoding: Encoding) -> bool:
    """Say whether an element is an item, or a value that begins with one; a VR that is not told may be any."""
    if element.tag == _ITEM or element.length == UNDEFINED_LENGTH:
        return True
    return element.vr in _NESTING_VRS and data.startswith(_inner_encoding(element, encoding).item, element.value_at)


def _inner_encoding(element: _Element, encoding: Encoding) -> Encoding:
    """Return the encoding inside a sequence: UN of undefined length holds Implicit VR Little Endian (PS3.5 6.2.2)."""
    return IMPLICIT_LITTLE if element.vr == b"UN" else encoding


def _read_element(data: bytes, position: int, encoding: Encoding) -> _Element:
    if position + _HEADER_BYTES > len(data):
        raise InstanceNotUnderstoodError(
            f"the data set of {len(data)} bytes ends inside the element that starts at byte {position}"
        )
    order = encoding.byte_order
    group, number = struct.unpack_from(order + "HH", data, position)
    tag = group << 16 | number
    vr = b"" if encoding.is_implicit or group == 0xFFFE else data[position + 4 : position + 6]
    if not (vr.isalpha() and vr.isupper()):  # some senders mix implicit elements into explicit sequences
        (length,) = struct.unpack_from(order + "L", data, position + 4)
        return _Element(tag, b"", length, position + _HEADER_BYTES)
    if vr not in _LONG_VRS:
        (length,) = struct.unpack_from(order + "H", data, position + 6)
        return _Element(tag, vr, length, position + _HEADER_BYTES)
    if position + 12 > len(data):
        raise InstanceNotUnderstoodError(f"the data set of {len(data)} bytes ends inside the header of {_name(tag)}")
    (length,) = struct.unpack_from(order + "L", data, position + 8)
    return _Element(tag, vr, length, position + 12)


def _end_of(data: bytes, element: _Element) -> int:
    end = element.value_at + element.length
    if end > len(data):
        left = len(data) - element.value_at
        raise InstanceNotUnderstoodError(f"{_name(element.tag)} needs {element.length} bytes, the data set has {left}")
    return end


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
