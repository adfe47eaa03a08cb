"""Asks a peer what it has (C-FIND, PS3.4 annex C): how many instances of a series, which series of a patient.

Flow: send/queries > [find] > send/association > a peer
Never: an answer about another patient kept; more answers read than was asked for; a rule about which is better.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.config import disable_value_validation
from pynetdicom.association import Association

from dicomnode.database.index import PatientIdentity
from dicomnode.database.priors import FoundSeries
from dicomnode.database.queries import Subject
from dicomnode.errors import PeerRejectedError, PeerUnreachableError
from dicomnode.send.association import explain_unsent
from dicomnode.send.statuses import check_query_status
from dicomnode.settings import PeerSettings

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # PS3.4 C.6.2.1
PENDING = (0xFF00, 0xFF01)  # PS3.4 table C.4-1
TEXT_MAX_CHARACTERS = 200
_UID = re.compile(r"[0-9.]{1,64}")
_MATCHES_MORE = re.compile(r"[*?\\]")  # PS3.4 C.2.2.2: wild cards, and a list of values
_STUDY_KEYS = (
    *("StudyInstanceUID", "StudyTime", "AccessionNumber"),
    *("PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID"),
)
_SERIES_KEYS = ("SeriesInstanceUID", "SeriesDescription", "NumberOfSeriesRelatedInstances")


@dataclass(frozen=True)
class Search:
    """Which series of a patient are looked for; `dates` is a range of PS3.5 6.2 DA, or empty for all."""

    patient: PatientIdentity
    modality: str
    dates: str
    results_at_most: int


def find_count(association: Association, peer: PeerSettings, subject: Subject) -> int:
    """Return how many instances of a series a peer counts (NumberOfSeriesRelatedInstances, PS3.4 C.3.4).

    Raises
    ------
    PeerRejectedError
        If the peer does not know the series, or does not say.
    PeerUnreachableError, PeerBusyError
        If it did not answer, or cannot now.
    """
    answers = list(_find(association, peer, make_count_identifier(subject), 1))
    count = _number(answers[0]) if answers else None
    if count is None:
        found = "does not know the series" if not answers else "does not say how many instances it has"
        raise PeerRejectedError(f"{peer.name} {found}; NumberOfSeriesRelatedInstances is needed")
    return count


def find_series(association: Association, peer: PeerSettings, search: Search) -> list[FoundSeries]:
    """Return the series of one modality that a peer has under a PatientID.

    The peer is asked for studies first, then for the series of each, as the Study Root model wants (PS3.4 C.6.2.1).

    Raises
    ------
    PeerRejectedError
        If the PatientID would match other patients, or the peer refuses.
    PeerUnreachableError, PeerBusyError
        If it did not answer, or cannot now.
    """
    if _MATCHES_MORE.search(search.patient.patient_id):
        raise PeerRejectedError(f"{peer.name} is not asked: the PatientID holds a wild card, which matches others too")
    identifier = make_studies_identifier(search.patient.patient_id, search.dates, search.modality)
    studies = list(_find(association, peer, identifier, search.results_at_most))
    found: list[FoundSeries] = []
    for study in studies:
        if _text(study, "PatientID") == search.patient.patient_id.strip() and _uid(study, "StudyInstanceUID"):
            found += _find_series_of_study(association, peer, study, search, search.results_at_most - len(found))
        if len(found) >= search.results_at_most:
            break
    return found


def make_count_identifier(subject: Subject) -> Dataset:
    """Return what a peer is asked with for how many instances a series has."""
    keys = {"StudyInstanceUID": subject.study_uid, "SeriesInstanceUID": subject.series_uid}
    return _make_identifier("SERIES", {**keys, "NumberOfSeriesRelatedInstances": ""})


def make_studies_identifier(patient_id: str, dates: str, modality: str) -> Dataset:
    """Return what a peer is asked with for the studies of a patient."""
    keys = {"PatientID": patient_id, "StudyDate": dates, "ModalitiesInStudy": modality}
    return _make_identifier("STUDY", {**dict.fromkeys(_STUDY_KEYS, ""), **keys})


def _find_series_of_study(
    association: Association, peer: PeerSettings, study: Dataset, search: Search, at_most: int
) -> Iterator[FoundSeries]:
    study_uid = _uid(study, "StudyInstanceUID")
    keys = {"StudyInstanceUID": study_uid, "Modality": search.modality}
    identifier = _make_identifier("SERIES", {**dict.fromkeys(_SERIES_KEYS, ""), **keys})
    for series in _find(association, peer, identifier, at_most):
        if _text(series, "Modality") == search.modality and _uid(series, "SeriesInstanceUID"):
            yield FoundSeries(
                study_uid=study_uid,
                study_date=_text(study, "StudyDate")[:16],
                study_time=_text(study, "StudyTime")[:16],
                accession_number=_text(study, "AccessionNumber"),
                series_uid=_uid(series, "SeriesInstanceUID"),
                modality=search.modality,
                description=_text(series, "SeriesDescription"),
                instance_count=_number(series),
                patient=PatientIdentity(
                    _text(study, "PatientID"),
                    _text(study, "IssuerOfPatientID"),
                    _text(study, "PatientName"),
                    _text(study, "PatientBirthDate")[:16],
                    _text(study, "PatientSex")[:16],
                ),
            )


def _find(association: Association, peer: PeerSettings, identifier: Dataset, at_most: int) -> Iterator[Dataset]:
    """Yield at most so many answers; the rest is cancelled, and a peer that goes on all the same is refused."""
    try:
        responses = association.send_c_find(identifier, STUDY_ROOT_FIND)
    except (RuntimeError, ValueError) as error:
        raise explain_unsent(peer, "C-FIND", error) from error
    for read, (status, answer) in enumerate(responses, start=1):
        if "Status" not in status:  # pynetdicom returns an empty data set on time-out or abort
            raise PeerUnreachableError(f"{peer.name}: no answer to C-FIND, or the association ended")
        if status.Status not in PENDING:
            check_query_status(peer.name, "C-FIND", status.Status)
            return
        if read <= at_most and answer is not None:
            yield answer
        if read == at_most + 1:
            association.send_c_cancel(1, query_model=STUDY_ROOT_FIND)
        elif read > 2 * at_most + 1:
            raise PeerRejectedError(f"{peer.name}: more than {read} answers to C-FIND, though it was cancelled")


def _make_identifier(level: str, keys: dict[str, str]) -> Dataset:
    identifier = Dataset()
    if not all(value.isascii() for value in keys.values()):
        identifier.SpecificCharacterSet = "ISO_IR 192"
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def _text(answer: Dataset, keyword: str) -> str:
    """Return a value as text, a mark in the place of each control character; empty where it cannot be read."""
    try:
        with disable_value_validation():  # which would write the value to the log
            value = answer.get(keyword)
            text = "" if value is None else str(value).strip(" \0")
    except (LookupError, UnicodeError, ValueError, UserWarning):  # an unknown character set, a malformed value
        return ""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)[:TEXT_MAX_CHARACTERS]


def _uid(answer: Dataset, keyword: str) -> str:
    text = _text(answer, keyword)
    return text if _UID.fullmatch(text) else ""


def _number(answer: Dataset) -> int | None:
    text = _text(answer, "NumberOfSeriesRelatedInstances")
    return int(text) if text.isascii() and text.isdecimal() else None
