"""Sending C-STORE: the outbox against DCMTK's storescu to one destination, tuned and with Nagle's algorithm.

Flow: rows > [send] > SendService, storescu > storescp
Never: a destination that the two do not share; a connection that was made before the clock runs.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode import logs
from dicomnode.database.engine import Database, open_database
from dicomnode.database.jobs import record_outputs
from dicomnode.database.migrate import migrate
from dicomnode.database.outbox import add_outbox_rows, fetch_outbox
from dicomnode.digests import digest_file
from dicomnode.send.service import SendService
from dicomnode.settings import DestinationSettings, NodeSettings, PeerSettings, Settings
from tests.benchmarks.rows import Row
from tests.peers_programs import LOOPBACK, StoreScp, send_with_dcmtk
from tests.receiving import MR, make_data_set
from tests.rows import add_finished_job, output_row
from tests.waiting import wait_until

INSTANCES, FULL_INSTANCES = 320, 1600
ROUNDS, FULL_ROUNDS = 3, 5
SIZE_PX = 256  # an MR slice of 131 KB
SEED = 20260304
GOAL = 1.0  # DESIGN: ours to storescu's
WAIT_S = 300.0
NAGLE = "TCP_NODELAY"  # DCMTK's variable that turns Nagle's algorithm off


def measure() -> Iterator[Row]:
    """Yield the rows of this group; more rounds of more instances with FULL=1."""
    is_full = os.environ.get("FULL") == "1"
    rounds, count = (FULL_ROUNDS, FULL_INSTANCES) if is_full else (ROUNDS, INSTANCES)
    logs.configure("console", level="WARNING")
    for name, is_tuned in (("tuned", True), ("with Nagle", False)):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), count, is_tuned=is_tuned)
            try:
                yield _make_row(name, bench.run(rounds))
            finally:
                bench.database.close()


class Bench:
    """Instances on disk, a storescp that takes them, and a database that owes them to it."""

    def __init__(self, folder: Path, count: int, *, is_tuned: bool) -> None:
        self.storescp = StoreScp(folder / "storescp")
        self.environment = dict(self.storescp.environment)
        if not is_tuned:
            del self.environment[NAGLE]
            self.storescp.environment = self.environment
        root = folder / "node"
        peer = PeerSettings(
            name="pacs", ae_title=self.storescp.ae_title, host=LOOPBACK, port=self.storescp.port, may=("receive",)
        )
        self.settings = Settings(
            node=NodeSettings(storage_root=root), peers=(peer,), destinations=(DestinationSettings(peer="pacs"),)
        )
        (root / "outputs").mkdir(parents=True)
        migrate(self.settings.database_url)
        self.database: Database = open_database(self.settings.database_url)
        self.files = [_write(root / "outputs" / f"{number}.dcm", number) for number in range(1, count + 1)]

    def run(self, rounds: int) -> list[tuple[float, float]]:
        """Return instances/s of the outbox and of storescu, in each round but the first, which warms up."""
        shuffle = random.Random(SEED).shuffle  # noqa: S311  an order, not a secret
        senders: list[Callable[[], float]] = [self._send, self._send_with_storescu]
        found = []
        with self.storescp:
            for _ in range(rounds + 1):
                shuffle(senders)
                seconds = {sender.__name__: sender() for sender in senders}
                found.append((seconds["_send"], seconds["_send_with_storescu"]))
        return [(len(self.files) / ours, len(self.files) / theirs) for ours, theirs in found[1:]]

    def _send(self) -> float:
        """Owe every file, and return the seconds until all are recorded as sent."""
        job_id, _ = add_finished_job(self.database, ())
        rows = [
            {
                **output_row(job_id, number, "pt", Path("outputs") / path.name),
                "sop_class_uid": MR,
                "sha256": digest_file(path),
            }
            for number, path in enumerate(self.files, start=1)
        ]
        with self.database.write() as connection:
            add_outbox_rows(connection, record_outputs(connection, job_id, rows), ["pacs"], now=time.time())
        service = SendService(self.settings, self.database, time.time, np.random.default_rng(SEED))
        started = time.perf_counter()
        service.step()
        wait_until(service.is_idle, WAIT_S, "everything is sent")
        seconds = time.perf_counter() - started
        service.stop(WAIT_S)
        with self.database.read() as connection:
            if {row.state for row in fetch_outbox(connection)} != {"sent"}:
                raise RuntimeError("the outbox did not send everything")
        return seconds

    def _send_with_storescu(self) -> float:
        started = time.perf_counter()
        sent = send_with_dcmtk(
            self.files, self.storescp.port, called=self.storescp.ae_title, environment=self.environment
        )
        seconds = time.perf_counter() - started
        if not sent.all_stored:
            raise RuntimeError(f"storescu did not send everything:\n{sent.output[-2000:]}")
        return seconds


def _write(path: Path, number: int) -> Path:
    data_set = make_data_set(number, size=SIZE_PX)
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data_set.save_as(path, enforce_file_format=True)
    return path


def _make_row(name: str, pairs: list[tuple[float, float]]) -> Row:
    """Give medians, ours first; the ratio is the median of those of the rounds, each of which measured both."""
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    return Row("send", name, ours, "instances/s", f"storescu {theirs:.3g}", ratio, f">= {GOAL:g}x", ratio >= GOAL)
