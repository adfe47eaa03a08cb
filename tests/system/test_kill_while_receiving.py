"""`kill -9` of the node while DCMTK sends: what was answered with Success is whole and indexed after the restart."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.builders import NODE_AE, NodeProcess, Peer, make_config
from tests.conftest import find_peer_program
from tests.peers_programs import LOOPBACK, PEER_ENVIRONMENT, data_set_bytes, free_port
from tests.receiving import ROOT, make_data_set
from tests.system.crashing_node import find_broken
from tests.waiting import wait_until

SEED = 20260304
ROUNDS = 6
INSTANCES = 40  # in each round
# Which part of a round's instances each storescu sends: some are sent twice, at the same time.
SHARES = [slice(0, 20), slice(20, 40), slice(10, 30)]
PLACEHOLDER = 1_000_000
SENT, SUCCESS = "Sending file: ", "Received Store Response (Success)"


@dataclass(frozen=True)
class Sender:
    """One storescu, and where it says what was answered."""

    process: subprocess.Popen[bytes]
    log: Path

    def acknowledged(self) -> set[str]:
        """Return the names of the files that were answered with Success."""
        names: set[str] = set()
        name = ""
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            if SENT in line:
                name = Path(line.split(SENT, 1)[1].strip()).stem
            elif SUCCESS in line:
                names.add(name)
        return names


def make_template(path: Path) -> bytes:
    """Return a DICOM file whose SOP Instance UID ends in the placeholder."""
    data_set = make_data_set(PLACEHOLDER, size=64)
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data_set.save_as(path, enforce_file_format=True)
    return path.read_bytes()


def make_files(folder: Path, template: bytes, first: int) -> list[Path]:
    folder.mkdir()
    files = []
    for number in range(first, first + INSTANCES):
        path = folder / f"{ROOT}.3.{number}.dcm"
        path.write_bytes(template.replace(str(PLACEHOLDER).encode(), str(number).encode()))
        files.append(path)
    return files


def start_sender(files: list[Path], port: int, log: Path) -> Sender:
    command: list[str | Path] = [find_peer_program("storescu"), "-v", "-R", "-aet", "SCANNER", "-aec", NODE_AE]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, LOOPBACK, str(port), *files], stdout=output, stderr=subprocess.STDOUT, env=PEER_ENVIRONMENT
        )
    return Sender(process, log)


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    draw = random.Random(SEED)  # noqa: S311  moments, not secrets
    port = free_port()
    config = make_config(tmp_path, [Peer("scanner", "SCANNER")], port)
    root = tmp_path / "storage"
    template = make_template(tmp_path / "template.dcm")
    sent: dict[str, bytes] = {}
    acknowledged: set[str] = set()

    for number in range(ROUNDS):
        files = make_files(tmp_path / f"round{number}", template, PLACEHOLDER + 1 + number * INSTANCES)
        sent |= {path.stem: data_set_bytes(path.read_bytes()) for path in files}
        kill_after = draw.randrange(INSTANCES)
        with NodeProcess(config, port, ["receive"]) as node:
            assert find_broken(root, sent, acknowledged) == []
            logs = [tmp_path / f"round{number}-{share}.log" for share in range(len(SHARES))]
            senders = [start_sender(files[share], port, log) for share, log in zip(SHARES, logs, strict=True)]
            wait_until(lambda s=senders, n=kill_after: len(all_acknowledged(s)) >= n, 30)  # type: ignore[misc]  # lambda
            node.kill()
        for sender in senders:
            sender.process.wait(30)
        acknowledged |= all_acknowledged(senders)

    with NodeProcess(config, port, ["receive"]):
        assert find_broken(root, sent, acknowledged) == []
    assert len(acknowledged) < len(sent), "no round was cut short"


def all_acknowledged(senders: list[Sender]) -> set[str]:
    return set().union(*(sender.acknowledged() for sender in senders))
