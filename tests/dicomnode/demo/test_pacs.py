"""The stand-in PACS keeps each instance byte for byte in the folder of its kind.

Flow: pytest > send.scu > [test_pacs] > pacs
Never: the node.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dicomnode.demo.pacs import open_pacs
from dicomnode.demo.patient import Person, Visit, write_pet
from dicomnode.demo.run import send_series
from dicomnode.demo.scans import Scan
from dicomnode.settings import PeerSettings
from tests.peers_programs import LOOPBACK, data_set_bytes


def test_what_arrives_is_kept_and_counted(tmp_path: Path) -> None:
    scan = Scan(np.ones((3, 4, 5), np.float32), np.eye(4), np.eye(4))
    files = write_pet(tmp_path / "sent", scan, Visit(Person(), "a"))
    with open_pacs(tmp_path / "pacs") as pacs:
        there = PeerSettings(name="pacs", ae_title="DEMO_PACS", host=LOOPBACK, port=pacs.port)
        send_series(files, "SCANNER", there)
    assert pacs.counts() == {"PT": 3}
    assert [path.name for path in pacs.files("PT")] == ["0001.dcm", "0002.dcm", "0003.dcm"]
    for sent, kept in zip(files, pacs.files("PT"), strict=True):
        assert data_set_bytes(kept.read_bytes()) == data_set_bytes(sent.read_bytes())
    assert pacs.files("REG") == []
