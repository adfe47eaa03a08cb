"""A data set is walked to its end: what is cut off, misplaced or endlessly nested is refused, odd but legal is not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.encaps import encapsulate

from dicomnode.elements import (
    DEPTH_MAX,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    UNDEFINED_LENGTH,
    Encoding,
    collect_item_values,
    collect_values,
)
from dicomnode.errors import InstanceNotUnderstoodError, LimitExceededError
from tests.receiving import encode, make_data_set, nested_sequences

# Of an item and of a sequence, by byte order.
DELIMITERS = {
    order: tuple(struct.pack(f"{order}HHL", 0xFFFE, number, 0) for number in (0xE00D, 0xE0DD)) for order in "<>"
}
PATIENT_ID, ROWS, PIXELS = 0x00100020, 0x00280010, 0x7FE00010
ENCODINGS = {
    "implicit little": (IMPLICIT_LITTLE, {"is_implicit": True}),
    "explicit little": (EXPLICIT_LITTLE, {}),
    "explicit big": (EXPLICIT_BIG, {"is_little_endian": False}),
}


def with_sequence(is_undefined: bool) -> Dataset:
    item = Dataset()
    item.PatientID = "inside"
    data_set = make_data_set(PatientID="outside", ReferencedImageSequence=[item, Dataset()])
    data_set["ReferencedImageSequence"].is_undefined_length = is_undefined
    item.is_undefined_length_sequence_item = is_undefined
    return data_set


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("is_undefined", [True, False])
def test_top_level_values_are_found(name: str, is_undefined: bool) -> None:
    encoding, how = ENCODINGS[name]
    data = encode(with_sequence(is_undefined), **how)
    found = collect_values(data, encoding, {PATIENT_ID, ROWS})
    assert found == {PATIENT_ID: b"outside ", ROWS: struct.pack(encoding.byte_order + "H", 16)}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("is_undefined", [True, False])
def test_every_cut_is_found(name: str, is_undefined: bool) -> None:
    encoding, how = ENCODINGS[name]
    data_set = with_sequence(is_undefined)
    data = encode(data_set, **how)
    # A cut between two elements leaves a whole, shorter data set; any other must be seen.
    whole = {len(encode(data_set[: element.tag + 1], **how)) for element in data_set}
    missed = [cut for cut in range(1, len(data)) if cut not in whole and _is_accepted(data[:cut], encoding)]
    assert missed == []


def _is_accepted(data: bytes, encoding: Encoding) -> bool:
    try:
        collect_values(data, encoding, {PATIENT_ID})
    except InstanceNotUnderstoodError:
        return False
    return True


def _collect(data: bytes, encoding: Encoding) -> list[bytes]:
    """The values of every tag that is found, none where the data set is refused; any other error goes on."""
    try:
        return list(collect_values(data, encoding, _EveryTag()).values())
    except InstanceNotUnderstoodError:
        return []


class _EveryTag(frozenset[int]):
    def __contains__(self, tag: object) -> bool:
        return True


def test_encapsulated_pixels_end_with_their_delimiter() -> None:
    data_set = make_data_set(PixelData=encapsulate([bytes(100), bytes(51)]))
    data_set["PixelData"].is_undefined_length = True
    data = encode(data_set)
    assert collect_values(data, EXPLICIT_LITTLE, {PIXELS}) == {}
    with pytest.raises(InstanceNotUnderstoodError, match="ends inside"):
        collect_values(data[:-8], EXPLICIT_LITTLE, {PIXELS})
    with pytest.raises(InstanceNotUnderstoodError, match="needs"):
        collect_values(data[:-20], EXPLICIT_LITTLE, {PIXELS})


def test_un_of_undefined_length_holds_implicit_elements() -> None:
    # PS3.5 6.2.2, note 2: an explicit instance whose private sequence went through a system that did not know it.
    length = int.from_bytes(b"LO\0\0", "little")  # read as explicit, this would be an empty LO
    item = struct.pack("<HHL", 0x0009, 0x1001, length) + bytes(length)
    sequence = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + item + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    unknown = struct.pack("<HH2sHL", 0x0009, 0x1000, b"UN", 0, 0xFFFFFFFF) + sequence
    data = unknown + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) + encode(make_data_set())
    assert collect_values(data, EXPLICIT_LITTLE, {PATIENT_ID}) == {PATIENT_ID: b"P-17"}


def test_of_a_tag_that_stands_twice_the_last_counts() -> None:
    data = encode(make_data_set(PatientID="first")) + encode(make_data_set(PatientID="second"))
    assert collect_values(data, EXPLICIT_LITTLE, {PATIENT_ID}) == {PATIENT_ID: b"second"}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"this is no DICOM, it is a letter", "needs"),
        (b"\x08", "ends inside"),
        (struct.pack("<HH2sH", 0x0000, 0x0002, b"UI", 0), r"\(0000,0002\) at byte 0 does not belong"),
        (struct.pack("<HHL", 0xFFFE, 0xE000, 0), r"\(FFFE,E000\) at byte 0 does not belong"),
        (struct.pack("<HH2sH", 0x7FE0, 0x0010, b"OW", 0), "ends inside the header of"),
        (
            struct.pack("<HH2sHLHH2sH", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF, 0x0010, 0x0020, b"LO", 0),
            r"\(0010,0020\) at byte 12 does not belong in a sequence",
        ),
    ],
    ids=["text", "one byte", "command", "item", "header", "no item"],
)
def test_what_is_no_data_set_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(InstanceNotUnderstoodError, match=complaint):
        collect_values(data, EXPLICIT_LITTLE, {PATIENT_ID})


@pytest.mark.parametrize("depth", [DEPTH_MAX + 1, 100_000])
def test_a_depth_beyond_the_limit_is_one(depth: int) -> None:
    with pytest.raises(LimitExceededError, match="sequences nest deeper than 64 at byte 1280"):
        collect_values(nested_sequences(depth), EXPLICIT_LITTLE, {PATIENT_ID})


def test_a_legal_depth_is_accepted() -> None:
    assert collect_values(nested_sequences(DEPTH_MAX), EXPLICIT_LITTLE, {PATIENT_ID}) == {}
    assert collect_values(nested_sequences(2), EXPLICIT_LITTLE, {PATIENT_ID}, 2) == {}


def nested(depth: int, encoding: Encoding, lengths: str, vr: bytes = b"SQ") -> bytes:
    """Sequences within one another, from the outside in by turns as `lengths` says: defined or undefined."""
    order = encoding.byte_order
    value = b""
    for level in range(depth, 0, -1):
        is_defined = lengths[level % len(lengths)] == "d"
        item_end, end = (b"", b"") if is_defined else (DELIMITERS[order][0], DELIMITERS[order][1])
        inside = value + item_end
        item = struct.pack(f"{order}HHL", 0xFFFE, 0xE000, len(value) if is_defined else UNDEFINED_LENGTH) + inside + end
        length = len(item) if is_defined else UNDEFINED_LENGTH
        tag = struct.pack(f"{order}HH", 0x0040, 0xA730)
        head = struct.pack(f"{order}L", length)
        value = tag + (head if encoding.is_implicit else vr + b"\0\0" + head) + item
    return value


@pytest.mark.parametrize("lengths", ["d", "du", "uud", "ddu"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_sequences_that_say_their_length_count_as_well(name: str, lengths: str) -> None:
    encoding, how = ENCODINGS[name]
    rest = encode(make_data_set(), **how)
    wanted = collect_values(rest, encoding, {PATIENT_ID})
    legal = nested(DEPTH_MAX, encoding, lengths) + rest
    assert collect_values(legal, encoding, {PATIENT_ID}) == wanted
    for deeper in (DEPTH_MAX + 2, 1000):
        with pytest.raises(LimitExceededError, match="sequences nest deeper than 64 at byte"):
            collect_values(nested(deeper, encoding, lengths) + rest, encoding, {PATIENT_ID})


def test_a_value_that_only_begins_like_a_sequence_is_left_as_it_is() -> None:
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 5000)
    unknown = struct.pack("<HH2sHL", 0x0009, 0x1000, b"UN", 0, 5008) + item + bytes(range(250)) * 20
    data = unknown + encode(make_data_set())
    assert collect_values(data, EXPLICIT_LITTLE, {PATIENT_ID}) == {PATIENT_ID: b"P-17"}


def test_a_long_sequence_that_is_not_deep_is_accepted() -> None:
    items = [Dataset() for _ in range(300)]
    for number, item in enumerate(items):
        item.PatientID = f"inside {number}"
        item.ReferencedSeriesSequence = [Dataset()]
    for how in ENCODINGS.values():
        data = encode(make_data_set(PatientID="outside", ReferencedImageSequence=items), **how[1])
        assert collect_values(data, how[0], {PATIENT_ID}) == {PATIENT_ID: b"outside "}


@given(st.binary(max_size=400), st.sampled_from([IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG]))
def test_any_bytes_are_walked_or_refused(data: bytes, encoding: Encoding) -> None:
    assert all(value in data for value in _collect(data, encoding))


@given(st.data())
def test_any_damage_is_walked_or_refused(data: st.DataObject) -> None:
    good = bytearray(encode(with_sequence(is_undefined=True)))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    assert all(value in good for value in _collect(bytes(good), EXPLICIT_LITTLE))


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("encoding", [EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG])
def test_the_items_of_a_sequence_are_told_apart(encoding: Encoding, is_open: bool) -> None:
    data_set = make_data_set()
    data_set.ReferencedImageSequence = [Dataset(), Dataset(), Dataset()]
    for number, item in enumerate(data_set.ReferencedImageSequence):
        item.PatientID = f"P{number}"
        item.PurposeOfReferenceCodeSequence = [Dataset()]
        item.PurposeOfReferenceCodeSequence[0].PatientID = "inner"
        item.is_undefined_length_sequence_item = is_open
        item["PurposeOfReferenceCodeSequence"].is_undefined_length = is_open
    data_set["ReferencedImageSequence"].is_undefined_length = is_open
    data = encode(data_set, is_implicit=encoding.is_implicit, is_little_endian=encoding is not EXPLICIT_BIG)

    found = list(collect_item_values(data, encoding, 0x00081140, {PATIENT_ID}))

    assert [values[PATIENT_ID] for values in found] == [b"P0", b"P1", b"P2"]
    assert list(collect_item_values(data, encoding, 0x00081115, {PATIENT_ID})) == []
