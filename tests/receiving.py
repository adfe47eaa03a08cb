"""Small instances for the receive path: as values for the index, and as the bytes that C-STORE carries.

Flow: tests > [receiving] > pydicom
Never: an anatomy (`tests.builders` has those); real data.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.database.index import (
    Arrival,
    InstanceHeader,
    PatientIdentity,
    SeriesHeader,
    StoredFile,
    StudyHeader,
)
from dicomnode.database.store import make_file_name

MR = "1.2.840.10008.5.1.4.1.1.4"
PT = "1.2.840.10008.5.1.4.1.1.128"
ROOT = "1.2.826.0.1.3680043.8.498"
PATIENT = PatientIdentity("P-17", "HOSPITAL", "Doe^Jane", "19620304", "F")


def make_header(
    number: int = 1,
    *,
    series: str = f"{ROOT}.3",
    study: str = f"{ROOT}.2",
    patient: PatientIdentity = PATIENT,
    expected: int | None = None,
    summary: Mapping[str, Any] | None = None,
) -> InstanceHeader:
    """Return what the index learns of instance `number` of a series."""
    return InstanceHeader(
        sop_instance_uid=f"{series}.{number}",
        sop_class_uid=PT,
        patient=patient,
        study=StudyHeader(study, "20260304", "101500", "ACC-1"),
        series=SeriesHeader(
            series, "PT", "FDG brain", f"{ROOT}.4", expected, summary or {"ImageType": ["ORIGINAL", "PRIMARY"]}
        ),
    )


def make_file(content: str = "a", transfer_syntax_uid: str = ExplicitVRLittleEndian) -> StoredFile:
    """Return a stored file whose digest stands for this content."""
    return StoredFile(make_file_name(), transfer_syntax_uid, len(content), hashlib.sha256(content.encode()).hexdigest())


def make_arrival(association_id: int, received_at: float = 100.0) -> Arrival:
    """Return an arrival over an association that is there."""
    return Arrival(association_id, "SCANNER", received_at)


def make_data_set(number: int = 1, *, sop_class_uid: str = MR, size: int = 16, **attributes: Any) -> Dataset:
    """Return a small image of `size` x `size` pixels; further attributes by keyword, None takes one away."""
    data_set = Dataset()
    data_set.SpecificCharacterSet = "ISO_IR 192"
    data_set.ImageType = ["ORIGINAL", "PRIMARY"]
    data_set.SOPClassUID = sop_class_uid
    data_set.SOPInstanceUID = f"{ROOT}.3.{number}"
    data_set.StudyDate, data_set.StudyTime = "20260304", "101500"
    data_set.AccessionNumber = "ACC-1"
    data_set.Modality = "PT" if sop_class_uid == PT else "MR"
    data_set.SeriesDescription = "T1 brain"
    data_set.PatientName, data_set.PatientID = "Doe^Jane", "P-17"
    data_set.PatientBirthDate, data_set.PatientSex = "19620304", "F"
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = f"{ROOT}.2", f"{ROOT}.3"
    data_set.SeriesNumber, data_set.InstanceNumber = 3, number
    data_set.FrameOfReferenceUID = f"{ROOT}.4"
    data_set.PixelSpacing = [1.0, 1.0]
    data_set.SamplesPerPixel, data_set.PhotometricInterpretation = 1, "MONOCHROME2"
    data_set.Rows = data_set.Columns = size
    data_set.BitsAllocated, data_set.BitsStored, data_set.HighBit, data_set.PixelRepresentation = 16, 16, 15, 0
    data_set.PixelData = bytes((number + step) % 256 for step in range(256)) * (2 * size * size // 256)
    for keyword, value in attributes.items():
        if value is None:
            delattr(data_set, keyword)
        else:
            setattr(data_set, keyword, value)
    return data_set


def encode(data_set: Dataset, *, is_implicit: bool = False, is_little_endian: bool = True) -> bytes:
    """Return a data set as C-STORE carries it: no preamble, no File Meta."""
    buffer = BytesIO()
    stream = DicomIO(buffer)
    stream.is_implicit_VR, stream.is_little_endian = is_implicit, is_little_endian
    write_dataset(stream, data_set)
    return buffer.getvalue()


def nested_sequences(depth: int) -> bytes:
    """Return sequences of undefined length within one another, explicit little endian."""
    start = struct.pack("<HH2sHLHHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return start * depth + end * depth


def raw_element(keyword: str, value: bytes) -> bytes:
    """Return an element of a short VR, explicit little endian, whatever its value: the last of a tag counts."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    padded = value + b" " * (len(value) % 2)
    header = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, dictionary_VR(tag).encode(), len(padded))
    return header + padded
