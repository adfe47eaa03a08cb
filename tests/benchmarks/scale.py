"""The whole node between a scanner and Orthanc: how long a pair's results take, and how many pairs an hour go through.

Flow: builders > [scale] > storescu > node process > Orthanc
Never: a registration that is left out or made easier; a node whose network is cold.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.rows import Row
from tests.builders import NODE_AE, NodeProcess, Patient, Peer, make_config, make_patient
from tests.peers_programs import Orthanc, free_port, send_with_dcmtk
from tests.waiting import wait_until

MR_MM = 1.0
PATIENTS, FULL_PATIENTS = 4, 12  # after one that warms up
QUIET_S = 1.0  # of a series, and of its study; both count from the last slice
WORKERS = (1, 2)
GOAL_S = 15.0
DEADLINE_S = 900.0
POLL_S = 0.05


def measure() -> Iterator[Row]:
    """Yield the rows of this group; more patients with FULL=1."""
    count = FULL_PATIENTS if os.environ.get("FULL") == "1" else PATIENTS
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        patients = [make_patient(root / f"patient-{n}", seed=n, mr_spacing_mm=MR_MM) for n in range(count + 1)]
        yield from list_rows(
            measure_delays(root / "one by one", patients),
            {workers: measure_rate(root / f"{workers} at work", patients, workers) for workers in WORKERS},
        )


def list_rows(delays_s: Sequence[float], pairs_an_hour: dict[int, float]) -> Iterator[Row]:
    """Yield delays against the goal, and the rates of more workers against that of one."""
    for which, value in (("median", statistics.median(delays_s)), ("longest", max(delays_s))):
        name = f"last C-STORE to last result, {which} of {len(delays_s)}, without the quiet period"
        yield Row("scale", name, value, "s", "", None, f"<= {GOAL_S:g} s", value <= GOAL_S)
    for workers, rate in pairs_an_hour.items():
        peer, ratio = (f"1 worker {pairs_an_hour[1]:.3g}", rate / pairs_an_hour[1]) if workers > 1 else ("", None)
        yield Row("scale", f"throughput, workers {workers}", rate, "pairs/hour", peer, ratio, "", None)


def measure_delays(folder: Path, patients: Sequence[Patient]) -> list[float]:
    """Return for each patient but the first, sent one after another, the seconds from the last C-STORE on."""
    with Bench(folder, workers=1) as bench:
        bench.send_and_wait(patients[:1])
        return [bench.send_and_wait([patient]) - QUIET_S for patient in patients[1:]]


def measure_rate(folder: Path, patients: Sequence[Patient], workers: int) -> float:
    """Return the pairs an hour when all patients but the first, which warms up, are pushed at once."""
    with Bench(folder, workers) as bench:
        bench.send_and_wait(patients[:1])
        started = time.perf_counter()
        bench.send_and_wait(patients[1:])
        return 3600 * len(patients[1:]) / (time.perf_counter() - started)


class Bench(ExitStack):
    """A node process and an Orthanc that gets its results."""

    def __init__(self, folder: Path, workers: int) -> None:
        super().__init__()
        folder.mkdir()
        port = free_port()
        self.orthanc = Orthanc(folder / "orthanc")
        peers = [Peer("pacs", self.orthanc.ae_title, self.orthanc.port, ("receive",)), Peer("scanner", "STORESCU")]
        quiet = {"series_quiet_period_s": QUIET_S, "study_quiet_period_s": QUIET_S}
        config = make_config(folder, peers, port, {"pairing": quiet, "jobs": {"workers": workers}})
        self.node = NodeProcess(config, port)
        self._results = 0

    def __enter__(self) -> Bench:
        self.enter_context(self.orthanc)
        self.enter_context(self.node)
        return self

    def send_and_wait(self, patients: Sequence[Patient]) -> float:
        """Push MR and PET of each; return the seconds from the last answer until Orthanc holds every result."""
        for patient in patients:
            for files in (patient.mr_files, patient.pet_files):
                if not (sent := send_with_dcmtk(files, self.node.port, called=NODE_AE)).all_stored:
                    raise RuntimeError(f"the node did not take everything:\n{sent.output[-2000:]}")
            self._results += 2 * len(patient.mr_files) + 1  # PET, colours, and the Spatial Registration
        started = time.perf_counter()
        wait_until(lambda: self.orthanc.count_instances() >= self._results, DEADLINE_S, "every result", POLL_S)
        return time.perf_counter() - started
