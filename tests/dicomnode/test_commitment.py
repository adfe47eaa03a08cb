"""What storage commitment says is read as it was meant, and what is none of it is refused with its status."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from dicomnode.commitment import (
    PUSH_MODEL_INSTANCE,
    Message,
    Reference,
    Report,
    Request,
    make_report,
    make_request,
    read_report,
    read_request,
)
from dicomnode.errors import CommitmentRefusedError
from dicomnode.status import CommitmentStatus, FailureReason
from tests.receiving import encode, nested_sequences

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
SYNTAXES = (EXPLICIT, IMPLICIT)
UIDS = st.integers(min_value=1, max_value=10**30).map(lambda number: f"2.25.{number}")
REFERENCES = st.lists(st.builds(Reference, UIDS, UIDS), min_size=1, max_size=5, unique=True)
TRANSACTION = "2.25.17"
# A busy machine takes its time.
UNHURRIED = settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
NAMED = Reference("1.2.840.10008.5.1.4.1.1.4", "1.2.3.4")


def write(data_set: Dataset, syntax: str, *, is_open: bool = False) -> bytes:
    """Encode a data set, its sequences of undefined length where asked for."""
    for element in data_set:
        if element.VR == "SQ":
            element.is_undefined_length = is_open
            for item in element.value:
                item.is_undefined_length_sequence_item = is_open
    return encode(data_set, is_implicit=syntax == IMPLICIT)


def message(data: bytes, syntax: str = EXPLICIT, type_id: int = 1, instance: str = PUSH_MODEL_INSTANCE) -> Message:
    return Message(instance, type_id, data, syntax)


def refuse(found: Message, at_most: int = 10) -> CommitmentStatus:
    with pytest.raises(CommitmentRefusedError) as caught:
        read_request(found, at_most)
    return caught.value.status


@UNHURRIED
@given(UIDS, REFERENCES, st.sampled_from(SYNTAXES), st.booleans())
def test_a_request_is_read_as_it_was_made(uid: str, references: list[Reference], syntax: str, is_open: bool) -> None:
    data = write(make_request(uid, references), syntax, is_open=is_open)

    assert read_request(message(data, syntax), 8) == Request(uid, tuple(references))


@UNHURRIED
@given(UIDS, REFERENCES, st.data(), st.sampled_from(SYNTAXES), st.booleans())
def test_a_report_is_read_as_it_was_made(
    uid: str, references: list[Reference], data: st.DataObject, syntax: str, is_open: bool
) -> None:
    failing = data.draw(st.lists(st.sampled_from(references), unique=True))
    failed = {one: int(data.draw(st.sampled_from(FailureReason))) for one in failing}
    report = Report(uid, tuple(one for one in references if one not in failed), failed)

    event_type, information = make_report(report)

    assert event_type == (2 if failed else 1)
    assert read_report(message(write(information, syntax, is_open=is_open), syntax, event_type), 8) == report


def test_other_attributes_and_an_instance_named_twice_change_nothing() -> None:
    information = make_request(TRANSACTION, [NAMED, NAMED])
    information.StorageMediaFileSetID = "DISK"
    information.ReferencedSOPSequence[0].RetrieveAETitle = "PACS"

    assert read_request(message(write(information, EXPLICIT)), 10) == Request(TRANSACTION, (NAMED,))


def test_what_failed_is_not_committed_whatever_else_is_said() -> None:
    event_type, information = make_report(Report(TRANSACTION, (NAMED,), {NAMED: 0x0112}))

    report = read_report(message(write(information, EXPLICIT), type_id=event_type), 10)
    assert (report.committed, report.failed) == ((), {NAMED: 0x0112})


@pytest.mark.parametrize("syntax", SYNTAXES)
@UNHURRIED
@given(cut=st.integers(min_value=1, max_value=200))
def test_what_is_cut_off_is_refused(syntax: str, cut: int) -> None:
    data = write(make_request(TRANSACTION, [NAMED, Reference("1.2", "1.2.3.5")]), syntax)
    kept = data[: max(len(data) - cut, 0)]
    if syntax == IMPLICIT and len(kept) == 8 + len(TRANSACTION) + 1:  # it ends between two elements
        return

    assert refuse(message(kept, syntax)) is CommitmentStatus.INVALID_ARGUMENT_VALUE


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (message(b"", type_id=2), CommitmentStatus.NO_SUCH_ACTION),
        (message(b"", instance="1.2.3"), CommitmentStatus.NO_SUCH_SOP_INSTANCE),
        (message(b""), CommitmentStatus.INVALID_ARGUMENT_VALUE),
        (message(write(make_request(TRANSACTION, []), EXPLICIT)), CommitmentStatus.INVALID_ARGUMENT_VALUE),
        (message(write(make_request("", [NAMED]), EXPLICIT)), CommitmentStatus.INVALID_ARGUMENT_VALUE),
        (
            message(write(make_request(TRANSACTION, [NAMED]), EXPLICIT).replace(b"1.2.3.4", b"1.2/3.4")),
            CommitmentStatus.INVALID_ARGUMENT_VALUE,
        ),
        (message(nested_sequences(100)), CommitmentStatus.INVALID_ARGUMENT_VALUE),
        (
            message(
                write(
                    make_request(TRANSACTION, [NAMED._replace(sop_instance_uid=f"1.{n}") for n in range(11)]), EXPLICIT
                )
            ),
            CommitmentStatus.RESOURCE_LIMITATION,
        ),
        (message(bytes(1024 * 12)), CommitmentStatus.RESOURCE_LIMITATION),
    ],
)
def test_what_is_no_request_is_refused_with_its_status(found: Message, status: CommitmentStatus) -> None:
    assert refuse(found) is status


def test_an_event_of_another_type_is_no_report() -> None:
    with pytest.raises(CommitmentRefusedError, match="event type 3, 1 and 2 are known") as caught:
        read_report(message(b"", type_id=3), 10)
    assert caught.value.status is CommitmentStatus.NO_SUCH_EVENT_TYPE
