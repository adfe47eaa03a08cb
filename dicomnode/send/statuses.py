"""What a peer's answer means: to C-STORE for an instance, to C-FIND, C-MOVE and C-GET, and to storage commitment.

Flow: send/scu, send/find, send/fetch, send/commitment > [statuses]
Never: a socket; this is the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar

from dicomnode.errors import PeerBusyError, PeerRejectedError

Meaning = Literal["sent", "transient", "permanent"]
QueryMeaning = Literal["answered", "transient", "permanent"]
CommitmentMeaning = Literal["taken", "transient", "permanent"]
FailureMeaning = Literal["sent again", "asked again", "given up"]
Refusal = Literal["permanent"]
_Meaning = TypeVar("_Meaning", bound=str)

# First and last status of a range, its meaning, its name: PS3.4 table B.2-1 and PS3.7 annex C.
STATUSES: tuple[tuple[int, int, Meaning, str], ...] = (
    (0x0000, 0x0000, "sent", ""),
    (0x0001, 0x0001, "sent", "requested optional attributes are not supported"),  # PS3.7 C.4.1
    (0x0107, 0x0107, "sent", "attribute list error"),  # PS3.7 C.4.2
    (0x0110, 0x0110, "transient", "processing failure"),  # PS3.7 C.5.10
    # Our UIDs derive from what the object is made of: who has the UID has the object.
    (0x0111, 0x0111, "sent", "the destination has this SOP instance already"),  # PS3.7 C.5.7
    (0x0116, 0x0116, "sent", "attribute value out of range"),  # PS3.7 C.4.3
    (0x0117, 0x0117, "permanent", "invalid SOP instance"),  # PS3.7 C.5.8
    (0x0122, 0x0122, "permanent", "SOP class not supported"),  # PS3.7 C.5.21
    (0x0124, 0x0124, "permanent", "not authorised"),  # PS3.7 C.5.11
    (0x0213, 0x0213, "transient", "resource limitation"),  # PS3.7 C.5.18
    (0xA700, 0xA7FF, "transient", "out of resources"),
    (0xA900, 0xA9FF, "permanent", "data set does not match SOP class"),
    (0xB000, 0xB000, "sent", "coercion of data elements"),
    (0xB001, 0xB005, "sent", "a warning"),
    (0xB006, 0xB006, "sent", "elements discarded"),
    (0xB007, 0xB007, "sent", "data set does not match SOP class, but is stored"),
    (0xB008, 0xBFFF, "sent", "a warning"),
    (0xC000, 0xCFFF, "permanent", "cannot understand"),
)


def classify_status(status: int) -> tuple[Meaning, str]:
    """Return what a status means and its name; one that the standard does not give to C-STORE is a refusal."""
    return _find(STATUSES, status, "C-STORE")


# The same for the last answer to a question: PS3.4 tables C.4-1, C.4-2 and C.4-3, and PS3.7 annex C.
QUERY_STATUSES: tuple[tuple[int, int, QueryMeaning, str], ...] = (
    (0x0000, 0x0000, "answered", ""),
    (0x0110, 0x0110, "transient", "processing failure"),
    (0x0122, 0x0122, "permanent", "SOP class not supported"),
    (0x0124, 0x0124, "permanent", "not authorised"),
    (0xA700, 0xA7FF, "transient", "out of resources"),
    (0xA801, 0xA801, "permanent", "it does not know our AE title as a move destination; add it there"),
    (0xA900, 0xA9FF, "permanent", "identifier does not match SOP class"),
    (0xB000, 0xBFFF, "transient", "some instances could not be sent"),
    (0xC000, 0xCFFF, "permanent", "unable to process"),
    (0xFE00, 0xFE00, "answered", "cancelled"),  # by us, who had enough
)


def check_query_status(peer: str, service: str, status: int, failed: int = 0) -> None:
    """Judge the last answer to a question; `failed` counts sub-operations of C-MOVE or C-GET.

    Raises
    ------
    PeerBusyError
        If the peer cannot answer now, or some instances failed.
    PeerRejectedError
        If it never will.
    """
    meaning, name = _find(QUERY_STATUSES, status, service)
    said = f"{peer}: {service} answered 0x{status:04X} {name}"
    if meaning == "permanent":
        raise PeerRejectedError(said)
    if meaning == "transient" or failed:
        raise PeerBusyError(f"{said}; {failed} instances failed" if failed else said)


# The same for the answer to N-ACTION, and to N-EVENT-REPORT: PS3.7 10.1.4.1.10, 10.1.1.1.8 and annex C.
COMMITMENT_STATUSES: tuple[tuple[int, int, CommitmentMeaning, str], ...] = (
    (0x0000, 0x0000, "taken", ""),
    (0x0110, 0x0110, "transient", "processing failure"),
    (0x0112, 0x0112, "permanent", "no such SOP instance"),
    (0x0113, 0x0113, "permanent", "no such event type"),
    (0x0114, 0x0115, "permanent", "invalid argument"),
    (0x0117, 0x0117, "permanent", "invalid SOP instance"),
    (0x0118, 0x0118, "permanent", "no such SOP class"),
    (0x0119, 0x0119, "permanent", "class and instance conflict"),
    (0x0122, 0x0122, "permanent", "SOP class not supported"),
    (0x0123, 0x0123, "permanent", "no such action"),
    (0x0124, 0x0124, "permanent", "not authorised"),
    (0x0210, 0x0210, "transient", "duplicate invocation"),
    (0x0211, 0x0211, "permanent", "unrecognised operation"),
    (0x0213, 0x0213, "transient", "resource limitation"),
)


def check_commitment_status(peer: str, service: str, status: int) -> None:
    """Judge the answer to a request for storage commitment, or to a report on one.

    Raises
    ------
    PeerBusyError
        If the peer cannot take it now.
    PeerRejectedError
        If it never will.
    """
    meaning, name = _find(COMMITMENT_STATUSES, status, service)
    said = f"{peer}: {service} answered 0x{status:04X} {name}"
    if meaning == "permanent":
        raise PeerRejectedError(said)
    if meaning == "transient":
        raise PeerBusyError(said)


# What becomes of an instance that a peer reports as not committed: Failure Reason, PS3.3 C.14.1.1.
FAILURE_REASONS: tuple[tuple[int, FailureMeaning, str], ...] = (
    (0x0110, "sent again", "processing failure"),
    (0x0112, "sent again", "no such object instance"),
    (0x0119, "given up", "class and instance conflict"),
    (0x0122, "given up", "referenced SOP class not supported"),
    (0x0131, "asked again", "duplicate transaction UID"),
    (0x0213, "sent again", "resource limitation"),
)


def classify_failure(reason: int) -> tuple[FailureMeaning, str]:
    """Return what becomes of an instance, and why; for a reason that is not the standard's it is sent again."""
    return next(
        ((meaning, name) for code, meaning, name in FAILURE_REASONS if code == reason),
        ("sent again", "a reason that storage commitment does not have"),
    )


def _find(table: Iterable[tuple[int, int, _Meaning, str]], status: int, service: str) -> tuple[_Meaning | Refusal, str]:
    for first, last, meaning, name in table:
        if first <= status <= last:
            return meaning, name
    return "permanent", f"a status that {service} does not have"
