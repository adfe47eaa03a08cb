"""Fetches one series from a peer: C-MOVE to this node, or C-GET over our own association (PS3.4 annex C).

Flow: send/queries > [fetch] > send/association > a peer > receive (by C-STORE, or by files that wait for it)
Never: a move destination that is not this node; a name that came from the data; Success for an instance that would not
survive power loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.association import Association

from dicomnode.database.queries import Subject
from dicomnode.database.store import make_file_name
from dicomnode.durable import sync_folder, write_file
from dicomnode.errors import PeerRejectedError, PeerUnreachableError
from dicomnode.send.association import Service, explain_unsent
from dicomnode.send.find import PENDING
from dicomnode.send.pdus import ContextKey
from dicomnode.send.statuses import check_query_status
from dicomnode.settings import PeerSettings
from dicomnode.status import StoreStatus
from dicomnode.uids import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"  # PS3.4 C.6.2.1
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
ROWS_BEHIND_S = 1.0  # what came by C-MOVE is measured by its rows, which follow the answers (`receive.intake`)
GET_CONTEXTS: frozenset[ContextKey] = frozenset(
    {(STUDY_ROOT_GET, IMPLICIT_LITTLE_ENDIAN)}
    | {(sop_class, syntax) for sop_class in STORAGE_SOP_CLASSES for syntax in TRANSFER_SYNTAXES}
)


@dataclass(frozen=True)
class Bounds:
    """How long a fetch may take, s, and how much it may bring; `measure` says how many bytes have come so far."""

    seconds: float
    bytes_at_most: int
    measure: Callable[[], int]


class Landing:
    """A folder in which the instances of one C-GET land, each durably before it is answered with Success."""

    def __init__(self, folder: Path, bytes_at_most: int) -> None:
        self._folder = folder
        self._bytes_at_most = bytes_at_most
        self.size_bytes = 0

    @property
    def service(self) -> Service:
        """What the association needs to let the peer send."""
        return Service(tuple(STORAGE_SOP_CLASSES), evt.EVT_C_STORE, self.handle)

    def handle(self, event: Any) -> int:
        """Answer one C-STORE (`EVT_C_STORE`)."""
        data = event.encoded_dataset()
        self.size_bytes += len(data)
        if self.size_bytes > self._bytes_at_most:
            return StoreStatus.OUT_OF_RESOURCES
        path = self._folder / make_file_name()
        try:
            self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            write_file(path, data)
            for folder in (self._folder, self._folder.parent):
                sync_folder(folder)
        except OSError:
            path.with_suffix(".part").unlink(missing_ok=True)
            return StoreStatus.PROCESSING_FAILURE
        return StoreStatus.SUCCESS


def move_series(association: Association, peer: PeerSettings, subject: Subject, ae_title: str, bounds: Bounds) -> None:
    """Have a peer send a series to this node, whose AE title this is.

    Raises
    ------
    PeerRejectedError
        If the peer refuses, or the series is larger than it may be.
    PeerUnreachableError, PeerBusyError
        If the peer did not answer in time, or could not send every instance now.
    """
    _follow(association, peer, "C-MOVE", STUDY_ROOT_MOVE, bounds, (_identify(subject), ae_title, STUDY_ROOT_MOVE))
    time.sleep(ROWS_BEHIND_S)
    _check_size(bounds)


def get_series(association: Association, peer: PeerSettings, subject: Subject, bounds: Bounds) -> None:
    """Have a peer send a series over this association, opened with `Landing.service`; raises as `move_series` does."""
    _follow(association, peer, "C-GET", STUDY_ROOT_GET, bounds, (_identify(subject), STUDY_ROOT_GET))


def _follow(
    association: Association,
    peer: PeerSettings,
    service: str,
    model: str,
    bounds: Bounds,
    request: tuple[Any, ...],
) -> None:
    """Send the request and read its responses to the end, or break it off at a bound."""
    deadline = time.monotonic() + bounds.seconds
    association.dimse_timeout = bounds.seconds  # some peers answer nothing before the last sub-operation
    for status in _send(association, peer, service, request):
        if "Status" not in status:  # pynetdicom returns an empty data set on time-out or abort
            raise PeerUnreachableError(f"{peer.name}: no answer to {service} in {bounds.seconds:g} s, or it hung up")
        try:
            _check_size(bounds)
        except PeerRejectedError:
            _cancel(association, model)
            raise
        if status.Status not in PENDING:
            check_query_status(peer.name, service, status.Status, failed=status.get("NumberOfFailedSuboperations") or 0)
        elif time.monotonic() > deadline:
            _cancel(association, model)
            raise PeerRejectedError(f"{peer.name}: {service} took more than {bounds.seconds:g} s")


def _check_size(bounds: Bounds) -> None:
    size_bytes = bounds.measure()
    if size_bytes > bounds.bytes_at_most:
        raise PeerRejectedError(f"{size_bytes} bytes of it came, at most {bounds.bytes_at_most} are fetched")


def _send(association: Association, peer: PeerSettings, service: str, request: Iterable[Any]) -> Iterator[Dataset]:
    send = association.send_c_move if service == "C-MOVE" else association.send_c_get
    try:
        responses = send(*request)
    except (RuntimeError, ValueError) as error:
        raise explain_unsent(peer, service, error) from error
    for status, _ in responses:
        yield status


def _cancel(association: Association, model: str) -> None:
    if association.is_established:
        association.send_c_cancel(1, query_model=model)


def _identify(subject: Subject) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID, identifier.SeriesInstanceUID = subject.study_uid, subject.series_uid
    return identifier
