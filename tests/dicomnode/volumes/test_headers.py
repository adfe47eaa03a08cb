"""Text is read in the character set of its instance, and what a header leaves empty hurts nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.headers import read_numbers, read_word
from dicomnode.volumes.series import load_series
from tests.dicomnode.enhanced_files import make_enhanced
from tests.dicomnode.series_files import SeriesSpec, make_series, write_files

# The standard's own examples: character set, the bytes of the name, and the name.
NAMES = {
    "ISO_IR 100": ("ISO_IR 100", "4275635e4ae9726f6d65", "Buc^Jérome"),
    "ISO_IR 192": (
        "ISO_IR 192",
        "57616e675e5869616f446f6e673de78e8b5ee5b08fe69db1",
        "Wang^XiaoDong=王^小東",
    ),  # PS3.5 J.1
    "GB18030": ("GB18030", "57616e675e5869616f446f6e673dcdf55ed0a1b6ab", "Wang^XiaoDong=王^小东"),  # PS3.5 J.3
    "ISO 2022 IR 87": (  # PS3.5 H.3.1
        ["", "ISO 2022 IR 87"],
        "59616d6164615e5461726f753d1b24423b3345441b28425e1b244242404f3a1b28423d1b24422464245e24401b28425e"
        "1b2442243f246d24261b2842",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    "ISO 2022 IR 149": (  # PS3.5 I.2
        ["", "ISO 2022 IR 149"],
        "486f6e675e47696c646f6e673d1b242943fbf35e1b242943d1ced4d73d1b242943c8ab5e1b242943b1e6b5bf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
}


def put_name(header: pydicom.Dataset, character_set: str | Sequence[str], name: bytes) -> None:
    header.SpecificCharacterSet = character_set
    header.SeriesDescription = "T1"
    padded = name + b" " * (len(name) % 2)
    header[Tag("PatientName")] = RawDataElement(Tag("PatientName"), "PN", len(padded), padded, 0, False, True)


@pytest.mark.parametrize(("character_set", "code", "name"), NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("is_enhanced", [False, True], ids=["single-frame", "multi-frame"])
def test_a_name_is_read_in_its_character_set(
    tmp_path: Path, character_set: str | list[str], code: str, name: str, is_enhanced: bool
) -> None:
    slices = make_series(SeriesSpec())
    for header in slices:
        put_name(header, character_set, bytes.fromhex(code))
    series = load_series(write_files(tmp_path, [make_enhanced(slices)] if is_enhanced else slices))
    assert {str(header.PatientName) for header in series.headers} == {name}


# PS3.3: of type 2 or 3 in MR and PET images, so that a scanner may leave them empty or out.
MAY_BE_MISSING = {
    "MR": (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "AccessionNumber",
        "ReferringPhysicianName",
        "SeriesNumber",
        "InstanceNumber",
        "PositionReferenceIndicator",
        "Manufacturer",
        "SliceThickness",
        "EchoTime",
        "ImageType",
        "SeriesDescription",
        "SpecificCharacterSet",
    ),
    "PT": ("RescaleIntercept", "Units", "CorrectedImage", "FrameReferenceTime", "AcquisitionDate", "AcquisitionTime"),
}


@pytest.mark.parametrize("modality", MAY_BE_MISSING)
@pytest.mark.parametrize("is_there", [True, False], ids=["empty", "missing"])
def test_what_need_not_be_there_is_not_needed(tmp_path: Path, modality: str, is_there: bool) -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        header.SeriesDescription = ""
        for keyword in (*MAY_BE_MISSING["MR"], *MAY_BE_MISSING[modality]):
            if is_there:
                setattr(header, keyword, None)
            elif keyword in header:
                del header[keyword]

    series = load_series(write_files(tmp_path, make_series(SeriesSpec(modality=modality, change=change))))
    assert series.volume.shape == (12, 32, 30)
    assert series.volume.array.max() > 1000


def raw(keyword: str, vr: str, value: bytes) -> pydicom.Dataset:
    tag = Tag(keyword)
    return pydicom.Dataset({tag: RawDataElement(tag, vr, len(value), value, 0, False, True)})


WORDS: dict[str, tuple[pydicom.Dataset, str, str]] = {
    "several": (raw("ImageType", "CS", b"ORIGINAL\\PRIMARY "), "ImageType", "ORIGINAL\\PRIMARY"),
    "padded by zero": (raw("SOPClassUID", "UI", b"1.2.3\0"), "SOPClassUID", "1.2.3"),
    "spaces only": (raw("EchoTime", "DS", b"  "), "EchoTime", ""),
    "a decimal": (raw("EchoTime", "DS", b"2.980 "), "EchoTime", "2.98"),
    "an integer": (raw("InstanceNumber", "IS", b" 07 "), "InstanceNumber", "07"),
    "two bytes": (raw("Rows", "US", b"\x00\x02"), "Rows", "512"),
    "letters that a code has not": (raw("ImageType", "CS", b"M\xc9 "), "ImageType", "MÉ"),
    "absent": (pydicom.Dataset(), "Rows", ""),
}


@pytest.mark.parametrize(("header", "keyword", "word"), WORDS.values(), ids=WORDS)
def test_a_word_is_the_same_raw_or_read(header: pydicom.Dataset, keyword: str, word: str) -> None:
    assert read_word(header, keyword) == word
    header.get(keyword)  # from now on it is not raw any more
    assert read_word(header, keyword) == word


BAD_NUMBERS: dict[str, tuple[Callable[[], pydicom.Dataset], str]] = {
    "words": (lambda: raw("PixelSpacing", "DS", b"wide\\high "), "holds something else than 2 numbers"),
    "one too many": (lambda: raw("PixelSpacing", "DS", b"1\\2\\3 "), "holds 3 values, 2 finite numbers are needed"),
    "infinite": (lambda: raw("PixelSpacing", "DS", b"inf\\2 "), "holds 2 values, 2 finite numbers are needed"),
    "spaces": (lambda: raw("PixelSpacing", "DS", b"  "), "holds 0 values, 2 finite numbers are needed"),
    "one of two": (lambda: raw("PixelSpacing", "DS", b"\\2"), "holds something else than 2 numbers"),
}


@pytest.mark.parametrize(("make", "reason"), BAD_NUMBERS.values(), ids=BAD_NUMBERS)
def test_numbers_that_are_none_are_refused(make: Callable[[], pydicom.Dataset], reason: str) -> None:
    with pytest.raises(SeriesRefusedError, match=f"PixelSpacing {reason}"):
        read_numbers(make(), "PixelSpacing", 2)
