"""Takes one instance from a C-STORE request to a durable file that leads to its row.

Flow: receive.associations > [ingest] > receive.header, receive.spool, receive.intake
Never: a DIMSE message (`scp` speaks those); a return before file, name and what the row needs survive power loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from dicomnode.database.index import Recorded
from dicomnode.errors import (
    InstanceConflictError,
    NotAuthorisedError,
    SopClassNotSupportedError,
)
from dicomnode.receive.header import check_request, read_header
from dicomnode.receive.intake import Intake
from dicomnode.receive.part10 import FileMeta, Origin
from dicomnode.receive.recording import Entry, Sender
from dicomnode.settings_limits import LimitSettings
from dicomnode.steps import Step, reach
from dicomnode.uids import STORAGE_SOP_CLASSES


@dataclass(frozen=True)
class StoreRequest:
    """One C-STORE request: what it says, the presentation context it came in, and the sender's bytes."""

    sop_class_uid: str
    sop_instance_uid: str
    context_sop_class_uid: str
    transfer_syntax_uid: str
    data: bytes


def ingest(intake: Intake, request: StoreRequest, sender: Sender, *, limits: LimitSettings, now: float) -> Recorded:
    """Store and index an instance; when this returns, Success may be answered.

    Raises
    ------
    LimitExceededError
        If sequences nest too deep: the association is to be aborted.
    DicomnodeError
        Whose class holds the status for the sender. No file stays behind; after a `DatabaseUnavailableError` one may
        stay in the spool until the node starts again, and be stored then.
    """
    if not sender.may_store:
        raise NotAuthorisedError(f'peer {sender.ae_title!a} at {sender.address} has no may = ["store"]')
    if request.sop_class_uid != request.context_sop_class_uid:
        raise SopClassNotSupportedError(
            f"SOP class {request.sop_class_uid!a} came in a presentation context for {request.context_sop_class_uid}"
        )
    if request.sop_class_uid not in STORAGE_SOP_CLASSES:  # C-ECHO and storage commitment have contexts too
        raise SopClassNotSupportedError(f"SOP class {request.sop_class_uid} is none that this node stores")
    header = read_header(request.data, request.transfer_syntax_uid, limits.nesting_depth)
    check_request(header, request.sop_class_uid, request.sop_instance_uid)
    is_new = intake.claim(header.sop_instance_uid)
    try:
        file = intake.spool.write(
            FileMeta(header.sop_class_uid, header.sop_instance_uid, request.transfer_syntax_uid, sender.ae_title),
            Origin(sender.address, sender.opened_at, now),
            request.data,
            limits.disk_reserve_bytes,
        )
    except BaseException:
        if is_new:
            intake.give_up(header.sop_instance_uid)
        raise
    reach(Step.SPOOLED, file_name=file.file_name)
    entry = Entry(sender, header, file, now, is_answered=is_new)
    if is_new:
        intake.submit(entry)
        return Recorded.NEW
    recording = intake.record(entry)
    if recording.kind in (Recorded.CONFLICT, Recorded.KNOWN_CONFLICT):
        raise InstanceConflictError(f"instance {header.sop_instance_uid} is stored already with other content")
    return recording.kind
