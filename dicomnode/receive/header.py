"""Reads from a data set's bytes what identifies it and what the index keeps.

Flow: receive.scp > [header] > elements, database.index
Never: a pydicom Dataset (slow, and it recurses into hostile sequences); an identity in the summary or in a message;
a refusal because of a character set or a value that nobody needs.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pydicom.charset import decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword

from dicomnode.database.index import InstanceHeader, PatientIdentity, SeriesHeader, StudyHeader
from dicomnode.elements import (
    DEPTH_MAX,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    collect_values,
)
from dicomnode.errors import InstanceNotUnderstoodError, SopClassMismatchError

UID_MAX_CHARACTERS = 64  # PS3.5 9.1
TEXT_MAX_BYTES = 600  # a PN of three groups and 64 characters each fits; three of them fit a PostgreSQL index entry
EXPECTED_MAX = 100_000  # a PET series that claims more instances than this does not know its own count

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_PET_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.128"
# PS3.5 A.1 and A.3; everything else that is negotiated is Explicit VR Little Endian (PS3.5 A.4).
_ENCODINGS = {"1.2.840.10008.1.2": IMPLICIT_LITTLE, "1.2.840.10008.1.2.2": EXPLICIT_BIG}

# Of the series, by keyword: always a list, or one value. Choosing and completeness need them; none is an identity.
SUMMARY_LISTS = (
    "CorrectedImage",
    "ImageType",
    "PixelSpacing",
    "ScanningSequence",
    "SequenceVariant",
    "SeriesType",
    "SoftwareVersions",
)
SUMMARY_VALUES = (
    "AcquisitionDate",
    "AcquisitionTime",
    "AttenuationCorrected",
    "BodyPartExamined",
    "Columns",
    "ContrastBolusAgent",
    "CountsSource",
    "EchoTime",
    "FlipAngle",
    "InversionTime",
    "MRAcquisitionType",
    "Manufacturer",
    "ManufacturerModelName",
    "Modality",
    "NumberOfFrames",
    "NumberOfRRIntervals",
    "NumberOfSlices",
    "NumberOfTimeSlices",
    "NumberOfTimeSlots",
    "ProtocolName",
    "RepetitionTime",
    "Rows",
    "SequenceName",
    "SeriesDate",
    "SeriesNumber",
    "SeriesTime",
    "SliceThickness",
    "SpacingBetweenSlices",
    "Units",
)
_IDENTIFYING = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "SeriesDescription",
)
_TAGS: Mapping[str, int] = {
    keyword: int(tag_for_keyword(keyword) or 0) for keyword in (*_IDENTIFYING, *SUMMARY_LISTS, *SUMMARY_VALUES)
}
_VRS = {keyword: dictionary_VR(tag) for keyword, tag in _TAGS.items()}
_WANTED = frozenset(_TAGS.values())
# These differ within a series; what else is wanted mostly does not.
_MOMENT = ("AcquisitionDate", "AcquisitionTime")
_VARYING = tuple(_TAGS[keyword] for keyword in ("SOPInstanceUID", *_MOMENT))
REMEMBERED_BYTES_MAX = 4096  # of values that are read once for a series
# PS3.3 C.8.9.1: how many instances a PET series of each type has, as a product.
_PET_COUNTS = {
    "STATIC": ("NumberOfSlices",),
    "WHOLE BODY": ("NumberOfSlices",),
    "DYNAMIC": ("NumberOfSlices", "NumberOfTimeSlices"),
    "GATED": ("NumberOfSlices", "NumberOfRRIntervals", "NumberOfTimeSlots"),
}


def read_header(data: bytes, transfer_syntax_uid: str, depth: int = DEPTH_MAX) -> InstanceHeader:
    """Read the index entry of a data set.

    Parameters
    ----------
    data : bytes
        A data set as C-STORE carries it, in one of the transfer syntaxes that the node negotiates.

    Raises
    ------
    InstanceNotUnderstoodError
        If the bytes are not one whole data set, or SOPClassUID, SOPInstanceUID, StudyInstanceUID or SeriesInstanceUID
        is missing or is not a UID.
    LimitExceededError
        If sequences nest deeper than `depth`.
    """
    encoding = _ENCODINGS.get(transfer_syntax_uid, EXPLICIT_LITTLE)
    found = collect_values(data, encoding, _WANTED, depth)
    own = {tag: found.pop(tag) for tag in _VARYING if tag in found}
    describe = _describe if sum(map(len, found.values())) <= REMEMBERED_BYTES_MAX else _describe.__wrapped__
    sop_class_uid, patient, study, series = describe(tuple(found.items()), encoding.byte_order)
    values = _Values(own, encoding.byte_order)
    if moment := {keyword: value for keyword in _MOMENT if (value := values.one(keyword))}:
        series = replace(series, summary={**series.summary, **moment})
    return InstanceHeader(values.uid("SOPInstanceUID"), sop_class_uid, patient, study, series)


@lru_cache(maxsize=256)
def _describe(
    found: tuple[tuple[int, bytes], ...], byte_order: str
) -> tuple[str, PatientIdentity, StudyHeader, SeriesHeader]:
    """Read what the instances of a series have in common, once for all of them."""
    values = _Values(dict(found), byte_order)
    sop_class_uid = values.uid("SOPClassUID")
    summary = _read_summary(values)
    return (
        sop_class_uid,
        PatientIdentity(
            patient_id=values.text("PatientID"),
            issuer=values.text("IssuerOfPatientID"),
            name=values.text("PatientName"),
            birth_date=values.text("PatientBirthDate")[:16],
            sex=values.text("PatientSex")[:16],
        ),
        StudyHeader(
            study_uid=values.uid("StudyInstanceUID"),
            study_date=values.text("StudyDate")[:16],
            study_time=values.text("StudyTime")[:16],
            accession_number=values.text("AccessionNumber"),
        ),
        SeriesHeader(
            series_uid=values.uid("SeriesInstanceUID"),
            modality=values.text("Modality")[:16],
            description=values.text("SeriesDescription"),
            frame_of_reference_uid=values.uid_or_empty("FrameOfReferenceUID"),
            expected_instances=count_pet_instances(summary) if sop_class_uid == _PET_IMAGE_STORAGE else None,
            summary=summary,
        ),
    )


def check_request(header: InstanceHeader, sop_class_uid: str, sop_instance_uid: str) -> None:
    """Compare a data set with the C-STORE request that carried it.

    Raises
    ------
    SopClassMismatchError
        If the request names another SOP class or instance than the data set.
    """
    if header.sop_class_uid != sop_class_uid:
        raise SopClassMismatchError(
            f"the data set is of SOP class {header.sop_class_uid}, the request says {sop_class_uid!a}"
        )
    if header.sop_instance_uid != sop_instance_uid:
        raise SopClassMismatchError(
            f"the data set is instance {header.sop_instance_uid}, the request says {sop_instance_uid!a}"
        )


def count_pet_instances(summary: Mapping[str, Any]) -> int | None:
    """Return how many instances a PET series says it has (PS3.3 C.8.9.1), or None where it does not say."""
    series_type = next(iter(summary.get("SeriesType", ())), "STATIC")
    factors = [summary.get(keyword) for keyword in _PET_COUNTS.get(series_type, ())]
    if not factors or not all(isinstance(factor, int) and factor > 0 for factor in factors):
        return None
    product = math.prod(factor for factor in factors if factor is not None)
    return product if product <= EXPECTED_MAX else None


def _read_summary(values: _Values) -> dict[str, Any]:
    lists = {keyword: values.several(keyword) for keyword in SUMMARY_LISTS if values.has(keyword)}
    singles = {keyword: values.one(keyword) for keyword in SUMMARY_VALUES if values.has(keyword)}
    return {keyword: value for keyword, value in {**lists, **singles}.items() if value not in ([], None, "")}


class _Values:
    """The raw values of one data set, decoded on request by keyword."""

    def __init__(self, raw: Mapping[int, bytes], byte_order: str) -> None:
        self._raw = raw
        self._order = byte_order
        names = self._raw.get(_TAGS["SpecificCharacterSet"], b"").decode("ascii", "replace").split("\\")
        self._charsets = [python_encoding.get(name.strip(" \0"), "") for name in names]

    def has(self, keyword: str) -> bool:
        """Say whether the attribute is there."""
        return _TAGS[keyword] in self._raw

    def uid(self, keyword: str) -> str:
        """Return a UID that must be there."""
        if value := self.uid_or_empty(keyword):
            return value
        state = "is not a UID" if self._raw.get(_TAGS[keyword]) else "is missing"
        raise InstanceNotUnderstoodError(
            f"{keyword} {state}; a UID of at most {UID_MAX_CHARACTERS} characters is needed"
        )

    def uid_or_empty(self, keyword: str) -> str:
        value = self._raw.get(_TAGS[keyword], b"").decode("ascii", "replace").strip(" \0")
        return value if _UID.fullmatch(value) and len(value) <= UID_MAX_CHARACTERS else ""

    def text(self, keyword: str) -> str:
        """Return a text without padding and control characters, empty where there is none."""
        return _bounded(_cleaned(_decode_text(self._raw.get(_TAGS[keyword], b""), self._charsets)))

    def several(self, keyword: str) -> list[Any]:
        """Return every value; those that cannot be read are left out."""
        if _VRS[keyword] == "US":
            return _read_unsigned(self._raw.get(_TAGS[keyword], b""), self._order)
        convert = _CONVERSIONS.get(_VRS[keyword], str)
        converted = [_convert(convert, part.strip()) for part in self.text(keyword).split("\\")]
        return [value for value in converted if value is not None]

    def one(self, keyword: str) -> Any:
        """Return the first value, or None."""
        return next(iter(self.several(keyword)), None)


_CONVERSIONS: Mapping[str, Callable[[str], Any]] = {"DS": float, "IS": int}


def _convert(convert: Callable[[str], Any], text: str) -> Any:
    """Return the value of a text, or None where it is empty, malformed or not finite (JSON has no infinity)."""
    try:
        value = convert(text) if text else None
    except ValueError:
        return None
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _read_unsigned(raw: bytes, order: str) -> list[int]:
    count = len(raw) // 2
    return list(struct.unpack_from(f"{order}{count}H", raw))


def _decode_text(raw: bytes, charsets: list[str]) -> str:
    """Decode a value by its SpecificCharacterSet (PS3.5 6.1); bytes that do not fit stand as escapes, so that two
    different values never become equal."""
    try:
        if b"\x1b" not in raw:
            return raw.decode(charsets[0])
        return decode_bytes(raw, [charset or "iso8859" for charset in charsets], {0x0A, 0x0C, 0x0D, 0x5C, 0x5E, 0x3D})
    except (LookupError, UnicodeError, UserWarning):
        return raw.decode("ascii", "backslashreplace")


def _bounded(text: str) -> str:
    """Cut a text that no standard allows to what every index can hold, so that different ones stay different."""
    encoded = text.encode("utf-8")
    if len(encoded) <= TEXT_MAX_BYTES:
        return text
    start = encoded[: TEXT_MAX_BYTES - 80].decode("utf-8", "ignore")
    return f"{start} (sha256 {hashlib.sha256(encoded).hexdigest()})"


def _cleaned(text: str) -> str:
    """Drop padding, and put a mark for each control character: none may reach a log, a page or a database."""
    text = text.strip(" \0")
    if text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
