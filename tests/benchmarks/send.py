"""Sending C-STORE: the outbox against DCMTK's storescu to one destination, tuned and with Nagle's algorithm; and after
the destination was down against as ever.

Flow: rows > [send] > SendService, storescu > storescp
Never: a destination that the two do not share; a connection that was made before the clock runs.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

INSTANCES, NAGLE_INSTANCES = 1600, 320
QUEUED = 500  # for a destination that is down
ROUNDS, FULL_ROUNDS = 3, 9
SIZE_PX = 256  # an MR slice of 131 KB
SEED = 20260304
GOAL = 1.0  # ours to storescu's
OUTAGE_GOAL = 0.8  # after an outage to without one
WAIT_S = 300.0
POLL_S = 0.001
OUTAGE_S = 3600.0  # longer than the longest wait between two attempts
NAGLE = "TCP_NODELAY"  # DCMTK's variable that turns Nagle's algorithm off


def measure() -> Iterator[Row]:
    """Yield the rows of this group; more rounds with FULL=1."""
    rounds = FULL_ROUNDS if os.environ.get("FULL") == "1" else ROUNDS
    logs.configure("console", level="WARNING")
    with open_bench(INSTANCES) as bench:
        yield make_row("tuned", bench.run([bench.send, bench.send_with_storescu], rounds), "storescu", GOAL)
    with open_bench(NAGLE_INSTANCES, has_nagle=True) as bench:
        yield make_row("with Nagle", bench.run([bench.send, bench.send_with_storescu], rounds), "storescu", GOAL)
    with open_bench(QUEUED) as bench:
        pairs = bench.run([bench.send_after_outage, bench.send], rounds)
        yield make_row("after an outage", pairs, "without", OUTAGE_GOAL)


@contextmanager
def open_bench(count: int, *, has_nagle: bool = False) -> Iterator[Bench]:
    """Give so many instances and who sends them, to a destination that runs inside the `with` block."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), count, has_nagle=has_nagle)
        try:
            with bench.storescp:
                yield bench
        finally:
            bench.database.close()


class Bench:
    """Instances on disk, a storescp that takes them, and a database that owes them to it."""

    def __init__(self, folder: Path, count: int, *, has_nagle: bool) -> None:
        self._ahead_s = 0.0  # of our clock
        self.storescp = StoreScp(folder / "storescp")
        self.environment = dict(self.storescp.environment)
        if has_nagle:
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

    def run(self, senders: Sequence[Callable[[], float]], rounds: int) -> list[tuple[float, ...]]:
        """Return the instances/s of these senders, in each round but the first, which warms up."""
        shuffle = random.Random(SEED).shuffle  # noqa: S311  an order, not a secret
        order, found = list(range(len(senders))), []
        for _ in range(rounds + 1):
            shuffle(order)
            seconds = dict.fromkeys(range(len(senders)), 0.0)
            for number in order:
                seconds[number] = senders[number]()
                for path in self.storescp.files():  # a fuller folder is a slower one
                    path.unlink()
            found.append(tuple(len(self.files) / one for one in seconds.values()))
        return found[1:]

    def send(self) -> float:
        """Owe every file, and return the seconds until all are recorded as sent."""
        self._owe()
        service = self._start()
        return self._measure(service)

    def send_after_outage(self) -> float:
        """Owe every file while the destination is down, and return the seconds from when it is back."""
        self._owe()
        self.storescp.stop()
        service = self._start()
        service.step()
        wait_until(service.is_idle, WAIT_S, "the destination to be missed")
        self.storescp.start()
        self._ahead_s += OUTAGE_S
        return self._measure(service)

    def send_with_storescu(self) -> float:
        """Send every file with storescu, and return the seconds it takes."""
        started = time.perf_counter()
        sent = send_with_dcmtk(
            self.files, self.storescp.port, called=self.storescp.ae_title, environment=self.environment
        )
        seconds = time.perf_counter() - started
        if not sent.all_stored:
            raise RuntimeError(f"storescu did not send everything:\n{sent.output[-2000:]}")
        return seconds

    def _owe(self) -> None:
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
            add_outbox_rows(connection, record_outputs(connection, job_id, rows), ["pacs"], now=self._clock())

    def _start(self) -> SendService:
        return SendService(self.settings, self.database, self._clock, np.random.default_rng(SEED))

    def _clock(self) -> float:
        return time.time() + self._ahead_s

    def _measure(self, service: SendService) -> float:
        started = time.perf_counter()
        service.step()
        wait_until(service.is_idle, WAIT_S, "everything is sent", POLL_S)
        seconds = time.perf_counter() - started
        service.stop(WAIT_S)
        with self.database.read() as connection:
            if {row.state for row in fetch_outbox(connection)} != {"sent"}:
                raise RuntimeError("the outbox did not send everything")
        return seconds


def _write(path: Path, number: int) -> Path:
    data_set = make_data_set(number, size=SIZE_PX)
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data_set.save_as(path, enforce_file_format=True)
    return path


def make_row(name: str, rounds: list[tuple[float, ...]], peer: str, goal: float) -> Row:
    """Give medians, ours first; the ratio is the median of those of the rounds, each of which measured both."""
    ours, theirs = (statistics.median(values) for values in zip(*rounds, strict=True))
    ratio = statistics.median(one / other for one, other in rounds)
    return Row("send", name, ours, "instances/s", f"{peer} {theirs:.3g}", ratio, f">= {goal:g}x", ratio >= goal)
