"""Series as values, for rules that need no database.

Flow: tests > [values]
Never: a real patient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dicomnode.database.index import PatientIdentity
from dicomnode.database.series import IdentifiedSeries, SeriesRow

JANE = PatientIdentity("4711", "HOSPITAL", "Doe^Jane", "19700102", "F")

MR_ROW = SeriesRow(
    id=1,
    series_uid="1.2.3.1",
    study_id=1,
    study_uid="1.2.3",
    study_date="20260301",
    study_time="100000",
    accession_number="",
    patient_key=1,
    state="complete",
    reason="",
    modality="MR",
    description="t1_mprage_sag",
    frame_of_reference_uid="1.2.9.1",
    expected_instances=None,
    source_count=None,
    completed_by="",
    instance_count=176,
    summary={
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
        "MRAcquisitionType": "3D",
        "PixelSpacing": [1.0, 1.0],
        "Rows": 256,
        "Columns": 256,
        "SliceThickness": 1.0,
        "EchoTime": 3.0,
        "RepetitionTime": 2300.0,
        "InversionTime": 900.0,
    },
    calling_ae="MR1",
    first_received_at=0.0,
    last_received_at=0.0,
)
PET_ROW = replace(
    MR_ROW,
    id=2,
    series_uid="1.2.4.1",
    study_id=2,
    study_uid="1.2.4",
    study_time="110000",
    modality="PT",
    description="Brain AC",
    frame_of_reference_uid="1.2.9.2",
    expected_instances=89,
    instance_count=89,
    summary={
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "SeriesType": ["STATIC", "IMAGE"],
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "PixelSpacing": [2.0, 2.0],
        "SliceThickness": 3.0,
        "NumberOfSlices": 89,
        "NumberOfTimeSlices": 1,
    },
    calling_ae="PET1",
)


def replace_row(row: SeriesRow, **values: Any) -> SeriesRow:
    """The same series with other columns, and other attributes of its summary given as `summary`."""
    summary = {**row.summary, **values.pop("summary", {})}
    return replace(row, summary={k: v for k, v in summary.items() if v is not None}, **values)


def mr(number: int = 1, patient: PatientIdentity = JANE, **values: Any) -> IdentifiedSeries:
    """An MR series; its number tells it from others."""
    ids: dict[str, Any] = {"id": 100 + number, "series_uid": f"1.2.3.{number}"}
    return IdentifiedSeries(replace_row(MR_ROW, **{**ids, **values}), patient)


def pet(number: int = 1, patient: PatientIdentity = JANE, **values: Any) -> IdentifiedSeries:
    """A PET series; its number tells it from others."""
    ids: dict[str, Any] = {"id": 200 + number, "series_uid": f"1.2.4.{number}"}
    return IdentifiedSeries(replace_row(PET_ROW, **{**ids, **values}), patient)


def study(number: int, date: str = "20260301", time: str = "100000", accession: str = "") -> dict[str, Any]:
    """Columns that put a series into a study."""
    return {
        "study_id": number,
        "study_uid": f"1.2.8.{number}",
        "study_date": date,
        "study_time": time,
        "accession_number": accession,
    }
