"""Takes what peers say of storage commitment: a request to keep instances safe, and the report on one of ours.

Flow: receive.associations > [commitment] > receive.intake, database.commitment_requests, database.commitments
Never: an answer of Success before the row; a report sent (`send/reporting` does that); a reader of hostile bytes of
its own (`dicomnode.commitment` reads them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pynetdicom import evt
from pynetdicom.events import Event

from dicomnode.commitment import Message, read_report, read_request
from dicomnode.database.commitment_requests import record_request
from dicomnode.database.commitments import TAKES_REPORT, take_report
from dicomnode.database.engine import Database
from dicomnode.database.refusals import Refused, forget_refusals, record_refusal
from dicomnode.database.series import note_commitment_request
from dicomnode.errors import CommitmentForbiddenError, DatabaseUnavailableError, StateError
from dicomnode.logs import get_logger
from dicomnode.receive.intake import Intake
from dicomnode.receive.recording import Sender
from dicomnode.settings import Settings
from dicomnode.status import CommitmentStatus
from dicomnode.steps import Step, reach

log = get_logger()

Kind = Literal["request", "report"]


def read_message(event: Event) -> tuple[Kind, Message]:
    """Return what an `EVT_N_ACTION` or `EVT_N_EVENT_REPORT` is, and what it says."""
    request: Any = event.request
    syntax = str(event.context.transfer_syntax)
    if event.event is evt.EVT_N_ACTION:
        data = request.ActionInformation
        message = Message(str(request.RequestedSOPInstanceUID), request.ActionTypeID, _read(data), syntax)
        return "request", message
    data = request.EventInformation
    return "report", Message(str(request.AffectedSOPInstanceUID), request.EventTypeID, _read(data), syntax)


def take_commitment_request(intake: Intake, message: Message, sender: Sender, settings: Settings, now: float) -> None:
    """Owe a peer the report on what it asks, and note that it has sent what it has to send.

    Raises
    ------
    CommitmentForbiddenError
        If it may not ask, or cannot be called for the report; nothing changed.
    CommitmentRefusedError
        If it asks what is no request or too much; nothing changed.
    DatabaseUnavailableError
        If the rows of what it sent, or of the request, cannot be written now.
    """
    if not sender.may_store:
        words = f'peer {sender.ae_title!a} at {sender.address} has no may = ["store"]'
        raise CommitmentForbiddenError(CommitmentStatus.NOT_AUTHORISED, words)
    callable_names = [peer.name for peer in settings.peers if not peer.is_network]
    peer = next((name for name in sender.names if name in callable_names), None)
    if peer is None:
        words = f"{sender.ae_title!a} at {sender.address} cannot be called for the report"
        words += "; [[peers]] must name its host and port, not a network"
        raise CommitmentForbiddenError(CommitmentStatus.NOT_AUTHORISED, words)
    limit = settings.limits.commitment_instances
    request = read_request(message, limit)
    uids = [one.sop_instance_uid for one in request.references]
    intake.await_rows(uids)
    with intake.database.write() as connection:
        record_request(connection, peer, request, now, limit)
        note_commitment_request(connection, uids, now)
    reach(Step.REQUESTED, peer=peer, instances=len(uids))
    log.info("receive.commitment_requested", peer=peer, transaction_uid=request.transaction_uid, instances=len(uids))


def take_commitment_report(intake: Intake, message: Message, sender: Sender, settings: Settings, now: float) -> None:  # noqa: ARG001  one table of both
    """Keep what a peer reports on what it was asked.

    Raises
    ------
    CommitmentForbiddenError
        If nobody of this name was asked; nothing changed.
    CommitmentRefusedError
        If it is no report; nothing changed.
    DatabaseUnavailableError
        If it cannot be written now.
    """
    report = read_report(message, settings.limits.commitment_instances)
    try:
        before = take_report(intake.database, report, sender.names)
    except StateError as error:
        raise CommitmentForbiddenError(CommitmentStatus.INVALID_ARGUMENT_VALUE, str(error)) from error
    counts = {"committed": len(report.committed), "failed": len(report.failed)}
    is_late = before.state not in TAKES_REPORT
    about = {"peer": before.peer, "transaction_uid": report.transaction_uid, "is_late": is_late}
    log.info("receive.commitment_reported", **about, **counts)


def note_refusal(database: Database, sender: Sender, kind: Kind, why: str, now: float) -> None:
    """Note that a peer's request or report was refused, until one of it is taken; nothing where nothing can be."""
    try:
        with database.write() as connection:
            record_refusal(connection, Refused(sender.ae_title, sender.address, kind), why, now)
    except DatabaseUnavailableError as error:
        log.warning("receive.database_away", association_id=sender.association_id, why=str(error))


def _read(data: Any) -> bytes:
    return data.getvalue() if data else b""


def take_message(intake: Intake, kind: Kind, message: Message, sender: Sender, settings: Settings, now: float) -> None:
    """Take a request or a report; raises as `take_commitment_request` and `take_commitment_report` do."""
    _TAKE[kind](intake, message, sender, settings, now)
    forget_refusals(intake.database, Refused(sender.ae_title, sender.address, kind))


_TAKE: Mapping[Kind, Callable[[Intake, Message, Sender, Settings, float], None]] = {
    "request": take_commitment_request,
    "report": take_commitment_report,
}
