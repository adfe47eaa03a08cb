"""Takes one instance from a C-STORE request to a durable, indexed file.

Flow: receive.associations > [ingest] > receive.header, receive.spool, receive.intake
Never: a DIMSE message (`scp` speaks those); a return before file, folder and row survive power loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from dicomnode.database.index import InstanceHeader, Recorded, Recording, StoredFile
from dicomnode.errors import (
    DatabaseUnavailableError,
    InstanceConflictError,
    NotAuthorisedError,
    SopClassNotSupportedError,
    StorageFullError,
)
from dicomnode.logs import get_logger
from dicomnode.receive.header import check_request, read_header
from dicomnode.receive.intake import Intake, Sender
from dicomnode.receive.spool import FileMeta, Spool
from dicomnode.settings import LimitSettings
from dicomnode.steps import Step, reach

log = get_logger()


@dataclass(frozen=True)
class StoreRequest:
    """One C-STORE request: what it says, the presentation context it came in, and the sender's bytes."""

    sop_class_uid: str
    sop_instance_uid: str
    context_sop_class_uid: str
    transfer_syntax_uid: str
    data: bytes
    unkept_bytes: int = 0  # came beyond the limit, and were not kept


def ingest(intake: Intake, request: StoreRequest, sender: Sender, *, limits: LimitSettings, now: float) -> Recorded:
    """Store and index an instance; when this returns, Success may be answered.

    Raises
    ------
    DicomnodeError
        Whose class holds the status for the sender. No file stays behind without a row; after a
        `DatabaseUnavailableError` it may stay in the spool until the node starts again.
    """
    if not sender.may_store:
        raise NotAuthorisedError(f'peer {sender.ae_title!a} at {sender.address} has no may = ["store"]')
    if request.sop_class_uid != request.context_sop_class_uid:
        raise SopClassNotSupportedError(
            f"SOP class {request.sop_class_uid!a} came in a presentation context for {request.context_sop_class_uid}"
        )
    size_bytes = len(request.data) + request.unkept_bytes
    if request.unkept_bytes or size_bytes > limits.data_set_bytes:
        raise StorageFullError(f"data set of {size_bytes} bytes, at most {limits.data_set_bytes} are taken")
    header = read_header(request.data, request.transfer_syntax_uid)
    check_request(header, request.sop_class_uid, request.sop_instance_uid)
    meta = FileMeta(header.sop_class_uid, header.sop_instance_uid, request.transfer_syntax_uid, sender.ae_title)
    file = intake.spool.write(meta, request.data, limits.disk_reserve_bytes)
    reach(Step.SPOOLED, file_name=file.file_name)
    recording = _record(intake, header, file, sender, now)
    reach(Step.INDEXED, file_name=file.file_name, outcome=recording.kind.value)
    _put_in_place(recording, file, intake.spool)
    reach(Step.PLACED, file_name=file.file_name)
    if recording.kind in (Recorded.CONFLICT, Recorded.KNOWN_CONFLICT):
        raise InstanceConflictError(f"instance {header.sop_instance_uid} is stored already with other content")
    return recording.kind


def _record(intake: Intake, header: InstanceHeader, file: StoredFile, sender: Sender, now: float) -> Recording:
    """Commit the row of a spooled file."""
    try:
        return intake.record(header, file, sender, now)
    except BaseException:
        # The commit may have succeeded although its answer was lost: ask before the file is thrown away.
        try:
            intake.spool.settle(intake.database, file.file_name)
        except DatabaseUnavailableError:
            log.warning("receive.unsettled", file_name=file.file_name)
        raise


def _put_in_place(recording: Recording, file: StoredFile, spool: Spool) -> None:
    """Move a spooled file to where its row says, or remove it where it has none."""
    # Under our own file's name the row is ours: an earlier commit of it succeeded although its answer was lost.
    if recording.kind is Recorded.NEW or recording.file_name == file.file_name:
        spool.move_to_store(file.file_name)
    elif recording.kind is Recorded.CONFLICT:
        spool.move_to_conflicts(file.file_name)
    elif recording.kind is Recorded.IDENTICAL and spool.replace_lost(file.file_name, recording.file_name):
        log.error("receive.lost_file_replaced", file_name=recording.file_name)
    else:
        spool.remove(file.file_name)
