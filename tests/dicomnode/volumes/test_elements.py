"""An ordinary header is read as pydicom reads it, and anything else is left to pydicom."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.elements import find_elements
from dicomnode.volumes.headers import MAX_HEADER_BYTES, PARSE_ERRORS, PIXEL_DATA, quiet_reading, read_instance
from dicomnode.volumes.series import load_series
from tests.dicomnode.enhanced_files import make_enhanced_series
from tests.dicomnode.series_files import SeriesSpec, make_series, write_files


def add_everything(header: pydicom.Dataset, _k: int) -> None:
    """Add sequences of both lengths, empty values, private elements, and text of two character sets."""
    item = pydicom.Dataset()
    item.CodeMeaning = "übermäßig"
    item.PurposeOfReferenceCodeSequence = [pydicom.Dataset()]
    header.DerivationCodeSequence = [item, item]
    header.ReferencedImageSequence = [item]
    header["ReferencedImageSequence"].is_undefined_length = True
    header.SourceImageSequence = []
    header.ContrastBolusAgent = ""
    header.PatientWeight = None
    header.private_block(0x0071, "Makers", create=True).add_new(1, "OB", b"\xff\xfe\x00\xe0" * 5)
    header.add_new(0x00711099, "UN", b"\x01\x02\x03\x04")


def test_elements_are_pydicom_s_own(tmp_path: Path) -> None:
    slices = make_series(SeriesSpec(modality="PT", change=add_everything))[:1]
    for path in write_files(tmp_path, [*slices, make_enhanced_series(SeriesSpec())]):
        instance = read_instance(path)
        theirs = pydicom.dcmread(path, stop_before_pixels=True)
        assert find_elements(path.read_bytes(), 132, 0x00030000) is not None  # the fast way was taken
        assert {element.tag for element in instance.header} == {element.tag for element in theirs}
        for element in theirs:
            ours = instance.header[element.tag]
            assert (ours, ours.is_undefined_length) == (element, element.is_undefined_length), element.tag
        assert instance.header.file_meta == theirs.file_meta
        assert path.read_bytes()[instance.pixel_offset :][:4] == b"\xe0\x7f\x10\x00"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda uid: uid.name)
def test_other_encodings_are_left_to_pydicom(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    header = make_series(SeriesSpec())[0]
    header.file_meta.TransferSyntaxUID = syntax
    (path,) = write_files(tmp_path, [header])
    instance = read_instance(path)
    assert instance.header.PatientName == "Müller^Käthe"
    assert instance.header.Rows == 32


def test_a_header_longer_than_an_ordinary_one_is_read_too(tmp_path: Path) -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        header.private_block(0x0071, "Makers", create=True).add_new(1, "OB", bytes(300_000))

    (path,) = write_files(tmp_path, make_series(SeriesSpec(change=change))[:1])
    instance = read_instance(path)
    assert instance.header.Rows == 32
    assert len(instance.header[0x00711001].value) == 300_000


def test_a_header_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        header.private_block(0x0071, "Makers", create=True).add_new(1, "OB", bytes(MAX_HEADER_BYTES))

    (path,) = write_files(tmp_path, make_series(SeriesSpec(change=change))[:1])
    instance = read_instance(path)
    assert instance.pixel_offset <= MAX_HEADER_BYTES
    assert path.read_bytes()[instance.pixel_offset :][:4] != b"\xe0\x7f\x10\x00"


def encode(header: pydicom.Dataset) -> bytes:
    buffer = BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


WHOLE = encode(make_series(SeriesSpec(change=add_everything, shape=(1, 4, 4)))[0])


@given(st.integers(132, len(WHOLE) - 1), st.integers(0, 255))
def test_a_changed_byte_is_read_as_pydicom_reads_it_or_left_to_it(at: int, value: int) -> None:
    changed = WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :]
    start = WHOLE.index(b"\x08\x00\x05\x00CS")
    with quiet_reading():
        try:
            found = find_elements(changed, start, PIXEL_DATA)
        except (OSError, *PARSE_ERRORS):
            return  # what pydicom's own parts raise becomes a refusal
        if found is not None:
            header, stopped_at = found
            assert 0 < stopped_at <= len(changed)
            assert all(element.tag < PIXEL_DATA for element in header.elements())


def test_bytes_after_the_prefix_that_are_no_elements_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rubbish.dcm"
    path.write_bytes(bytes(128) + b"DICM" + b"\xff" * 500)
    with pytest.raises(SeriesRefusedError):
        load_series([path])
