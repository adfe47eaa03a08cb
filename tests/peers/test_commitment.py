"""Storage commitment with real peers, both ways: Orthanc, a modality that closes its association, PACS of both kinds.

Flow: dicomnode.app > Orthanc | tests.commitment_peers > [test_commitment]
Never: a report that the test writes into the database.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dicomnode.app import Node
from dicomnode.commitment import PUSH_MODEL
from dicomnode.database.engine import Database, open_database
from dicomnode.database.outbox import OutboxRow, fetch_outbox
from dicomnode.database.series import fetch_open_series
from dicomnode.settings import (
    DestinationSettings,
    LimitSettings,
    NodeSettings,
    PairingSettings,
    PeerSettings,
    SendSettings,
    Settings,
)
from tests.commitment_peers import Modality, Named, Pacs, make_information, read_names
from tests.dicomnode.series_files import SeriesSpec, write_series
from tests.peers_programs import LOOPBACK, Orthanc, free_port, send_with_dcmtk
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
    root: Path, port: int, peers: dict[str, int], *, commitment: str = "pacs", **sections: Any
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
            "send": SendSettings(retry_first_s=0.3, retry_ceiling_s=0.6, timeout_s=2.0, commitment_s=30.0),
            "limits": LimitSettings(disk_reserve_bytes=0),
            **sections,
        },
    )
    node = Node(settings, ["receive", "send"])
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
        running(tmp_path / "root", port, {"pacs": orthanc.port, "scanner": free_port()}, commitment="") as node,
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
