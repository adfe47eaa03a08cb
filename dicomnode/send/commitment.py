"""Speaks storage commitment over an association: asks a peer, takes its report, or reports to it (PS3.4 annex J).

Flow: send/commitments > [commitment] > send/association > a peer
Never: a row moved, save by the report that a peer gives over the association it was asked over; a retry.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.association import Association

from dicomnode.commitment import (
    ENCODINGS,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_COMMITMENT,
    Message,
    Reference,
    Report,
    make_report,
    make_request,
    read_report,
)
from dicomnode.database.commitments import take_report
from dicomnode.database.engine import Database
from dicomnode.database.refusals import Refused, forget_refusals, record_refusal
from dicomnode.errors import (
    CommitmentRefusedError,
    DatabaseUnavailableError,
    DicomnodeError,
    PeerUnreachableError,
    StateError,
)
from dicomnode.logs import get_logger
from dicomnode.send.association import Caller, Service, explain_unsent, open_association
from dicomnode.send.pdus import ContextKey
from dicomnode.send.statuses import check_commitment_status
from dicomnode.settings import PeerSettings
from dicomnode.status import CommitmentStatus

log = get_logger()

COMMITMENT_CONTEXTS: frozenset[ContextKey] = frozenset((PUSH_MODEL, syntax) for syntax in ENCODINGS)
REPORTING = Service(scp_of=(PUSH_MODEL,))


def ask_for_commitment(
    association: Association, peer: PeerSettings, transaction_uid: str, references: list[Reference], message_id: int
) -> None:
    """Ask a peer to keep instances safe (N-ACTION, PS3.4 J.3.2); its report comes later.

    Raises
    ------
    PeerUnreachableError
        If no answer came: whether the peer was asked is not known.
    PeerBusyError, PeerRejectedError
        If it does not take the request now, or ever.
    """
    request = make_request(transaction_uid, references)
    try:
        status, _ = association.send_n_action(request, REQUEST_COMMITMENT, PUSH_MODEL, PUSH_MODEL_INSTANCE, message_id)
    except (RuntimeError, ValueError) as error:
        raise explain_unsent(peer, "N-ACTION", error) from error
    _check(peer, "N-ACTION", status)


def send_report(association: Association, peer: PeerSettings, report: Report, message_id: int) -> None:
    """Tell a peer what is kept safe (N-EVENT-REPORT, PS3.4 J.3.3); raises as `ask_for_commitment` does."""
    event_type, information = make_report(report)
    try:
        status, _ = association.send_n_event_report(
            information, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE, message_id
        )
    except (RuntimeError, ValueError) as error:
        raise explain_unsent(peer, "N-EVENT-REPORT", error) from error
    _check(peer, "N-EVENT-REPORT", status)


def check_commitment_peer(peer: PeerSettings, caller: Caller) -> None:
    """See whether a peer takes requests for storage commitment, without one; raises as `open_association` does."""
    with open_association(peer, caller, COMMITMENT_CONTEXTS):
        pass


def make_report_service(
    database: Database, peer: PeerSettings, instances_at_most: int, clock: Callable[[], float]
) -> Service:
    """Return what takes a peer's report over the association that it was asked over, and notes one it refuses."""
    refused = Refused(peer.ae_title, peer.host, "report")

    def take(event: Any) -> tuple[int, Dataset | None]:
        request, data = event.request, event.request.EventInformation
        message = Message(
            str(request.AffectedSOPInstanceUID),
            request.EventTypeID,
            data.getvalue() if data else b"",
            str(event.context.transfer_syntax),
        )
        try:
            take_report(database, read_report(message, instances_at_most), [peer.name])
            forget_refusals(database, refused)
        except CommitmentRefusedError as error:
            status, why = error.status, str(error)
        except StateError as error:
            status, why = CommitmentStatus.INVALID_ARGUMENT_VALUE, str(error)
        except DicomnodeError as error:
            status, why = CommitmentStatus.PROCESSING_FAILURE, str(error)
        else:
            return CommitmentStatus.SUCCESS, None
        log.warning("commitment.report_refused", peer=peer.name, status=f"{status:04X}", why=why)
        with suppress(DatabaseUnavailableError), database.write() as connection:
            record_refusal(connection, refused, why, clock())
        return status, None

    return Service(event=evt.EVT_N_EVENT_REPORT, handle=take)


def _check(peer: PeerSettings, service: str, status: Dataset) -> None:
    if "Status" not in status:  # pynetdicom returns an empty data set on time-out or abort
        raise PeerUnreachableError(f"{peer.name}: no answer to {service}, or the association ended")
    check_commitment_status(peer.name, service, status.Status)
