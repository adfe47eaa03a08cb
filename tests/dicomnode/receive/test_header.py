"""What identifies an instance is read in every encoding and character set, or the instance is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.database.index import InstanceHeader, PatientIdentity, StudyHeader
from dicomnode.errors import DicomnodeError, InstanceNotUnderstoodError, SopClassMismatchError
from dicomnode.receive.header import (
    REMEMBERED_BYTES_MAX,
    TEXT_MAX_BYTES,
    check_request,
    count_pet_instances,
    read_header,
)
from dicomnode.uids import TRANSFER_SYNTAXES
from tests.receiving import MR, PT, ROOT, encode, make_data_set, raw_element


def read(data_set: Dataset, transfer_syntax_uid: str = ExplicitVRLittleEndian) -> InstanceHeader:
    data = encode(
        data_set,
        is_implicit=transfer_syntax_uid == ImplicitVRLittleEndian,
        is_little_endian=transfer_syntax_uid != ExplicitVRBigEndian,
    )
    return read_header(data, transfer_syntax_uid)


@pytest.mark.parametrize("transfer_syntax_uid", TRANSFER_SYNTAXES)
def test_every_transfer_syntax_gives_the_same(transfer_syntax_uid: str) -> None:
    header = read(
        make_data_set(
            7, EchoTime="2.98", ScanningSequence=["GR", "IR"], CountsSource="EMISSION", AttenuationCorrected="NO"
        ),
        transfer_syntax_uid,
    )
    assert header.sop_instance_uid == f"{ROOT}.3.7"
    assert header.sop_class_uid == MR
    assert header.patient == PatientIdentity("P-17", "", "Doe^Jane", "19620304", "F")
    assert header.study == StudyHeader(f"{ROOT}.2", "20260304", "101500", "ACC-1")
    assert (header.series.series_uid, header.series.frame_of_reference_uid) == (f"{ROOT}.3", f"{ROOT}.4")
    assert (header.series.modality, header.series.description) == ("MR", "T1 brain")
    assert header.series.summary == {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "Modality": "MR",
        "PixelSpacing": [1.0, 1.0],
        "Rows": 16,
        "Columns": 16,
        "SeriesNumber": 3,
        "AttenuationCorrected": "NO",
        "CountsSource": "EMISSION",
        "EchoTime": 2.98,
        "ScanningSequence": ["GR", "IR"],
    }


def test_the_transfer_syntaxes_are_those_of_the_issue() -> None:
    assert set(TRANSFER_SYNTAXES) == {
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        RLELossless,
        JPEGLosslessSV1,
        JPEGLSLossless,
        JPEG2000Lossless,
    }


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_what_identifies_must_be_there(keyword: str) -> None:
    with pytest.raises(InstanceNotUnderstoodError, match=f"{keyword} is missing"):
        read(make_data_set(1, **dict[str, Any]({keyword: None})))


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [b"../../../../tmp/x", b"1.2.", b"1.2\\1.3", b"1" * 66, b"1.2.\xff3"])
def test_what_identifies_must_be_a_uid(keyword: str, value: bytes) -> None:
    data = encode(make_data_set()) + raw_element(keyword, value)
    with pytest.raises(InstanceNotUnderstoodError, match=f"{keyword} is not a UID"):
        read_header(data, ExplicitVRLittleEndian)


def test_a_malformed_frame_of_reference_is_left_empty() -> None:
    data = encode(make_data_set()) + raw_element("FrameOfReferenceUID", b"frame")
    assert read_header(data, ExplicitVRLittleEndian).series.frame_of_reference_uid == ""


@pytest.mark.parametrize(
    ("charset", "raw", "text"),
    [
        ("ISO_IR 100", "Müller^Jürgen".encode("latin-1"), "Müller^Jürgen"),
        ("ISO_IR 192", "王^小東".encode(), "王^小東"),
        ("ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
        ("GB18030", "王^小東".encode("gb18030"), "王^小東"),
        # PS3.5 H.3.1
        (
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
            "Yamada^Tarou=山田^太郎",
        ),
        # PS3.5 I.2
        (
            "\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7",
            "Hong^Gildong=洪^吉洞",
        ),
    ],
)
def test_names_are_read_by_their_character_set(charset: str, raw: bytes, text: str) -> None:
    assert read_name(charset, raw).name == text


@pytest.mark.parametrize("charset", ["ISO_IR 999", "nonsense", "ISO_IR 192", "\\ISO 2022 IR 87", "ISO_IR 100\\x"])
def test_no_character_set_refuses_an_instance(charset: str) -> None:
    one, other = read_name(charset, b"M\xfcller\x1b$ZZ"), read_name(charset, b"M\xfdller\x1b$ZZ")
    assert one.name.startswith("M")
    assert one.name != other.name


def read_name(charset: str, raw: bytes) -> PatientIdentity:
    elements = raw_element("SpecificCharacterSet", charset.encode()) + raw_element("PatientName", raw)
    return read_header(encode(make_data_set()) + elements, ExplicitVRLittleEndian).patient


def test_control_characters_never_come_through() -> None:
    patient = read_name("ISO_IR 192", b"Doe\n2026 [info] admitted\x00\x07\xc2\x9b")
    assert patient.name == "Doe\ufffd2026 [info] admitted\ufffd\ufffd\ufffd"


def test_texts_no_standard_allows_are_cut_and_stay_apart() -> None:
    one, other = read_name("ISO_IR 192", b"x" * 9000 + b"1"), read_name("ISO_IR 192", b"x" * 9000 + b"2")
    assert one.name != other.name
    assert len(one.name.encode()) <= TEXT_MAX_BYTES
    fits = "é" * (TEXT_MAX_BYTES // 2)
    assert read_name("ISO_IR 192", fits.encode()).name == fits


def test_the_request_must_name_what_comes() -> None:
    header = read(make_data_set(1))
    check_request(header, MR, f"{ROOT}.3.1")
    with pytest.raises(SopClassMismatchError, match="SOP class"):
        check_request(header, PT, f"{ROOT}.3.1")
    with pytest.raises(SopClassMismatchError, match=r"'\.\./x\\n'"):
        check_request(header, MR, "../x\n")


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ({"SeriesType": ["STATIC", "IMAGE"], "NumberOfSlices": 47}, 47),
        ({"SeriesType": ["WHOLE BODY", "IMAGE"], "NumberOfSlices": 47, "NumberOfTimeSlices": 3}, 47),
        ({"SeriesType": ["DYNAMIC", "IMAGE"], "NumberOfSlices": 47, "NumberOfTimeSlices": 3}, 141),
        ({"SeriesType": ["DYNAMIC", "IMAGE"], "NumberOfSlices": 47}, None),
        (
            {"SeriesType": ["GATED"], "NumberOfSlices": 10, "NumberOfRRIntervals": 2, "NumberOfTimeSlots": 8},
            160,
        ),
        ({"NumberOfSlices": 47}, 47),
        ({"SeriesType": ["ODD"], "NumberOfSlices": 47}, None),
        ({"NumberOfSlices": 0}, None),
        ({}, None),
        ({"SeriesType": ["DYNAMIC"], "NumberOfSlices": 65535, "NumberOfTimeSlices": 65535}, None),
    ],
)
def test_a_pet_series_counts_its_instances(summary: dict[str, Any], expected: int | None) -> None:
    assert count_pet_instances(summary) == expected


def test_only_pet_expects_a_count() -> None:
    assert read(make_data_set(sop_class_uid=PT, NumberOfSlices=47)).series.expected_instances == 47
    assert read(make_data_set(sop_class_uid=MR, NumberOfSlices=47)).series.expected_instances is None


@pytest.mark.parametrize(("raw", "value"), [(b"NaN", None), (b"inf", None), (b"1e9", 1e9), (b"abcd", None)])
def test_the_summary_is_plain_json(raw: bytes, value: float | None) -> None:
    data = encode(make_data_set()) + raw_element("EchoTime", raw)
    summary = read_header(data, ExplicitVRLittleEndian).series.summary
    assert summary.get("EchoTime") == value
    json.dumps(summary, allow_nan=False)


def test_the_summary_holds_no_identity() -> None:
    data_set = make_data_set(
        PatientName="Secret^Name", PatientID="SECRET", PatientBirthDate="19000101", OtherPatientIDs="SECRET2",
        PatientComments="SECRET", OperatorsName="Secret", ReferringPhysicianName="Secret", InstitutionName="Secret",
    )  # fmt: skip
    summary = json.dumps(dict(read(data_set).series.summary)).lower()
    assert "secret" not in summary
    assert "1900" not in summary


@given(st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    good = bytearray(encode(make_data_set()))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, 600))] = data.draw(st.integers(0, 255))
    try:
        header = read_header(bytes(good), data.draw(st.sampled_from(sorted(TRANSFER_SYNTAXES))))
    except DicomnodeError:
        return
    assert json.loads(json.dumps(header.series.summary, allow_nan=False)) == header.series.summary
    assert header.patient.name.encode().decode() == header.patient.name


def test_what_a_series_has_in_common_is_not_taken_for_what_differs() -> None:
    first = read_header(
        encode(make_data_set(1, AcquisitionTime="101500", AcquisitionDate="20260304")), ExplicitVRLittleEndian
    )
    later = read_header(encode(make_data_set(2, AcquisitionTime="101507")), ExplicitVRLittleEndian)
    other = read_header(encode(make_data_set(2, PatientID="P-18", AcquisitionTime="101507")), ExplicitVRLittleEndian)
    assert (first.sop_instance_uid, later.sop_instance_uid) == (f"{ROOT}.3.1", f"{ROOT}.3.2")
    assert first.series.summary["AcquisitionTime"] == "101500"
    assert first.series.summary["AcquisitionDate"] == "20260304"
    assert later.series.summary["AcquisitionTime"] == "101507"
    assert "AcquisitionDate" not in later.series.summary
    assert (later.patient.patient_id, other.patient.patient_id) == ("P-17", "P-18")


def test_what_is_too_long_to_remember_is_read_all_the_same() -> None:
    long = raw_element("ProtocolName", b"x" * REMEMBERED_BYTES_MAX)
    headers = [read_header(encode(make_data_set(number)) + long, ExplicitVRLittleEndian) for number in (1, 2)]
    assert [header.sop_instance_uid for header in headers] == [f"{ROOT}.3.1", f"{ROOT}.3.2"]
    assert headers[0].series == headers[1].series
