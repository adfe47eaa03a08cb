"""Whatever happens to the node at whatever step, every pair is delivered: once for each UID, the bytes it wrote.

And the PACS has committed it, and the scanner has the node's commitment on what it sent.

Flow: Step > [test_crash_matrix] > faulty_node, DCMTK's storescu, a modality, Orthanc
Never: a list of steps: the product's own table says where to strike, so that none can be forgotten.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid

from dicomnode.database.engine import open_database
from dicomnode.database.jobs import fetch_jobs, fetch_outputs
from dicomnode.settings_file import load_settings
from dicomnode.steps import IN_HOUSEKEEPING, IN_WORKER, Step
from tests.builders import NODE_AE, NodeProcess, Peer, make_config
from tests.commitment_peers import Modality, Named, read_names
from tests.conftest import REPOSITORY
from tests.dicomnode.series_files import SeriesSpec, write_series
from tests.peers_programs import LOOPBACK, Orthanc, data_set_bytes, free_port, send_with_dcmtk
from tests.system.faults import TROUBLES, Faults
from tests.waiting import wait_until

PAIRS_WAY = tuple(step for step in Step if step not in IN_HOUSEKEEPING)
SLICES = 12
OUTPUTS = 2 * SLICES + 1  # PT, RGB and one REG
LIFE_TIMEOUT_S = 120.0
PATIENTS_AT_MOST = 10
SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "jobs": {"retry_first_s": 0.1, "attempts": 60, "lease_s": 5.0},
    "send": {"retry_first_s": 0.1, "retry_ceiling_s": 0.5, "timeout_s": 1.0, "commitment_s": 3.0},
    "registration": {"device": "cpu"},
    "limits": {"disk_reserve_bytes": 0, "shutdown_s": 3.0},
}


class Bench:
    """A storage root that outlives its nodes, a PACS that judges, and patients that are sent until they are taken."""

    def __init__(self, folder: Path, root: Path, orthanc: Orthanc, scanner: Modality) -> None:
        self.folder = folder
        self.orthanc = orthanc
        self.scanner = scanner
        self.port = scanner.node_port
        pacs = Peer("pacs", orthanc.ae_title, orthanc.port, ("receive", "store"), commitment="pacs")
        peers = [Peer("scanner", scanner.ae_title, scanner.port), pacs]
        sections = {**SECTIONS, "node": {"storage_root": str(root)}}
        config = make_config(folder, peers, self.port, sections)
        self.settings = load_settings(config)
        database = self.settings.node.storage_root / "dicomnode.sqlite"
        self.faults = Faults(config, self.port, folder / "marks", database)
        self.faults.marks.mkdir()
        self.patients = 0
        self.unsent: list[Path] = []
        self.sent: set[Named] = set()
        self.unasked: list[Named] = []
        self.asking: tuple[str, list[Named]] | None = None  # a request without an answer yet

    def add_patient(self) -> None:
        """Write a PET and an MR of another patient, to be sent."""
        self.patients += 1
        number = self.patients

        def name(header: pydicom.Dataset, _k: int) -> None:
            header.PatientID, header.PatientName = f"T-{number}", f"Test^{number}"

        for part, modality in enumerate(("MR", "PT")):
            uid = f"1.2.826.0.1.3680043.8.498.{number}{part}"
            spec = SeriesSpec(modality=modality, shape=(SLICES, 32, 30), uid=uid, change=name)
            self.unsent += write_series(self.folder / "patients" / str(number) / modality, spec)

    def send(self) -> None:
        """Send what the node has not taken yet, as a modality does: what was not answered with Success stays.

        Then ask it to commit that, with the same request until it answers.
        """
        if self.unsent and send_with_dcmtk(self.unsent, self.port, called=NODE_AE, calling="SCANNER").all_stored:
            self.unasked += read_names(self.unsent)
            self.sent.update(self.unasked)
            self.unsent = []
        if self.unasked and self.asking is None:
            self.asking, self.unasked = (str(generate_uid()), self.unasked), []
        if self.asking is not None:
            with suppress(ConnectionError):
                uid, named = self.asking
                if self.scanner.ask(named, uid)[0] == 0:
                    self.asking = None

    def live_to_the_end(self, node: NodeProcess) -> None:
        """Let a node that runs deliver everything; then nothing is lost, doubled or changed."""

        def is_delivered() -> bool:
            self.send()
            outbox = Counter(row["state"] for row in node.list_rows("outbox"))
            told = {named for report in self.scanner.reports for named in report.committed}
            is_taken = not self.unsent and not self.unasked and not self.asking and told == self.sent
            return is_taken and outbox == {"committed": self.patients * OUTPUTS}

        wait_until(is_delivered, LIFE_TIMEOUT_S, f"everything is delivered; so far {node.output()[-6000:]}")
        database = open_database(self.settings.database_url)
        with database.read() as connection:
            jobs = fetch_jobs(connection)
            outputs = [output for job in jobs for output in fetch_outputs(connection, job.id)]
        database.close()
        assert [job.state for job in jobs] == ["done"] * self.patients
        root = self.settings.node.storage_root
        written = {one.sop_instance_uid: data_set_bytes((root / one.path).read_bytes()) for one in outputs}
        assert len(written) == self.patients * OUTPUTS
        assert [report.failed for report in self.scanner.reports if report.failed] == []
        files = self.orthanc.fetch_files()
        held = {uid: data_set_bytes(file) for uid, file in files.items() if uid in written}
        assert held == written
        assert self.orthanc.count_instances() == len(written)
        wait_until(lambda: not list((root / "spool").rglob("*.dcm")), LIFE_TIMEOUT_S, "the spool is empty")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_in(tmp_path, tmp_path / "storage") as bench:
        yield bench


@pytest.fixture
def bench_on_disk(tmp_path: Path, disk: Path) -> Iterator[Bench]:
    """Give a bench whose storage root, and nothing else, is on a disk that may be filled."""
    with bench_in(tmp_path, disk / "storage") as bench:
        yield bench


@contextmanager
def bench_in(folder: Path, root: Path) -> Iterator[Bench]:
    port = free_port()
    known = {"DicomModalities": {"node": [NODE_AE, LOOPBACK, port]}}
    with Orthanc(folder / "orthanc", "PACS", further=known) as orthanc, Modality(port) as scanner:
        yield Bench(folder, root, orthanc, scanner)


def test_every_step_is_reached_at_one_place() -> None:
    reached: Counter[str] = Counter()
    for path in (REPOSITORY / "dicomnode").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "reach":
                reached[ast.unparse(node.args[0]).removeprefix("Step.")] += 1
    assert reached == Counter(step.name for step in Step)


@pytest.mark.parametrize("fault", ["kill_node", "terminate_node"])
def test_a_node_that_ends_at_any_step_goes_on_in_its_next_life(bench: Bench, fault: str) -> None:
    for step in PAIRS_WAY:
        bench.add_patient()
        bench.faults.live_until(bench.faults.make_node(fault, [step]), step, LIFE_TIMEOUT_S, bench.send)

    with bench.faults.make_node(fault, []) as node:
        bench.live_to_the_end(node)


def test_a_worker_killed_at_any_of_its_steps_costs_attempts_and_no_pair(bench: Bench) -> None:
    bench.add_patient()
    with bench.faults.make_node("kill_worker", IN_WORKER) as node:
        bench.live_to_the_end(node)
        [job] = node.list_rows("jobs")

    assert all(bench.faults.is_struck(step) for step in IN_WORKER)
    # The last step comes after the job is recorded: its death costs none.
    assert job["attempts"] == len(IN_WORKER)


@pytest.mark.parametrize("name", TROUBLES)
def test_a_full_disk_and_a_locked_database_at_any_step_are_told_of_delay_and_lose_nothing(
    bench_on_disk: Bench, name: str
) -> None:
    bench, trouble = bench_on_disk, TROUBLES[name]
    node = bench.faults.make_node("await_trouble", PAIRS_WAY)
    with node, bench.faults.making(trouble, PAIRS_WAY, node):
        for _ in IN_WORKER:  # while the job of one waits for its lease to run out, that of another comes further
            bench.add_patient()
        while bench.patients < PATIENTS_AT_MOST:  # a step that is not reached for these is reached for a later one
            bench.add_patient()
            bench.live_to_the_end(node)
            if all(bench.faults.is_told(step) for step in PAIRS_WAY):
                break

    assert [step for step in PAIRS_WAY if not bench.faults.is_told(step)] == []
