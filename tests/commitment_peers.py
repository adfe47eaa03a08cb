"""Peers that do storage commitment, on pynetdicom's stock machinery: a modality that asks, and a PACS that is asked.

Flow: tests > [commitment_peers] > the node's ports
Never: a port that is not loopback's; a data set made by the code under test.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pydicom
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]  # made at import

from tests.peers_programs import LOOPBACK, free_port
from tests.waiting import wait_until

NODE_AE = "DICOMNODE"
WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
ANSWER_S = 20.0
NO_ANSWER = -1
Named = tuple[str, str]  # SOP class UID, SOP instance UID


@dataclass(frozen=True)
class Reported:
    """An N-EVENT-REPORT as it came."""

    event_type: int
    transaction_uid: str
    committed: list[Named]
    failed: dict[Named, int]
    information: Dataset
    is_own_association: bool  # over an association that was opened for it


def make_information(transaction_uid: str, named: Iterable[Named], failed: Iterable[tuple[Named, int]] = ()) -> Dataset:
    """Return what names these instances: the Action Information of a request, or the Event Information of a report."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    items: dict[str, list[Dataset]] = {"ReferencedSOPSequence": [], "FailedSOPSequence": []}
    for one, reason in [*((one, None) for one in named), *failed]:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one
        if reason is not None:
            item.FailureReason = reason
        items["ReferencedSOPSequence" if reason is None else "FailedSOPSequence"].append(item)
    for keyword, found in items.items():
        if found:
            setattr(information, keyword, found)
    return information


def read_names(files: Iterable[Path]) -> list[Named]:
    """Return SOP class and instance UID of each file."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    return [(str(header.SOPClassUID), str(header.SOPInstanceUID)) for header in headers]


class _Gate(threading.Event):
    """Keeps pynetdicom's reactor thread from answers that a sender waits for: it takes about one in 500 else."""

    def set(self) -> None:
        """Stay closed between two messages."""

    def open(self) -> None:
        """Let the thread end with its association."""
        super().set()


class _Caller(AE):
    """An AE that can close its socket: pynetdicom leaves one open that is not connected, or not any longer."""

    opened: Any = None

    def _create_socket(self, *arguments: Any) -> Any:
        wrapped = super()._create_socket(*arguments)
        self.opened = wrapped.socket
        return wrapped

    def close_socket(self) -> None:
        """Close it."""
        self.opened.close()


def _close_gate(event: Any, gate: _Gate) -> None:
    event.assoc._reactor_checkpoint = gate


class Modality:
    """An SCU of storage commitment that takes the report on its own port, as Siemens scanners do."""

    def __init__(self, node_port: int, ae_title: str = "SCANNER", port: int | None = None) -> None:
        self.node_port = node_port
        self.ae_title = ae_title
        self.port = port or free_port()
        self.reports: list[Reported] = []
        self.answers: Callable[[], int] = lambda: 0x0000
        self._accepted: list[Any] = []  # sockets, which pynetdicom leaves open if the node was killed

    def __enter__(self) -> Self:
        entity = AE(self.ae_title)
        entity.add_supported_context(
            StorageCommitmentPushModel, [ImplicitVRLittleEndian, ExplicitVRLittleEndian], scu_role=True, scp_role=True
        )
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_N_EVENT_REPORT, self._take),
            (evt.EVT_CONN_OPEN, lambda event: self._accepted.append(event.assoc.dul.socket.socket)),
        ]
        self._server = entity.start_server((LOOPBACK, self.port), block=False, evt_handlers=handlers)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        for one in self._accepted:
            one.close()

    def ask(
        self,
        named: Iterable[Named],
        transaction_uid: str = "",
        *,
        action_type: int = 1,
        instance: str = WELL_KNOWN_INSTANCE,
    ) -> tuple[int, str]:
        """Ask over an association that is closed at once; return the status and the Transaction UID."""
        with self.associated() as association:
            return self.ask_over(association, named, transaction_uid, action_type=action_type, instance=instance)

    def ask_over(
        self,
        association: Association,
        named: Iterable[Named],
        transaction_uid: str = "",
        *,
        action_type: int = 1,
        instance: str = WELL_KNOWN_INSTANCE,
    ) -> tuple[int, str]:
        """Ask over an association that stays open."""
        uid = transaction_uid or str(generate_uid())
        information = make_information(uid, named)
        status, _ = association.send_n_action(information, action_type, StorageCommitmentPushModel, instance)
        return int(status.get("Status", NO_ANSWER)), uid

    def report(self, information: Dataset, event_type: int = 1) -> int:
        """Report to the node, as if it had asked; return the status."""
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        with self.associated([role]) as association:
            status, _ = association.send_n_event_report(
                information, event_type, StorageCommitmentPushModel, WELL_KNOWN_INSTANCE
            )
        return int(status.Status)

    @contextmanager
    def associated(self, roles: Sequence[Any] = (), stores: str = "") -> Iterator[Association]:
        """Give an association with the node, which closes with the block; it may store a SOP class, too."""
        entity = _Caller(self.ae_title)
        contexts = [build_context(StorageCommitmentPushModel, ImplicitVRLittleEndian)]
        if stores:
            contexts.append(build_context(stores, ExplicitVRLittleEndian))
        gate = _Gate()
        handlers: list[evt.EventHandlerType] = [(evt.EVT_ESTABLISHED, _close_gate, [gate])]
        association = entity.associate(
            LOOPBACK, self.node_port, contexts, ae_title=NODE_AE, ext_neg=list(roles), evt_handlers=handlers
        )
        if not association.is_established:
            entity.close_socket()
            gate.open()
            raise ConnectionError("no association with the node")
        try:
            yield association
        finally:
            association.release()
            gate.open()
            association.join(ANSWER_S)
            entity.close_socket()

    def await_report(self, count: int = 1) -> Reported:
        """Return the last of so many reports."""
        wait_until(lambda: len(self.reports) >= count, ANSWER_S, f"{count} reports")
        return self.reports[-1]

    def _take(self, event: Any) -> tuple[int, None]:
        status = self.answers()
        if status == 0:
            self.reports.append(read_reported(event))
        return status, None


