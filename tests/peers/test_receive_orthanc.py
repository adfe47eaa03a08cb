"""Orthanc as the sender: what it was given reaches the node as it is."""

from __future__ import annotations

import json
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.peers_programs import LOOPBACK, Orthanc, data_set_bytes
from tests.receiving import PT, ROOT, make_data_set
from tests.storage_scp import RunningScp

COUNT = 5


def make_file(path: Path, number: int) -> bytes:
    data_set = make_data_set(number, sop_class_uid=PT, size=128)
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data_set.save_as(path, enforce_file_format=True)
    return path.read_bytes()


def test_orthanc_sends_bit_for_bit(tmp_path: Path) -> None:
    files = {f"{ROOT}.3.{number}": make_file(tmp_path / f"{number}.dcm", number) for number in range(COUNT)}
    with RunningScp(tmp_path / "root") as node, Orthanc(tmp_path / "orthanc", "SCANNER") as orthanc:
        uploaded = [json.loads(orthanc.post("/instances", file))["ID"] for file in files.values()]
        modality = {"AET": "DICOMNODE", "Host": LOOPBACK, "Port": node.port}
        orthanc.put("/modalities/node", json.dumps(modality).encode())
        for _ in range(2):  # the second time all of them are known
            sent = json.loads(orthanc.post("/modalities/node/store", json.dumps(uploaded).encode()))
            assert (sent["InstancesCount"], sent["FailedInstancesCount"]) == (COUNT, 0)
        assert {uid: stored.data_set for uid, stored in node.stored().items()} == {
            uid: data_set_bytes(file) for uid, file in files.items()
        }
