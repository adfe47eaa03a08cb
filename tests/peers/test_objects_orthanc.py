"""Orthanc takes every kind of object and gives it back unchanged; what is sent compressed too, where it is taken.

Flow: outputs on disk > outbox > send service > Orthanc | a peer without codecs > [test_objects_orthanc]
Never: a file sent but by the node's own sender.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt

from dicomnode.database.engine import Database
from dicomnode.database.jobs import JobClaim, claim_job, move_claimed_job, record_outputs
from dicomnode.database.outbox import fetch_outbox
from dicomnode.outputs.compression import COMPRESSED, find_copy_path, write_copies
from dicomnode.outputs.modules import PLANS
from dicomnode.outputs.objects import OutputFile, write_outputs
from dicomnode.routes import owe_results
from dicomnode.send.service import SendService
from dicomnode.setting_values import Compression
from dicomnode.settings import DestinationSettings, NodeSettings, PeerSettings, Settings
from tests.dicomnode.outputs.known_inputs import INPUTS
from tests.peers_programs import LOOPBACK, Orthanc, data_set_bytes
from tests.rows import add_waiting_job
from tests.waiting import wait_until

DELIVERY_S = 120.0
ORIENTED = ("axial", "coronal", "sagittal half millimetre", "oblique", "Enhanced")


def make_settings(root: Path, ports: Mapping[str, int], compression: Compression) -> Settings:
    peers = tuple(
        PeerSettings(name=name, ae_title=name.upper(), host=LOOPBACK, port=port, may=("receive",))
        for name, port in ports.items()
    )
    destinations = tuple(DestinationSettings(peer=peer.name, compression=compression) for peer in peers)
    return Settings(node=NodeSettings(storage_root=root), peers=peers, destinations=destinations)


def owe(database: Database, settings: Settings, name: str) -> list[OutputFile]:
    """Make one input's outputs with their compressed copies, and owe them to every destination."""
    job_id = add_waiting_job(database)
    job = claim_job(database, time.time(), lease_s=60.0)
    assert job is not None
    root = settings.node.storage_root
    files = write_outputs(INPUTS[name].request(), root / "outputs" / str(job_id))
    compression = settings.destinations[0].compression
    copies = write_copies([(file.kind, file.path) for file in files], compression)
    rows = [
        {
            **asdict(file),
            "path": str(file.path.relative_to(root)),
            "copies": {compression: copies[file.path]} if file.path in copies else {},
        }
        for file in files
    ]
    with database.write() as connection:
        move_claimed_job(connection, JobClaim(job.id, job.token), "done")
        made = zip(record_outputs(connection, job.id, rows), (file.kind for file in files), strict=True)
        owe_results(connection, job.pair_id, "accept", made, (settings, time.time() - 1))
    return files


def deliver(database: Database, settings: Settings) -> None:
    service = SendService(settings, database, time.time, np.random.default_rng(0))

    def is_delivered() -> bool:
        service.step()
        with database.read() as connection:
            rows = fetch_outbox(connection)
        assert not [row.reason for row in rows if row.state == "dead"]
        return all(row.state == "sent" for row in rows)

    try:
        wait_until(is_delivered, DELIVERY_S, "everything is sent")
    finally:
        service.stop(5.0)


@pytest.mark.parametrize("compression", ["none", "jpeg-ls", "jpeg-2000"])
def test_orthanc_returns_every_kind_of_object_unchanged(
    database: Database, tmp_path: Path, compression: Compression
) -> None:
    with Orthanc(tmp_path / "orthanc", "PACS") as orthanc:
        settings = make_settings(tmp_path, {"pacs": orthanc.port}, compression)
        files = [file for name in ORIENTED for file in owe(database, settings, name)]
        deliver(database, settings)
        stored = orthanc.fetch_files()
    assert {file.kind for file in files} == set(PLANS)
    assert set(stored) == {file.sop_instance_uid for file in files}
    for file in files:
        is_compressed = file.kind in COMPRESSED[compression]
        sent = find_copy_path(file.path, compression) if is_compressed else file.path
        assert data_set_bytes(stored[file.sop_instance_uid]) == data_set_bytes(sent.read_bytes()), sent.name


@contextmanager
def taking_no_compression(store: Callable[[Any], int]) -> Iterator[int]:
    """A peer that takes every kind of object in explicit little endian alone; gives its port."""
    entity = AE("PLAIN")
    for plan in PLANS.values():
        entity.add_supported_context(plan.sop_class_uid, ExplicitVRLittleEndian)
    server = entity.start_server((LOOPBACK, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def test_a_peer_that_takes_no_compressed_images_gets_them_as_they_were_made(database: Database, tmp_path: Path) -> None:
    received: dict[str, bytes] = {}

    def store(event: Any) -> int:
        received[str(event.request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        return 0x0000

    with taking_no_compression(store) as port:
        settings = make_settings(tmp_path, {"plain": port}, "jpeg-ls")
        files = owe(database, settings, "axial")
        deliver(database, settings)
    assert received == {file.sop_instance_uid: data_set_bytes(file.path.read_bytes()) for file in files}