def read_reported(event: Any) -> Reported:
    """Return what an N-EVENT-REPORT says."""
    information = event.event_information
    named = {
        keyword: [
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID), item.get("FailureReason"))
            for item in information.get(keyword, [])
        ]
        for keyword in ("ReferencedSOPSequence", "FailedSOPSequence")
    }
    return Reported(
        event.request.EventTypeID,
        str(information.TransactionUID),
        [one[:2] for one in named["ReferencedSOPSequence"]],
        {one[:2]: one[2] for one in named["FailedSOPSequence"]},
        information,
        event.assoc.is_acceptor,
    )


@dataclass
class Pacs:
    """A destination that takes instances and requests, and reports as `judge` says: the reason for each, 0 for none.

    It reports over an association of its own, `report_to` the node's port, or `on_same`; with neither not at all.
    With `reports_on` it reports on that transaction, whatever it was asked.
    """

    ae_title: str = "PACS"
    on_same: bool = False
    report_to: int | None = None
    judge: Callable[[Named], int] = lambda _: 0
    action_status: int = 0x0000
    reports_on: str = ""
    received: list[str] = field(default_factory=list)
    requests: list[Dataset] = field(default_factory=list)
    report_statuses: list[int] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        entity = AE(self.ae_title)
        for sop_class in ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"):
            entity.add_supported_context(sop_class, [ExplicitVRLittleEndian])
        entity.add_supported_context(StorageCommitmentPushModel, [ExplicitVRLittleEndian])
        handlers: list[evt.EventHandlerType] = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._take)]
        self._server = entity.start_server((LOOPBACK, 0), block=False, evt_handlers=handlers)
        assert self._server is not None
        self.port = self._server.server_address[1]
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.join(ANSWER_S)
        assert self._server is not None
        self._server.shutdown()

    def _store(self, event: Any) -> int:
        self.received.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def _take(self, event: Any) -> tuple[int, None]:
        information = event.action_information
        self.requests.append(information)
        if self.action_status == 0 and (self.on_same or self.report_to):
            report = self._report_over if self.on_same else self._report_anew
            self.threads.append(threading.Thread(target=report, args=(event.assoc, information)))
            self.threads[-1].start()
        return self.action_status, None

    def make_report(self, request: Dataset) -> tuple[int, Dataset]:
        """Return Event Type ID and Event Information that answer a request."""
        named = [
            (str(one.ReferencedSOPClassUID), str(one.ReferencedSOPInstanceUID)) for one in request.ReferencedSOPSequence
        ]
        failed = [(one, reason) for one in named if (reason := self.judge(one))]
        committed = [one for one in named if not self.judge(one)]
        return 2 if failed else 1, make_information(self.reports_on or request.TransactionUID, committed, failed)

    def _report_anew(self, _: Association, request: Dataset) -> None:
        entity = AE(self.ae_title)
        contexts = [build_context(StorageCommitmentPushModel)]
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        assert self.report_to is not None
        gate = _Gate()
        handlers: list[evt.EventHandlerType] = [(evt.EVT_ESTABLISHED, _close_gate, [gate])]
        association = entity.associate(
            LOOPBACK, self.report_to, contexts, ae_title=NODE_AE, ext_neg=[role], evt_handlers=handlers
        )
        self._send(association, request)
        association.release()
        gate.open()

    def _report_over(self, association: Association, request: Dataset) -> None:
        wait_until(association._reactor_checkpoint.is_set, ANSWER_S)
        association._reactor_checkpoint.clear()
        threading.Event().wait(0.3)  # as a PACS does that looks for the instances first
        self._send(association, request)

    def _send(self, association: Association, request: Dataset) -> None:
        event_type, information = self.make_report(request)
        status, _ = association.send_n_event_report(
            information, event_type, StorageCommitmentPushModel, WELL_KNOWN_INSTANCE
        )
        self.report_statuses.append(int(status.get("Status", NO_ANSWER)))
