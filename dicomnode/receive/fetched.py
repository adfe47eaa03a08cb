"""Receives what this node fetched itself (C-GET), from the files in which it landed, as if a peer had sent it.

Flow: send/fetch > files > [fetched] > receive.ingest
Never: a file removed before its instance is indexed, or refused for good; a DIMSE message.
"""

from __future__ import annotations

from pathlib import Path

from pydicom.filereader import read_file_meta_info

from dicomnode.database.queries import UNANSWERED, Query, fetch_query
from dicomnode.errors import InstanceNotUnderstoodError, PermanentError, StorageFailedError
from dicomnode.logs import get_logger
from dicomnode.receive.ingest import StoreRequest, ingest
from dicomnode.receive.intake import Intake
from dicomnode.receive.recording import Sender
from dicomnode.receive.recovery import try_lock
from dicomnode.receive.spool import translated
from dicomnode.settings import Settings
from dicomnode.uids import TRANSFER_SYNTAXES
from dicomnode.volumes.headers import PARSE_ERRORS, quiet_reading

log = get_logger()

_LOCK_NAME = "lock"
_PREAMBLE_BYTES = 132
_GROUP_LENGTH_BYTES = 12  # of (0002,0000) itself, before the bytes that it counts: PS3.10 7.1


def receive_fetched(intake: Intake, settings: Settings, now: float) -> None:
    """Ingest every file that has landed, and remove the folders of queries that have ended.

    Of the processes that share a storage root one does so at a time; the others have nothing to do meanwhile.

    Raises
    ------
    TransientError
        If the disk or the database cannot take an instance now; its file waits for the next round.
    """
    root = intake.spool.store.fetched_root
    with translated(root), (root / _LOCK_NAME).open("ab") as lock:
        if try_lock(lock):
            _receive_all(root, intake, settings, now)


def _receive_all(root: Path, intake: Intake, settings: Settings, now: float) -> None:
    for folder in sorted(path for path in root.iterdir() if path.name.isdecimal() and path.is_dir()):
        with intake.database.read() as connection:
            query = fetch_query(connection, int(folder.name))
        if query is None:
            continue  # of another database: not ours to remove
        is_over = query.state not in UNANSWERED  # asked before the folder is read: nothing lands after that
        _receive_folder(folder, query, intake, settings, now)
        if is_over:
            for left in folder.iterdir():  # what a crash left half written
                left.unlink()
            folder.rmdir()


def _receive_folder(folder: Path, query: Query, intake: Intake, settings: Settings, now: float) -> None:
    called = next((peer for peer in settings.peers if peer.name == query.peer), None)
    ae_title, host = ("", "") if called is None else (called.ae_title, called.host)
    sender = Sender(ae_title, host, may_store=True, opened_at=now)
    try:
        for path in sorted(folder.glob("*.dcm")):
            try:
                ingest(intake, _read_request(path), sender, limits=settings.limits, now=now)
            except PermanentError as error:
                log.warning("receive.failed", query_id=query.id, status=f"{error.store_status:04X}", why=str(error))
            path.unlink()
    finally:
        intake.close(sender, now)


def _read_request(path: Path) -> StoreRequest:
    """Read a file that `send/fetch` wrote as the C-STORE request it came by."""
    try:
        with quiet_reading():
            meta = read_file_meta_info(path)
            sop_class_uid, syntax = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
            sop_instance_uid = str(meta.MediaStorageSOPInstanceUID)
            start = _PREAMBLE_BYTES + _GROUP_LENGTH_BYTES + int(meta.FileMetaInformationGroupLength)
        data = path.read_bytes()[start:]
    except PARSE_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageFailedError(f"{path}: {error.strerror}") from error
        raise InstanceNotUnderstoodError(
            "a fetched file has no File Meta of PS3.10; the disk lost some of it"
        ) from error
    if syntax not in TRANSFER_SYNTAXES:
        raise InstanceNotUnderstoodError(
            f"a fetched file is in transfer syntax {syntax!a}, which was not asked for; the disk lost some of it"
        )
    return StoreRequest(sop_class_uid, sop_instance_uid, sop_class_uid, syntax, data)
