"""What storage commitment says, both ways: a request to keep instances safe, and the report on it (PS3.4 annex J).

Flow: receive|send > [commitment] > elements, pydicom
Never: a socket; a row; more items read than may be taken (whoever sends them may be hostile).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from pydicom import Dataset

from dicomnode.elements import EXPLICIT_LITTLE, IMPLICIT_LITTLE, collect_item_values, collect_values
from dicomnode.errors import CommitmentRefusedError, InstanceNotUnderstoodError, LimitExceededError
from dicomnode.status import CommitmentStatus

# PS3.4 J.3.5: the SOP class, and its one well-known instance.
PUSH_MODEL, PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
ENCODINGS = {"1.2.840.10008.1.2.1": EXPLICIT_LITTLE, "1.2.840.10008.1.2": IMPLICIT_LITTLE}
REQUEST_COMMITMENT = 1  # PS3.4 table J.3-1: Action Type ID
ALL_COMMITTED, FAILURES_EXIST = 1, 2  # PS3.4 table J.3-2: Event Type ID

_TRANSACTION, _REFERENCED, _FAILED = 0x00081195, 0x00081199, 0x00081198
_SOP_CLASS, _SOP_INSTANCE, _FAILURE_REASON = 0x00081150, 0x00081155, 0x00081197
_UID = re.compile(rb"[0-9.]{1,64}")
_ITEM_BYTES = 1024  # an item has two UIDs of at most 64 bytes; what else may stand there is short


class Reference(NamedTuple):
    """An instance, as a request or report names it."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Message:
    """What an N-ACTION-RQ or N-EVENT-REPORT-RQ says; `type_id` is its Action Type ID or Event Type ID."""

    sop_instance_uid: str
    type_id: int | None
    data: bytes
    transfer_syntax_uid: str


@dataclass(frozen=True)
class Request:
    """A peer asks that these instances be kept safe; each stands once."""

    transaction_uid: str
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class Report:
    """Of a transaction, what is kept safe, and what is not, with the Failure Reason of PS3.3 C.14.1.1."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: Mapping[Reference, int]


def read_request(message: Message, instances_at_most: int) -> Request:
    """Read an N-ACTION-RQ.

    Raises
    ------
    CommitmentRefusedError
        If it is none of PS3.4 J.3.2, or names more than `instances_at_most`; the error holds the status to answer.
    """
    if message.type_id != REQUEST_COMMITMENT:
        words = f"action type {message.type_id}, {REQUEST_COMMITMENT} is known"
        raise CommitmentRefusedError(CommitmentStatus.NO_SUCH_ACTION, words)
    transaction_uid = _read_transaction(message, instances_at_most)
    references = tuple(_read_items(message, _REFERENCED, instances_at_most))
    if not references:
        raise _invalid("it names no instance, at least one is needed")
    return Request(transaction_uid, references)


def read_report(message: Message, instances_at_most: int) -> Report:
    """Read an N-EVENT-REPORT-RQ; raises as `read_request` does, for PS3.4 J.3.3."""
    if message.type_id not in (ALL_COMMITTED, FAILURES_EXIST):
        words = f"event type {message.type_id}, {ALL_COMMITTED} and {FAILURES_EXIST} are known"
        raise CommitmentRefusedError(CommitmentStatus.NO_SUCH_EVENT_TYPE, words)
    transaction_uid = _read_transaction(message, instances_at_most)
    committed = _read_items(message, _REFERENCED, instances_at_most)
    failed = _read_items(message, _FAILED, instances_at_most)
    return Report(transaction_uid, tuple(one for one in committed if one not in failed), failed)


def make_request(transaction_uid: str, references: Iterable[Reference]) -> Dataset:
    """Return the Action Information of PS3.4 table J.3-1."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [_make_item(one) for one in references]
    return information


def make_report(report: Report) -> tuple[int, Dataset]:
    """Return the Event Type ID and the Event Information of PS3.4 table J.3-2."""
    information = Dataset()
    information.TransactionUID = report.transaction_uid
    if report.committed:
        information.ReferencedSOPSequence = [_make_item(one) for one in report.committed]
    if not report.failed:
        return ALL_COMMITTED, information
    items = []
    for reference, reason in report.failed.items():
        items.append(_make_item(reference))
        items[-1].FailureReason = reason
    information.FailedSOPSequence = items
    return FAILURES_EXIST, information


def _make_item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
    return item


def _read_transaction(message: Message, instances_at_most: int) -> str:
    if message.sop_instance_uid != PUSH_MODEL_INSTANCE:
        words = f"SOP instance {message.sop_instance_uid!a}, {PUSH_MODEL_INSTANCE} is the one there is"
        raise CommitmentRefusedError(CommitmentStatus.NO_SUCH_SOP_INSTANCE, words)
    encoding = ENCODINGS[message.transfer_syntax_uid]
    if len(message.data) > _ITEM_BYTES * (instances_at_most + 1):
        raise _too_many(instances_at_most)
    try:
        values = collect_values(message.data, encoding, {_TRANSACTION})
    except (InstanceNotUnderstoodError, LimitExceededError) as error:
        raise _invalid(str(error)) from error
    return _read_uid(values, _TRANSACTION, "TransactionUID")


def _read_items(message: Message, sequence: int, at_most: int) -> dict[Reference, int]:
    """Return the instances that a sequence names, each once, with the Failure Reason where it has one, else 0."""
    wanted = {_SOP_CLASS, _SOP_INSTANCE, _FAILURE_REASON}
    found: dict[Reference, int] = {}
    items = collect_item_values(message.data, ENCODINGS[message.transfer_syntax_uid], sequence, wanted)
    try:
        for values in islice(items, at_most + 1):
            sop_class_uid = _read_uid(values, _SOP_CLASS, "ReferencedSOPClassUID")
            reference = Reference(sop_class_uid, _read_uid(values, _SOP_INSTANCE, "ReferencedSOPInstanceUID"))
            found[reference] = int.from_bytes(values.get(_FAILURE_REASON, b"")[:2], "little")
        is_more = next(items, None) is not None or len(found) > at_most
    except (InstanceNotUnderstoodError, LimitExceededError) as error:
        raise _invalid(str(error)) from error
    if is_more:
        raise _too_many(at_most)
    return found


def _read_uid(values: Mapping[int, bytes], tag: int, keyword: str) -> str:
    value = values.get(tag, b"").rstrip(b"\0 ")
    if not _UID.fullmatch(value):
        raise _invalid(f"{keyword} is {value[:80]!r}, a UID is needed")
    return value.decode("ascii")


def _invalid(words: str) -> CommitmentRefusedError:
    return CommitmentRefusedError(CommitmentStatus.INVALID_ARGUMENT_VALUE, words)


def _too_many(at_most: int) -> CommitmentRefusedError:
    words = f"it names more than limits.commitment_instances = {at_most} instances"
    return CommitmentRefusedError(CommitmentStatus.RESOURCE_LIMITATION, words)
