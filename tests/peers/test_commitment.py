"""Storage commitment with real peers, both ways: Orthanc, a modality that closes its association, PACS of both kinds.

Flow: dicomnode.app > Orthanc | tests.commitment_peers > [test_commitment]
Never: a report that the test writes into the database.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom import evt
from structlog.testing import capture_logs

from dicomnode.app import Node, Role
from dicomnode.commitment import PUSH_MODEL, Reference, Report
from dicomnode.database.audit import fetch_messages
from dicomnode.database.commitment_requests import CommitmentRequest
from dicomnode.database.deletions import NewDeletion, delete_series
from dicomnode.database.engine import Database, open_database
from dicomnode.database.outbox import OutboxRow, fetch_outbox, retry_outbox_row
from dicomnode.database.refusals import fetch_refusals
from dicomnode.database.series import complete_series, fetch_open_series, fetch_series_rows, set_series_state
from dicomnode.database.snapshots import fetch_rows
from dicomnode.database.store import Store
from dicomnode.digests import Beat
from dicomnode.housekeeping.retention import delete_due
from dicomnode.send.association import Caller, Service, open_association
from dicomnode.send.commitment import COMMITMENT_CONTEXTS, ask_for_commitment
from dicomnode.send.safekeeping import make_safekeeping_report
from dicomnode.settings import DestinationSettings, NodeSettings, PairingSettings, PeerSettings, SendSettings, Settings
from dicomnode.settings_keeping import KeepSettings, RetentionSettings
from dicomnode.settings_limits import LimitSettings
from dicomnode.settings_reporting import AuditSettings
from tests.audit_collectors import details_of, event_of
from tests.commitment_peers import Modality, Named, Pacs, make_information, read_names
from tests.conftest import find_peer_program
from tests.dicomnode.series_files import SeriesSpec, write_series
from tests.peers_programs import LOOPBACK, Orthanc, StoreScp, free_port, send_with_dcmtk
from tests.rows import owe_files
from tests.waiting import wait_until

WITHIN_S = 40.0
NO_SUCH_INSTANCE, CONFLICT, DUPLICATE, PROCESSING_FAILURE = 0x0112, 0x0119, 0x0131, 0x0110


@dataclass
class Running:
    """A node that receives and sends."""

    node: Node
    database: Database
    root: Path
    port: int

    def rows(self) -> list[OutboxRow]:
        with self.database.read() as connection:
            return fetch_outbox(connection)

    def states(self) -> Counter[str]:
        return Counter(row.state for row in self.rows())

    def await_states(self, **states: int) -> None:
        wait_until(lambda: self.states() == Counter(states), WITHIN_S, f"{states}; they are {self.states()}")


@contextmanager
def running(
    root: Path,
    port: int,
    peers: dict[str, int],
    *,
    commitment: str = "pacs",
    roles: Sequence[Role] = ("receive", "send"),
    **sections: Any,
) -> Iterator[Running]:
    """Run a node whose peers have these ports; the "pacs" is a destination."""
    settings = Settings(
        node=NodeSettings(storage_root=root, port=port),
        peers=tuple(
            PeerSettings(name=name, ae_title=name.upper(), host=LOOPBACK, port=at, may=("store", "receive"))
            for name, at in peers.items()
        ),
        destinations=(DestinationSettings(peer="pacs", commitment=commitment),) if "pacs" in peers else (),
        pairing=PairingSettings(series_quiet_period_s=3600.0, study_quiet_period_s=3600.0),
        **{
            "send": SendSettings(retry_first_s=0.3, retry_ceiling_s=0.6, timeout_s=10.0, commitment_s=60.0),
            "limits": LimitSettings(disk_reserve_bytes=0),
            **sections,
        },
    )
    node = Node(settings, roles)
    node.start()
    database = open_database(settings.database_url)
    try:
        yield Running(node, database, root, port)
    finally:
        database.close()
        node.stop()


def send_series(
    running_node: Running, folder: Path, slices: int = 4, uid: str = "1.2.826.0.1.3680043.8.498.77"
) -> list[Named]:
    files = write_series(folder, SeriesSpec(shape=(slices, 24, 20), uid=uid))
    assert send_with_dcmtk(files, running_node.port, called="DICOMNODE", calling="SCANNER").all_stored
    return read_names(files)


def stored_files(node: Running) -> list[Path]:
    return sorted((node.root / "store").rglob("*.dcm"))


def retouch(header: pydicom.Dataset, k: int) -> None:
    if k == 2:
        header.ImageComments = "retouched"


def orthanc_that_knows(folder: Path, port: int) -> Orthanc:
    modality = {"AET": "DICOMNODE", "Host": LOOPBACK, "Port": port, "AllowStorageCommitment": True}
    return Orthanc(folder, "PACS", further={"DicomModalities": {"node": modality}})


def test_orthanc_commits_what_it_was_sent_and_says_what_it_lost(tmp_path: Path) -> None:
    port = free_port()
    with (
        orthanc_that_knows(tmp_path / "orthanc", port) as orthanc,
        running(tmp_path / "root", port, {"pacs": orthanc.port}) as node,
    ):
        owe_files(node.database, node.root, ["pacs"])
        node.await_states(committed=6)

        assert {row.reason for row in node.rows()} == {""}
        assert orthanc.count_instances() == 6


def test_the_node_commits_to_orthanc_what_it_keeps(tmp_path: Path) -> None:
    port = free_port()
    with (
        orthanc_that_knows(tmp_path / "orthanc", port) as orthanc,
        running(tmp_path / "root", port, {"pacs": orthanc.port, "scanner": free_port()}, commitment=""),
    ):
        files = write_series(tmp_path / "files", SeriesSpec(shape=(4, 24, 20)))
        sent = read_names(files)
        for path in files:
            orthanc.post("/instances", path.read_bytes())
        orthanc.post("/modalities/node/store", json.dumps(list(orthanc.instances().values())).encode())
        lost = (sent[0][0], "1.2.3.4.5")
        body = {"DicomInstances": [{"SOPClassUID": a, "SOPInstanceUID": b} for a, b in [*sent, lost]]}
        asked = json.loads(orthanc.post("/modalities/node/storage-commitment", json.dumps(body).encode()))

        def report() -> Any:
            return json.loads(orthanc.get(asked["Path"]))

        wait_until(lambda: report()["Status"] != "Pending", WITHIN_S, "Orthanc has the report")
        found = report()

    assert found["Status"] == "Failure"
    assert {(one["SOPClassUID"], one["SOPInstanceUID"]) for one in found["Success"]} == set(sent)
    assert [(one["SOPInstanceUID"], one["FailureReason"]) for one in found["Failures"]] == [(lost[1], NO_SUCH_INSTANCE)]


@pytest.fixture
def modality_and_node(tmp_path: Path) -> Iterator[tuple[Modality, Running]]:
    """Give a scanner and a node that know one another."""
    port = free_port()
    with Modality(port) as modality, running(tmp_path / "root", port, {"scanner": modality.port}) as node:
        yield modality, node


def test_a_modality_that_closes_its_association_is_told_over_another(
    modality_and_node: tuple[Modality, Running], tmp_path: Path
) -> None:
    modality, node = modality_and_node
    sent = send_series(node, tmp_path / "files")

    status, uid = modality.ask(sent)
    report = modality.await_report()

    assert status == 0x0000
    assert (report.event_type, report.transaction_uid, report.is_own_association) == (1, uid, True)
    assert (report.committed, report.failed) == (sent, {})
    with node.database.read() as connection:
        [series] = fetch_open_series(connection)
    assert series.series.commitment_requested == len(sent)


def test_a_modality_that_keeps_its_association_is_told_over_another_too(
    modality_and_node: tuple[Modality, Running], tmp_path: Path
) -> None:
    modality, node = modality_and_node
    sent = send_series(node, tmp_path / "files")

    with modality.associated() as association:
        modality.ask_over(association, sent)
        report = modality.await_report()
        assert association.is_established

    assert (report.committed, report.is_own_association) == (sent, True)


def test_a_request_over_the_association_that_stored_waits_for_the_rows(
    modality_and_node: tuple[Modality, Running], tmp_path: Path
) -> None:
    modality, node = modality_and_node
    files = write_series(tmp_path / "files", SeriesSpec(shape=(4, 24, 20)))
    with modality.associated(stores="1.2.840.10008.5.1.4.1.1.4") as association:
        for path in files:
            assert association.send_c_store(path).Status == 0x0000
        modality.ask_over(association, read_names(files))
        with node.database.read() as connection:
            [series] = fetch_open_series(connection)
        assert series.series.commitment_requested == len(files)

    assert len(modality.await_report().committed) == len(files)


def test_what_is_not_safe_is_named_with_its_reason(modality_and_node: tuple[Modality, Running], tmp_path: Path) -> None:
    modality, node = modality_and_node
    sent = send_series(node, tmp_path / "files", slices=6)
    wait_until(lambda: len(stored_files(node)) == len(sent), WITHIN_S, "they stand in the store")
    stored = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in stored_files(node)}
    damaged, gone = sent[0][1], sent[1][1]
    write_series(tmp_path / "again", SeriesSpec(shape=(6, 24, 20), uid="1.2.826.0.1.3680043.8.498.77", change=retouch))
    send_with_dcmtk([tmp_path / "again"], node.port, called="DICOMNODE", calling="SCANNER")
    content = bytearray(stored[damaged].read_bytes())
    content[-1] ^= 1
    stored[damaged].write_bytes(content)
    stored[gone].unlink()
    unknown, misnamed = (sent[0][0], "1.2.3.4"), (PUSH_MODEL, sent[4][1])

    modality.ask([*sent[:4], unknown, misnamed])
    report = modality.await_report()

    assert report.event_type == 2
    assert report.committed == [sent[3]]
    assert report.failed == {
        **dict.fromkeys(sent[:3], PROCESSING_FAILURE),  # the third came with two contents: which is meant is not known
        unknown: NO_SUCH_INSTANCE,
        misnamed: CONFLICT,
    }


def test_what_is_promised_is_noted_before_the_modality_is_told_and_is_not_deleted(tmp_path: Path) -> None:
    port, modality_port = free_port(), free_port()
    with running(tmp_path / "root", port, {"scanner": modality_port}) as node, capture_logs() as logs:
        sent = send_series(node, tmp_path / "files")
        modality = Modality(port, port=modality_port)
        modality.ask([*sent[:1], (sent[1][0], "1.2.3")])
        wait_until(lambda: any(line["event"] == "commitment.not_reported" for line in logs), WITHIN_S, "it was tried")
        with node.database.write() as connection:
            promised = [one["committed_at"] is not None for one in fetch_rows(connection, "instances")]
            [series] = fetch_series_rows(connection)
            complete_series(connection, series.id, "all came")
            set_series_state(connection, series.id, "unpaired")
        with modality:
            modality.await_report()
        soon = RetentionSettings(hold_hours=1, unpaired=KeepSettings(days=0.1))
        deleted = []
        for days in (0.0, 200.0, 100.0):  # 9e6 s are 104 days
            retention = soon.model_copy(update={"committed_days": days})
            settings = node.node.settings.model_copy(update={"retention": retention})
            deleted.append(delete_due(node.database, Store(node.root), settings, time.time() + 9e6, lambda: 0))

    assert sorted(promised) == [False] * (len(sent) - 1) + [True]
    assert deleted == [0, 0, 1]


def test_what_was_deleted_while_it_was_looked_into_is_not_promised(
    modality_and_node: tuple[Modality, Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modality, node = modality_and_node
    sent = send_series(node, tmp_path / "files")

    def look_and_delete(database: Database, *arguments: Any) -> Report | None:
        report = make_safekeeping_report(database, *arguments)
        with database.write() as connection:
            [series] = fetch_series_rows(connection)
            delete_series(connection, series.id, NewDeletion("unpaired", series.series_uid, "", 0), [], 0.0)
        return report

    monkeypatch.setattr("dicomnode.send.reporting.make_safekeeping_report", look_and_delete)
    modality.ask(sent)
    report = modality.await_report()

    assert (report.committed, report.failed) == ([], dict.fromkeys(sent, NO_SUCH_INSTANCE))


def test_a_node_that_stops_reads_no_further_instance_back_and_owes_the_report(
    modality_and_node: tuple[Modality, Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modality, node = modality_and_node
    sent = send_series(node, tmp_path / "files")
    looked: list[Report | None] = []

    def stop_and_look(
        database: Database, store: Store, request: CommitmentRequest, stopping: threading.Event, _beat: Beat
    ) -> None:
        stopping.set()
        looked.append(make_safekeeping_report(database, store, request, stopping))

    monkeypatch.setattr("dicomnode.send.reporting.make_safekeeping_report", stop_and_look)
    modality.ask(sent)
    wait_until(lambda: looked, WITHIN_S)

    def owed() -> list[Any]:
        with node.database.read() as connection:
            rows = fetch_rows(connection, "commitment_requests")
        return [(row["state"], row["attempts"]) for row in rows if row["lease_until"] is None]

    wait_until(lambda: owed() == [("owed", 0)], WITHIN_S)
    assert looked == [None]


def test_a_transaction_in_use_is_a_duplicate_and_the_same_request_again_is_reported_again(
    modality_and_node: tuple[Modality, Running], tmp_path: Path
) -> None:
    modality, node = modality_and_node
    sent = send_series(node, tmp_path / "files")

    _, uid = modality.ask(sent)
    modality.await_report(1)
    modality.ask(sent, uid)
    again = modality.await_report(2)
    modality.ask(sent[:2], uid)
    duplicate = modality.await_report(3)

    assert (again.transaction_uid, again.committed) == (uid, sent)
    assert (duplicate.transaction_uid, duplicate.committed) == (uid, [])
    assert duplicate.failed == dict.fromkeys(sent[:2], DUPLICATE)


def test_what_is_no_request_is_refused_with_its_status(tmp_path: Path) -> None:
    port = free_port()
    limits = LimitSettings(disk_reserve_bytes=0, commitment_instances=3)
    with (
        Modality(port) as modality,
        running(tmp_path, port, {"scanner": modality.port}, limits=limits) as node,
        capture_logs() as logs,
    ):
        one = (PUSH_MODEL, "1.2.3")
        assert modality.ask([one], action_type=2)[0] == 0x0123
        assert modality.ask([one], instance="1.2.3")[0] == 0x0112
        assert modality.ask([])[0] == 0x0115
        assert modality.ask([(PUSH_MODEL, f"1.2.3.{n}") for n in range(4)])[0] == 0x0213
        assert modality.ask([one])[0] == 0x0000
        assert modality.report(make_information("1.2.3.4.5", [one])) == 0x0115
        assert modality.report(make_information("1.2.3.4.5", [one]), event_type=3) == 0x0113
        modality.await_report()
        counts = node.node.read_counts()

    assert {
        str(line["why"])
        for line in logs
        if (line["event"], line.get("kind")) == ("receive.commitment_refused", "request")
    } == {
        "action type 2, 1 is known",
        "SOP instance '1.2.3', 1.2.840.10008.1.20.1.1 is the one there is",
        "it names no instance, at least one is needed",
        "it names more than limits.commitment_instances = 3 instances",
    }
    assert counts['dicomnode_receive_limit_crossings{limit="commitment_instances"}'] == 1
    assert counts['dicomnode_receive_commitment_messages{kind="report",status="0115"}'] == 1


def test_who_may_not_store_or_cannot_be_called_may_not_ask(tmp_path: Path) -> None:
    port = free_port()
    peers = (
        PeerSettings(name="viewer", ae_title="VIEWER", host=LOOPBACK, port=104, may=("receive",)),
        PeerSettings(name="ward", ae_title="WARD", host="127.0.0.0/8", port=104, may=("store",)),
    )
    settings = Settings(
        node=NodeSettings(storage_root=tmp_path, port=port), peers=peers, limits=LimitSettings(disk_reserve_bytes=0)
    )
    node = Node(settings, ["receive"])
    node.start()
    try:
        assert Modality(port, "VIEWER").ask([(PUSH_MODEL, "1.2.3")])[0] == 0x0124
        assert Modality(port, "WARD").ask([(PUSH_MODEL, "1.2.3")])[0] == 0x0124
    finally:
        node.stop()


def test_who_asks_or_reports_what_it_may_not_raises_an_alert_that_counts_and_is_listed(tmp_path: Path) -> None:
    port = free_port()
    viewer = PeerSettings(name="viewer", ae_title="VIEWER", host=LOOPBACK, port=104, may=("receive",))
    scanner = PeerSettings(name="scanner", ae_title="SCANNER", host=LOOPBACK, port=104, may=("store",))
    settings = Settings(
        node=NodeSettings(storage_root=tmp_path, port=port),
        peers=(viewer, scanner),
        limits=LimitSettings(disk_reserve_bytes=0),
        audit=AuditSettings(file="/unused/audit.log"),
    )
    one = (PUSH_MODEL, "1.2.3")
    node = Node(settings, ["receive"])
    node.start()
    database = open_database(settings.database_url)

    def alerts() -> Counter[tuple[str, str]]:
        """Return how often who was told of, and for what."""
        with database.read() as connection:
            texts = [message.text for message in fetch_messages(connection, "file", 100)]
        found: Counter[tuple[str, str]] = Counter()
        for text in (text for text in texts if event_of(text).startswith("Security Alert")):
            assert event_of(text) == "Security Alert: Use of Restricted Function"
            why, count = (base64.b64decode(one).decode() for one in details_of(text, ".//*[@type]", "value"))
            found[details_of(text, "ActiveParticipant", "UserID")[1], why] += int(count)
        return found

    def refusals() -> list[tuple[str, str, int, str]]:
        with database.read() as connection:
            return [(row.calling_ae, row.kind, row.refused, row.reason) for row in fetch_refusals(connection)]

    try:
        for _ in range(2):
            Modality(port, "VIEWER").ask([one])
        assert Modality(port, "SCANNER").report(make_information("1.2.3.4", [one])) == 0x0115
        assert Modality(port, "SCANNER").ask([])[0] == 0x0115  # no request: no alert either
        may_not = "peer 'VIEWER' at 127.0.0.1 has no may = [\"store\"]"
        unasked = "transaction 1.2.3.4: nobody was asked to commit anything under this UID"
        wait_until(lambda: len(alerts()) == 2, WITHIN_S, "the alerts")
        # Two within a second may be one message, or one and another a minute later.
        assert alerts() in [Counter({("VIEWER", may_not): n, ("SCANNER", unasked): 1}) for n in (1, 2)]
        assert refusals() == [
            ("VIEWER", "request", 2, may_not),
            ("SCANNER", "report", 1, unasked),
            ("SCANNER", "request", 1, "it names no instance, at least one is needed"),
        ]
        assert Modality(port, "SCANNER").ask([one])[0] == 0x0000
        assert [who[:2] for who in refusals()] == [("VIEWER", "request"), ("SCANNER", "report")]
    finally:
        database.close()
        node.stop()


def test_a_report_is_tried_again_until_the_modality_takes_it(tmp_path: Path) -> None:
    port, modality_port = free_port(), free_port()
    with running(tmp_path / "root", port, {"scanner": modality_port}) as node, capture_logs() as logs:
        sent = send_series(node, tmp_path / "files")
        modality = Modality(port, port=modality_port)
        modality.ask(sent)
        wait_until(lambda: any(line["event"] == "commitment.not_reported" for line in logs), WITHIN_S, "it was tried")
        answers = iter([0x0110, 0x0000])
        modality.answers = lambda: next(answers)
        with modality:
            report = modality.await_report()
            wait_until(lambda: any(line["event"] == "commitment.report_taken" for line in logs), WITHIN_S, "recorded")

    assert (report.committed, len(modality.reports)) == (sent, 1)


def test_a_report_that_is_refused_for_good_is_not_sent_again(
    modality_and_node: tuple[Modality, Running], tmp_path: Path
) -> None:
    modality, node = modality_and_node
    tries: list[int] = []

    def refuse() -> int:
        tries.append(1)
        return 0x0112

    modality.answers = refuse
    with capture_logs() as logs:
        modality.ask(send_series(node, tmp_path / "files"))
        wait_until(lambda: any(line["event"] == "commitment.report_refused" for line in logs), WITHIN_S, "refused")
        modality.answers = lambda: 0x0000
        modality.ask([(PUSH_MODEL, "1.2.3")])
        modality.await_report()

    assert len(tries) == 1


@pytest.mark.parametrize("way", ["same", "another"])
def test_a_pacs_reports_over_the_same_association_or_another(tmp_path: Path, way: str) -> None:
    port = free_port()
    with (
        Pacs(on_same=way == "same", report_to=port) as pacs,
        running(tmp_path, port, {"pacs": pacs.port}) as node,
    ):
        owe_files(node.database, node.root, ["pacs"])
        node.await_states(committed=6)

        wait_until(lambda: pacs.report_statuses == [0x0000], WITHIN_S, "its report was taken")
        assert len(pacs.requests) == 1


def test_a_report_that_is_refused_over_the_same_association_is_noted_until_one_is_taken(tmp_path: Path) -> None:
    port = free_port()
    with Pacs(on_same=True) as pacs, running(tmp_path, port, {"pacs": pacs.port}) as node:

        def refusals() -> list[tuple[str, str, str, int]]:
            with node.database.read() as connection:
                return [(one.calling_ae, one.address, one.kind, one.refused) for one in fetch_refusals(connection)]

        pacs.reports_on = "1.2.3.4.5"
        owe_files(node.database, node.root, ["pacs"])
        wait_until(lambda: refusals() == [("PACS", LOOPBACK, "report", 1)], WITHIN_S, "noted")
        wait_until(lambda: pacs.report_statuses == [0x0115], WITHIN_S, "the PACS to be told")

        pacs.reports_on = ""
        owe_files(node.database, node.root, ["pacs"])
        wait_until(lambda: refusals() == [], WITHIN_S, "forgotten")


def test_a_report_over_the_same_association_leaves_it_fit_for_more_requests() -> None:
    reports: list[Any] = []

    def take(event: Any) -> tuple[int, None]:
        reports.append(event)
        return 0x0000, None

    def wait_for(count: int) -> None:
        wait_until(lambda: len(pacs.report_statuses) == count, WITHIN_S, "the answer to the report")

    def ask_twice(port: int) -> None:
        peer = PeerSettings(name="pacs", ae_title="PACS", host=LOOPBACK, port=port)
        service = Service(event=evt.EVT_N_EVENT_REPORT, handle=take)
        with open_association(peer, Caller("DICOMNODE", 10.0), COMMITMENT_CONTEXTS, service) as association:
            for number in (1, 2):
                ask_for_commitment(association, peer, f"1.2.{number}", [Reference(PUSH_MODEL, "1.2.3")], number)
                wait_for(number)

    with Pacs(on_same=True) as pacs:
        asking = threading.Thread(target=ask_twice, args=(pacs.port,), daemon=True)
        asking.start()
        asking.join(WITHIN_S)

        assert not asking.is_alive()
        assert (len(reports), pacs.report_statuses) == (2, [0x0000] * 2)


def test_the_process_that_receives_takes_the_report_on_what_another_asked(tmp_path: Path) -> None:
    port = free_port()
    with Pacs(report_to=port) as pacs, running(tmp_path, port, {"pacs": pacs.port}, roles=["receive"]) as node:
        owe_files(node.database, node.root, ["pacs"])
        sender = Node(node.node.settings, ["send"])
        sender.start()
        try:
            node.await_states(committed=6)
        finally:
            sender.stop()

        wait_until(lambda: pacs.report_statuses == [0x0000], WITHIN_S, "its report was taken")


def test_what_a_pacs_has_lost_is_sent_again_what_it_refuses_is_dead(tmp_path: Path) -> None:
    port = free_port()
    with Pacs(report_to=port) as pacs, running(tmp_path, port, {"pacs": pacs.port}) as node:
        pacs.judge = lambda named: (
            {0: NO_SUCH_INSTANCE, 1: 0x0122}.get(pacs.received.index(named[1]), 0)
            * (pacs.received.count(named[1]) == 1)
        )
        owe_files(node.database, node.root, ["pacs"])
        node.await_states(committed=5, dead=1)

        rows = {row.sop_instance_uid: row for row in node.rows()}
        lost, refused = pacs.received[:2]
        assert rows[refused].reason == "pacs: not committed: 0x0122 referenced SOP class not supported"
        assert Counter(pacs.received) == Counter({**dict.fromkeys(rows, 1), lost: 2})
        assert len({request.TransactionUID for request in pacs.requests}) == len(pacs.requests) >= 2


def test_a_duplicate_transaction_is_asked_again_under_another_uid_and_nothing_is_sent_again(tmp_path: Path) -> None:
    port = free_port()
    with Pacs(report_to=port) as pacs, running(tmp_path, port, {"pacs": pacs.port}) as node:
        pacs.judge = lambda _: DUPLICATE if len(pacs.requests) == 1 else 0
        owe_files(node.database, node.root, ["pacs"])
        node.await_states(committed=6)

        assert len({request.TransactionUID for request in pacs.requests}) == len(pacs.requests) >= 2
        assert len(pacs.received) == 6


def test_a_pacs_that_never_reports_is_asked_so_often_and_then_it_is_said(tmp_path: Path) -> None:
    port = free_port()
    send = SendSettings(attempts=2, retry_first_s=0.1, retry_ceiling_s=0.2, timeout_s=5.0, commitment_s=0.6)
    with Pacs() as pacs, running(tmp_path, port, {"pacs": pacs.port}, send=send) as node:
        owe_files(node.database, node.root, ["pacs"])
        wait_until(lambda: all("not committed" in row.reason for row in node.rows()), WITHIN_S, "it is said")
        [reason] = {row.reason for row in node.rows()}
        assert reason == "not committed: pacs did not report in time; attempt 2 was the last"
        assert (node.states(), len({one.TransactionUID for one in pacs.requests})) == (Counter(sent=6), 2)

        # The last report is still welcome, however late, and takes the word back.
        event_type, information = pacs.make_report(pacs.requests[-1])
        first = pacs.make_report(pacs.requests[0])[1]
        assert Modality(port, "PACS").report(first, 1) == 0x0000
        assert Modality(port, "PACS").report(information, event_type) == 0x0000
        node.await_states(committed=6)
        assert {row.reason for row in node.rows()} == {""}


def test_a_destination_without_storage_commitment_keeps_what_it_was_sent_and_it_is_said(tmp_path: Path) -> None:
    with (
        StoreScp(tmp_path / "storescp") as storescp,
        running(tmp_path / "root", free_port(), {"pacs": storescp.port}) as node,
    ):
        owe_files(node.database, node.root, ["pacs"])
        wait_until(lambda: all("not committed" in row.reason for row in node.rows()), WITHIN_S, "it is said")

        assert node.states() == Counter(sent=6)
        assert node.rows()[0].reason.endswith("takes none of 2 presentation contexts")
        with node.database.write() as connection:
            retry_outbox_row(connection, node.rows()[0].id, 0.0)
        node.await_states(sent=6)


def test_a_report_by_another_peer_than_was_asked_changes_nothing(tmp_path: Path) -> None:
    port = free_port()
    with Pacs() as pacs, running(tmp_path, port, {"pacs": pacs.port, "scanner": free_port()}) as node:
        owe_files(node.database, node.root, ["pacs"])
        wait_until(lambda: pacs.requests, WITHIN_S, "it was asked")
        event_type, information = pacs.make_report(pacs.requests[0])

        assert Modality(port, "SCANNER").report(information, event_type) == 0x0115
        assert node.states() == Counter(sent=6)
        assert Modality(port, "PACS").report(information, event_type) == 0x0000
        node.await_states(committed=6)


def test_dcmtk_reads_what_the_node_asks_and_reports(
    modality_and_node: tuple[Modality, Running], tmp_path: Path
) -> None:
    modality, node = modality_and_node
    sent = send_series(node, tmp_path / "files")
    modality.ask([*sent, (PUSH_MODEL, "1.2.3.4")])
    information = modality.await_report().information

    path = tmp_path / "report.dcm"
    pydicom.dcmwrite(path, information, implicit_vr=True, little_endian=True)
    read = subprocess.run(
        [find_peer_program("dcmdump"), "-f", "-ti", "-q", str(path)], capture_output=True, text=True, check=True
    ).stdout

    assert read.count("ReferencedSOPInstanceUID") == len(sent) + 1
    assert "(0008,1195) UI" in read
    assert "(0008,1197) US 274" in read
