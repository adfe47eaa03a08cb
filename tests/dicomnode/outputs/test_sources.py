"""Attributes are carried over by name, re-encoded and mended."""

from __future__ import annotations

import warnings

import pydicom
import pytest
from pydicom.filebase import DicomBytesIO

from dicomnode.outputs.sources import (
    copy_or_empty,
    copy_present,
    copy_private,
    read_clean,
    read_private,
    read_text,
)
from dicomnode.volumes.headers import quiet_reading


def encoded(character_set: str, **elements: bytes) -> pydicom.Dataset:
    """Return a data set as read from bytes: explicit little endian, values as given."""
    tags = {"PatientName": (0x0010, 0x0010, b"PN"), "SeriesDescription": (0x0008, 0x103E, b"LO")}
    header = b"\x08\x00\x05\x00CS" + _value(character_set.encode())
    for keyword in sorted(elements, key=lambda word: tags[word]):
        group, element, vr = tags[keyword]
        header += group.to_bytes(2, "little") + element.to_bytes(2, "little") + vr + _value(elements[keyword])
    return pydicom.dcmread(DicomBytesIO(header), force=True)


def _value(value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return len(value).to_bytes(2, "little") + value


@pytest.mark.parametrize(
    ("character_set", "name", "expected"),
    [
        ("ISO_IR 100", b"M\xfcller^K\xe4the", "Müller^Käthe"),
        ("ISO_IR 192", "Müller^Käthe".encode(), "Müller^Käthe"),
        ("GB18030", "王^小东".encode("gb18030"), "王^小东"),
        ("\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
        ("\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong^Gildong=洪^吉洞"),
        ("ISO_IR 999", b"Plain^Name", "Plain^Name"),
    ],
)
def test_names_are_decoded_with_the_source_s_character_set(character_set: str, name: bytes, expected: str) -> None:
    with quiet_reading():
        assert read_text(encoded(character_set, PatientName=name), "PatientName") == expected


def test_bytes_that_are_no_text_become_replacement_marks_without_a_warning() -> None:
    with warnings.catch_warnings(), quiet_reading():
        assert read_text(encoded("ISO_IR 192", SeriesDescription=b"T1 \xff"), "SeriesDescription") == "T1 \ufffd"


def test_control_characters_and_excess_length_are_cut() -> None:
    with quiet_reading():
        header = encoded("ISO_IR 100", SeriesDescription=b"T1\r\n\x1b[31m" + b"x" * 80)
        assert read_text(header, "SeriesDescription") == "T1   [31m" + "x" * 55


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("PatientBirthDate", "19500102", "19500102"),
        ("PatientBirthDate", "1950.01.02", "19500102"),
        ("PatientBirthDate", "02/01/1950", None),
        ("StudyTime", "101112.123456", "101112.123456"),
        ("StudyTime", "10:11:12.5", "101112.5"),
        ("StudyTime", "10 h", None),
        ("PatientSex", "f", "F"),
        ("Units", "g/ml", "G_ML"),
        ("PatientAge", "075Y", "075Y"),
        ("PatientAge", "75", None),
        ("PatientWeight", "61.50", "61.50"),
        ("PatientWeight", "", None),
        ("DecayFactor", "1.0500000000000000444", "1.05"),
        ("FrameOfReferenceUID", "1.2.3", "1.2.3"),
        ("FrameOfReferenceUID", "1.02.3", None),
        ("PixelSpacing", ["0.5", "0.50"], ["0.5", "0.50"]),
        ("ImageType", ["ORIGINAL", "PRIMARY"], ["ORIGINAL", "PRIMARY"]),
    ],
)
def test_values_are_kept_mended_or_left_out(keyword: str, value: object, expected: object) -> None:
    with quiet_reading():
        header = pydicom.Dataset()
        setattr(header, keyword, value)
        assert read_clean(header, keyword) == expected


def test_type_3_is_left_out_and_type_2_is_left_empty() -> None:
    source, target = pydicom.Dataset(), pydicom.Dataset()
    source.PatientSex = "M"
    copy_present(source, target, ("PatientSex", "PatientAge"))
    copy_or_empty(source, target, ("StudyDate", "RadiopharmaceuticalInformationSequence"))
    assert target.PatientSex == "M"
    assert "PatientAge" not in target
    assert target["StudyDate"].is_empty
    assert len(target.RadiopharmaceuticalInformationSequence) == 0


def test_sequences_are_rebuilt_without_private_data_or_codeless_codes() -> None:
    item, whole, codeless = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    whole.CodeValue, whole.CodingSchemeDesignator, whole.CodeMeaning = "C-111A1", "SRT", "^18^Fluorine"
    codeless.CodeMeaning = "something"
    item.RadionuclideTotalDose = "250000000"
    item.RadionuclideCodeSequence = [whole]
    item.RadiopharmaceuticalCodeSequence = [codeless]
    item.private_block(0x0009, "SOMEBODY", create=True).add_new(1, "LO", "private")
    source, target = pydicom.Dataset(), pydicom.Dataset()
    source.RadiopharmaceuticalInformationSequence = [item]
    copy_present(source, target, ("RadiopharmaceuticalInformationSequence",))
    (copied,) = target.RadiopharmaceuticalInformationSequence
    assert copied.RadionuclideTotalDose == 250000000
    assert copied.RadionuclideCodeSequence[0].CodeMeaning == "^18^Fluorine"
    assert len(copied.RadiopharmaceuticalCodeSequence) == 0
    assert not any(element.tag.is_private for element in copied)


@pytest.mark.parametrize(
    ("vr", "value", "expected"),
    [
        ("DS", "0.00042", "0.00042"),
        ("UN", b"1.602563 ", "1.602563"),  # as implicit VR leaves what it does not know
        ("LO", "1.5", "1.5"),
        ("UN", b"\xff\xfe", None),
        ("DS", "", None),
    ],
)
def test_a_private_element_is_read_whatever_its_representation(vr: str, value: object, expected: object) -> None:
    source, target = pydicom.Dataset(), pydicom.Dataset()
    element = (0x7053, "Philips PET Private Group", 0x09, "DS")
    block = source.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x09, vr, value)
    block.add_new(0x03, "LO", "somewhere")
    with quiet_reading():
        assert read_private(source, element) == expected
        copy_private(source, target, element)
    assert [e.tag.element for e in target] == ([] if expected is None else [0x0010, 0x1009])
    assert read_private(pydicom.Dataset(), element) is None
