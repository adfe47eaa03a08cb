"""What the node asks of a peer, and what it makes of answers that no good archive gives; pynetdicom is the peer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pynetdicom import AE, evt

from dicomnode.database.index import PatientIdentity
from dicomnode.database.queries import Subject
from dicomnode.errors import PeerBusyError, PeerRejectedError, PeerUnreachableError
from dicomnode.send.association import Caller, open_association
from dicomnode.send.fetch import GET_CONTEXTS, Bounds, Landing, get_series, move_series
from dicomnode.send.find import Search, find_count, find_series
from dicomnode.send.queries import FIND_CONTEXTS, MOVE_CONTEXTS, make_date_range
from dicomnode.settings import PeerSettings
from tests.dicomnode.series_files import SeriesSpec, make_series
from tests.peers_programs import LOOPBACK

CALLER = Caller("DICOMNODE", timeout_s=2.0)
JANE = PatientIdentity("4711", "A", "Doe^Jane", "19700102", "F")
SEARCH = Search(JANE, "MR", "20250101-20250401", results_at_most=3)
SUBJECT = Subject("1.2.3", "1.2.3.1", "20250304", "MR", JANE)
PENDING, SUCCESS = 0xFF00, 0x0000
Answers = Iterator[tuple[int, Dataset | None]]
Handler = Callable[[Any], Any]


@contextmanager
def _peer(
    find: Handler | None = None, move: Handler | None = None, get: Handler | None = None
) -> Iterator[PeerSettings]:
    """Run a peer that answers by these handlers."""
    ae = AE("ARCHIVE")
    ae.dimse_timeout = ae.network_timeout = 5.0
    for service, handler in (("1", find), ("2", move), ("3", get)):
        if handler is not None:
            ae.add_supported_context(f"1.2.840.10008.5.1.4.1.2.2.{service}")
    if get is not None:
        ae.add_supported_context("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1", scu_role=True, scp_role=True)
    bound = [(evt.EVT_C_FIND, find), (evt.EVT_C_MOVE, move), (evt.EVT_C_GET, get)]
    handlers: Any = [(event, handler) for event, handler in bound if handler is not None]
    server: Any = ae.start_server((LOOPBACK, 0), block=False, evt_handlers=handlers)
    try:
        yield PeerSettings(name="pacs", ae_title="ARCHIVE", host=LOOPBACK, port=server.socket.getsockname()[1])
    finally:
        server.shutdown()


def _study(number: int = 1, patient_id: str = "4711") -> Dataset:
    answer = Dataset()
    answer.SpecificCharacterSet = "ISO_IR 192"
    answer.PatientID, answer.PatientName, answer.StudyInstanceUID = patient_id, "Müller^Käthe", f"1.2.{number}"
    answer.StudyDate = "20250201"
    return answer


def _series(number: int = 1, **values: Any) -> Dataset:
    answer = Dataset()
    with disable_value_validation():
        for keyword, value in {"SeriesInstanceUID": f"1.2.9.{number}", "Modality": "MR", **values}.items():
            setattr(answer, keyword, value)
    return answer


def _answer(studies: list[Dataset], series: list[Dataset]) -> Handler:
    def find(event: Any) -> Answers:
        level = event.identifier.QueryRetrieveLevel
        yield from ((PENDING, one) for one in (studies if level == "STUDY" else series))

    return find


def _find(peer: PeerSettings, search: Search = SEARCH) -> list[Any]:
    with open_association(peer, CALLER, FIND_CONTEXTS) as association:
        return find_series(association, peer, search)


def test_studies_are_asked_for_by_id_dates_and_modality() -> None:
    asked: list[Dataset] = []

    def find(event: Any) -> Answers:
        asked.append(event.identifier)
        yield PENDING, _study() if len(asked) == 1 else _series(NumberOfSeriesRelatedInstances=176)

    with _peer(find) as peer:
        [found] = _find(peer)

    assert [(one.QueryRetrieveLevel, one.get("PatientID"), one.get("StudyDate")) for one in asked] == [
        ("STUDY", "4711", "20250101-20250401"),
        ("SERIES", None, None),
    ]
    assert (asked[0].ModalitiesInStudy, asked[1].Modality, asked[1].StudyInstanceUID) == ("MR", "MR", "1.2.1")
    assert (found.study_uid, found.series_uid, found.instance_count) == ("1.2.1", "1.2.9.1", 176)
    assert found.patient == PatientIdentity("4711", "", "Müller^Käthe", "", "")


def test_answers_about_others_are_dropped() -> None:
    others = [_study(2, "47"), _study(3, "47110"), _study(4, "")]
    with _peer(_answer([*others, _study()], [_series(), _series(2, Modality="CT"), _series(3, Modality="")])) as peer:
        found = _find(peer, Search(JANE, "MR", "", 10))

    assert [(one.study_uid, one.series_uid) for one in found] == [("1.2.1", "1.2.9.1")]


@pytest.mark.parametrize("patient_id", ["47*", "4?11", "4711\\4712"])
def test_an_id_that_would_match_others_is_not_asked_for(patient_id: str) -> None:
    def find(event: Any) -> Answers:
        raise AssertionError("asked")

    search = Search(PatientIdentity(patient_id, "", "", "", ""), "MR", "", 10)
    with _peer(find) as peer, pytest.raises(PeerRejectedError, match="a wild card, which matches others too"):
        _find(peer, search)


@pytest.mark.parametrize(
    "answer",
    [
        _series(SeriesInstanceUID="../../etc"),
        _series(SeriesInstanceUID=""),
        _series(NumberOfSeriesRelatedInstances=None),
        _series(SeriesDescription="t1\x1b[31m"),
    ],
)
def test_odd_answers_are_no_error_and_no_danger(answer: Dataset) -> None:
    with _peer(_answer([_study()], [answer])) as peer:
        found = _find(peer)

    assert all(one.series_uid == "1.2.9.1" and one.description.isprintable() for one in found)


def test_no_more_is_read_than_was_asked_for() -> None:
    studies = [_study(number) for number in range(1, 4)]
    with _peer(_answer(studies, [_series(number) for number in range(1, 6)])) as peer:
        assert len(_find(peer)) == 3


def test_a_peer_that_never_ends_is_left() -> None:
    sent: list[int] = []

    def find(_event: Any) -> Answers:
        while len(sent) < 10_000:
            sent.append(1)
            yield PENDING, _study(len(sent))

    with _peer(find) as peer, pytest.raises(PeerRejectedError, match="answers to C-FIND, though it was cancelled"):
        _find(peer)
    assert len(sent) < 10_000


@pytest.mark.parametrize(
    ("status", "error"), [(0xA700, PeerBusyError), (0xC001, PeerRejectedError), (0xA900, PeerRejectedError)]
)
def test_a_refusal_says_whether_to_ask_again(status: int, error: type[Exception]) -> None:
    def find(_event: Any) -> Answers:
        yield status, None

    with _peer(find) as peer, pytest.raises(error, match=f"C-FIND answered 0x{status:04X}"):
        _find(peer)


def test_a_peer_that_hangs_up_is_unreachable() -> None:
    def find(event: Any) -> Answers:
        event.assoc.abort()
        yield PENDING, None

    with _peer(find) as peer, pytest.raises(PeerUnreachableError, match="no answer to C-FIND"):
        _find(peer)


@pytest.mark.parametrize(
    ("answers", "message"),
    [([], "does not know the series"), ([_series()], "does not say how many instances it has")],
)
def test_a_count_that_is_not_given_is_no_count(answers: list[Dataset], message: str) -> None:
    with (
        _peer(_answer([], answers)) as peer,
        open_association(peer, CALLER, FIND_CONTEXTS) as association,
        pytest.raises(PeerRejectedError, match=message),
    ):
        find_count(association, peer, SUBJECT)


def test_a_series_is_moved_to_this_node_only() -> None:
    asked: list[tuple[str, str, str]] = []

    def move(event: Any) -> Iterator[Any]:
        identifier = event.identifier
        asked.append((event.move_destination, identifier.StudyInstanceUID, identifier.SeriesInstanceUID))
        yield None, None

    with (
        _peer(move=move) as peer,
        open_association(peer, CALLER, MOVE_CONTEXTS) as association,
        pytest.raises(PeerRejectedError, match="0xA801 it does not know our AE title as a move destination"),
    ):
        move_series(association, peer, SUBJECT, "DICOMNODE", Bounds(5.0, 1000, lambda: 0))

    assert asked == [("DICOMNODE", SUBJECT.study_uid, SUBJECT.series_uid)]


def _instances(count: int) -> list[Dataset]:
    return list(make_series(SeriesSpec(shape=(count, 8, 8))))


def _giving(instances: list[Dataset], sent: list[str]) -> Handler:
    def get(_event: Any) -> Iterator[Any]:
        yield len(instances)
        for instance in instances:
            sent.append(instance.SOPInstanceUID)
            yield PENDING, instance

    return get


def test_what_is_got_lands_durably_under_random_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instances, landing = _instances(5), Landing(tmp_path / "7", 10**6)
    flushed, flush = [], os.fsync

    def note(file: int) -> None:
        flush(file)
        flushed.append(str(Path(f"/proc/self/fd/{file}").readlink()))

    monkeypatch.setattr(os, "fsync", note)
    with (
        _peer(get=_giving(instances, [])) as peer,
        open_association(peer, CALLER, GET_CONTEXTS, landing.service) as association,
    ):
        get_series(association, peer, SUBJECT, Bounds(5.0, 10**6, lambda: landing.size_bytes))

    landed = sorted((tmp_path / "7").iterdir())
    assert len(landed) == 5
    assert all(len(path.stem) == 32 and path.suffix == ".dcm" for path in landed)
    files = [flushed.index(str(path.with_suffix(".part"))) for path in landed]
    for at in files:  # the bytes, then the name, then the folder that the query made
        assert flushed[at + 1 : at + 3] == [str(tmp_path / "7"), str(tmp_path)]


def test_what_is_got_is_bounded(tmp_path: Path) -> None:
    sent: list[str] = []
    landing = Landing(tmp_path / "7", 2000)
    with (
        _peer(get=_giving(_instances(50), sent)) as peer,
        open_association(peer, CALLER, GET_CONTEXTS, landing.service) as association,
        pytest.raises(PeerRejectedError, match="at most 2000 are fetched"),
    ):
        get_series(association, peer, SUBJECT, Bounds(5.0, 2000, lambda: landing.size_bytes))

    assert sum(path.stat().st_size for path in (tmp_path / "7").iterdir()) <= 2000
    assert len(sent) < 50


def test_a_fetch_that_takes_too_long_is_broken_off(tmp_path: Path) -> None:
    landing = Landing(tmp_path / "7", 10**9)
    with (
        _peer(get=_giving(_instances(50) * 200, [])) as peer,
        open_association(peer, CALLER, GET_CONTEXTS, landing.service) as association,
        pytest.raises(PeerRejectedError, match="C-GET took more than 1 s"),
    ):
        get_series(association, peer, SUBJECT, Bounds(1.0, 10**9, lambda: landing.size_bytes))


@pytest.mark.parametrize(
    ("study_date", "dates"),
    [("20250304", "20250227-20250309"), ("", ""), ("2025", ""), ("00010102", "")],
)
def test_the_window_is_a_range_of_dates(study_date: str, dates: str) -> None:
    assert make_date_range(study_date, 5) == dates
