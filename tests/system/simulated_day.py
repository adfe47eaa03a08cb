"""A node whose day takes a minute: its own services, driven through simulated time, among faults; run as `python -m`.

Flow: test_simulated_day > [simulated_day] > dicomnode's ingest, pairing, jobs, send, housekeeping > DCMTK's storescp
Never: another product than the one that is shipped, save for the clock, the registration (a stand-in behind the same
worker processes) and flushes, which matter to power loss alone; a fault that is not drawn from the seed.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
from numpy.random import default_rng

import registration.pipeline
from dicomnode import logs
from dicomnode.database import engine
from dicomnode.database.engine import open_database
from dicomnode.database.history import count_rows
from dicomnode.database.jobs import fetch_jobs
from dicomnode.database.migrate import migrate
from dicomnode.database.outbox import UNSENT, fetch_outbox
from dicomnode.database.series import fetch_series_rows
from dicomnode.database.store import Store
from dicomnode.errors import DicomnodeError
from dicomnode.housekeeping.service import HousekeepingService
from dicomnode.jobs import worker
from dicomnode.jobs.limits import read_resident_bytes
from dicomnode.jobs.service import JobService
from dicomnode.pairing import service as pairing
from dicomnode.receive.ingest import StoreRequest, ingest
from dicomnode.receive.intake import Intake
from dicomnode.receive.recording import Sender
from dicomnode.receive.recovery import close_spool, open_spool
from dicomnode.send.service import SendService
from tests.dicomnode.enhanced_files import make_enhanced_series
from tests.dicomnode.series_files import SeriesSpec
from tests.peers_programs import StoreScp
from tests.receiving import encode
from tests.system.stand_in import stand_in
from tests.system.test_simulated_day import make_settings

PLAN = json.loads(os.environ["DAY"])  # folder, port, hours, lives, seed
FOLDER = Path(PLAN["folder"])
ROUND_S = 300.0
PATIENTS_AN_HOUR = 40
START = 1.8e9
REAL_WAIT_S = 60.0
CAPACITY_BYTES = 3_000_000  # of the simulated disk: of a day's files a sixth fits
JUMP_AT_HOURS, JUMP_S = (12.0, 12.5), 3650 * 86400.0
_CLOCK = struct.Struct("<d")


class Clock:
    """Simulated time, in a file that every process of the node sees: what has passed, and what the wall clock shows."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_CLOCK.pack(0.0))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _CLOCK.size)

    @property
    def passed_s(self) -> float:
        """Seconds since the day began."""
        return float(_CLOCK.unpack(self._shared[:])[0])

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self._shared[:] = _CLOCK.pack(self.passed_s + seconds)

    def wall(self) -> float:
        """Return the wall clock, UTC epoch seconds: for half an hour it is ten years ahead."""
        first, last = (hours * 3600.0 for hours in JUMP_AT_HOURS)
        return START + self.passed_s + (JUMP_S if first <= self.passed_s < last else 0.0)

    def monotonic(self) -> float:
        """Return the clock that nobody moves, s."""
        return self.passed_s


CLOCK = Clock(FOLDER / "clock")


def configure_without_flushes(connection: Any, entry: Any, configure: Any = engine._configure_sqlite) -> None:
    """Open SQLite as the node does, save that nobody pulls the plug."""
    configure(connection, entry)
    connection.execute("PRAGMA synchronous = OFF")


def ignore(_descriptor: object) -> None:
    """Flush nothing: a killed process loses no write."""


registration.pipeline.register = stand_in  # before a worker imports what uses it
setattr(worker, "time", SimpleNamespace(time=CLOCK.wall))  # noqa: B010  mypy knows no module that is replaced
setattr(engine, "_configure_sqlite", configure_without_flushes)  # noqa: B010  as above
for name, value in {"fsync": ignore, "fdatasync": ignore, "RWF_DSYNC": 0}.items():
    setattr(os, name, value)


@dataclass(frozen=True)
class Arrival:
    """A series that is pushed, and when; of the same number again, it is the same once more."""

    at_s: float
    number: int
    modality: str


def plan_arrivals(hours: float, seed: int) -> list[Arrival]:
    """Return what modalities push in a day: for each patient an MR, a PET, and sometimes one of them again."""
    draw = random.Random(seed)  # noqa: S311  a schedule, not secrets
    arrivals = []
    for number in range(int(hours * PATIENTS_AN_HOUR)):
        at_s = number * 3600.0 / PATIENTS_AN_HOUR
        arrivals.append(Arrival(at_s, number, "MR"))
        arrivals.append(Arrival(at_s + draw.uniform(0.0, 1200.0), number, "PT"))
        if draw.random() < 0.1:
            arrivals.append(Arrival(at_s + draw.uniform(0.0, 7200.0), number, draw.choice(("MR", "PT"))))
    return sorted(arrivals, key=lambda one: (one.at_s, one.number, one.modality))


class Day:
    """One life of the node, which goes on where the last one was killed."""

    def __init__(self) -> None:
        self.settings = make_settings(FOLDER, PLAN["port"])
        self.life = int((FOLDER / "lives").read_text(encoding="ascii")) if (FOLDER / "lives").exists() else 0
        (FOLDER / "lives").write_text(str(self.life + 1), encoding="ascii")
        self.draw = random.Random(f"{PLAN['seed']}/{self.life}")  # noqa: S311  faults, not secrets
        self.store = Store(self.settings.node.storage_root)
        self.store.make_folders()
        migrate(self.settings.database_url)
        self.database = open_database(self.settings.database_url)
        self.intake = Intake(open_spool(self.store, self.database, CLOCK.wall()), self.database)
        self.jobs = JobService(self.settings, self.database, CLOCK.wall, CLOCK.monotonic)
        self.jobs.start()
        self.send = SendService(self.settings, self.database, CLOCK.wall, default_rng(0))
        self.housekeeping = HousekeepingService(
            self.settings, self.database, CLOCK.wall, CLOCK.monotonic, lambda: CAPACITY_BYTES - self.used_bytes()
        )
        self.templates = make_templates()
        self.pacs: Any = None

    def used_bytes(self) -> int:
        """Return what the simulated disk holds; a worker's files may get their names meanwhile."""
        used = 0
        for path in list_files(self.store.root):
            with suppress(FileNotFoundError):
                used += path.stat().st_size
        return used

    def live(self) -> None:
        """Let rounds pass until the day is over, or this life."""
        ends_at = PLAN["hours"] * 3600.0
        dies_at = (self.life + 1) * ends_at / PLAN["lives"] * self.draw.uniform(0.8, 1.0)
        arrivals = plan_arrivals(PLAN["hours"], PLAN["seed"])
        self._open_pacs()
        while CLOCK.passed_s < ends_at or not self._is_done():
            for arrival in self._due(arrivals):
                self._push(arrival)
            self._strike()
            if self.life < PLAN["lives"] - 1 and CLOCK.passed_s >= dies_at:
                self._step()
                os.kill(os.getpid(), signal.SIGKILL)
            self._step()
            self._settle()
            self._note()
            CLOCK.move(ROUND_S)
            if CLOCK.passed_s > 2 * ends_at:
                raise RuntimeError("the work of a day is not done in two")
        self._end()

    def _due(self, arrivals: list[Arrival]) -> Iterator[Arrival]:
        """Return what is to be pushed now; what was answered before a death is not pushed again."""
        pushed = FOLDER / "pushed"
        count = pushed.stat().st_size if pushed.exists() else 0
        for arrival in arrivals[count:]:
            if arrival.at_s > CLOCK.passed_s:
                return
            yield arrival
            with pushed.open("ab") as file:
                file.write(b".")

    def _push(self, arrival: Arrival) -> None:
        data_set, data = self.templates[arrival.modality](arrival.number)
        sender = Sender("SCANNER", "127.0.0.1", may_store=True, opened_at=CLOCK.wall())
        sop_class = str(data_set.SOPClassUID)
        request = StoreRequest(sop_class, str(data_set.SOPInstanceUID), sop_class, "1.2.840.10008.1.2.1", data)
        ingest(self.intake, request, sender, limits=self.settings.limits, now=CLOCK.wall())
        self.intake.close(sender, CLOCK.wall())

    def _strike(self) -> None:
        """Let something break, every other hour or so: the PACS goes away for a while, or a worker dies."""
        chance = ROUND_S / 3600.0
        if self.pacs is None:
            if self.draw.random() < 5 * chance:
                self._open_pacs()
        elif self.draw.random() < chance / 2:
            self.pacs.kill()
            self.pacs = None
        if self.draw.random() < chance / 10:
            for one in self.jobs._workers:
                for process in one._processes():
                    process.kill()

    def _step(self) -> None:
        """Call every part once, as the node's clock does."""
        steps: list[Callable[[], None]] = [
            lambda: pairing.step(self.database, self.settings, CLOCK.wall()),
            self.jobs.step,
            self.send.step,
            self.housekeeping.step,
        ]
        for step in steps:
            try:
                step()
            except DicomnodeError as error:
                sys.stderr.write(f"{error}\n")

    def _settle(self) -> None:
        """Wait for what was begun, as long as it takes the real machine: it takes no simulated time."""
        deadline = time.monotonic() + REAL_WAIT_S
        while time.monotonic() < deadline:
            runs = [one.run.future for one in self.jobs._workers if one.run is not None]
            loading = [one._warm_up for one in self.jobs._workers if one._warm_up is not None]
            runs += [warm_up for warm_up in loading if not warm_up.done()]
            if not runs and self.send.is_idle():
                return
            wait(runs, timeout=REAL_WAIT_S if runs else 0.0)
            self.jobs.step()
            time.sleep(0.002)
        raise RuntimeError("a job or a delivery did not end")

    def _is_done(self) -> bool:
        with self.database.read() as connection:
            is_open = fetch_series_rows(connection, ["receiving", "complete"])
            unsent = fetch_outbox(connection, UNSENT)
            return not (is_open or unsent or fetch_jobs(connection, ["waiting", "running", "retry"]))

    def _note(self) -> None:
        """Write down, once an hour, what this life takes of the machine and the disk holds."""
        if CLOCK.passed_s % 3600.0 < ROUND_S:
            note = {
                "life": self.life,
                "hour": CLOCK.passed_s / 3600.0,
                "resident_bytes": read_resident_bytes(os.getpid()),
                "descriptors": len(list(Path("/proc/self/fd").iterdir())),
                "files": len(list_files(self.store.root)),
                "bytes": self.used_bytes(),
                "rows": self._count_rows(),
            }
            with (FOLDER / "notes.jsonl").open("a", encoding="ascii") as file:
                file.write(json.dumps(note) + "\n")

    def _count_rows(self) -> int:
        """Return how many rows there are that end, of what was not received or made."""
        with self.database.read() as connection:
            return sum(aged.staying for aged in count_rows(connection, None))

    def _open_pacs(self) -> None:
        self.pacs = StoreScp(FOLDER, "PACS", PLAN["port"])
        self.pacs.start()

    def _end(self) -> None:
        self.jobs.stop(5.0)
        self.send.stop(5.0)
        self.intake.stop()
        close_spool(self.intake.spool, self.database, CLOCK.wall())
        self.database.close()
        if self.pacs is not None:
            self.pacs.kill()


def list_files(root: Path) -> list[Path]:
    """Return the files that instances take, received and made."""
    folders = (root / name for name in ("store", "conflicts", "outputs", "damaged"))
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def make_templates() -> dict[str, Callable[[int], tuple[pydicom.Dataset, bytes]]]:
    """Return functions that make the one multi-frame instance of a series of a patient, by modality."""

    def make(modality: str) -> Callable[[int], tuple[pydicom.Dataset, bytes]]:
        spec = SeriesSpec(modality=modality, shape=(8, 12, 12), spacing_mm=(12.0, 9.0, 9.0))
        data_set = make_enhanced_series(spec)
        place = "12".index("1" if modality == "MR" else "2") + 1

        def of_patient(number: int) -> tuple[pydicom.Dataset, bytes]:
            uid = f"1.2.826.0.1.3680043.8.498.{number + 1}.{place}"
            data_set.PatientID, data_set.PatientName = f"D-{number}", f"Day^{number}"
            data_set.StudyInstanceUID, data_set.SeriesInstanceUID = f"{uid}.1", f"{uid}.2"
            data_set.FrameOfReferenceUID, data_set.SOPInstanceUID = f"{uid}.3", f"{uid}.4"
            return data_set, encode(data_set)

        return of_patient

    return {modality: make(modality) for modality in ("MR", "PT")}


if __name__ == "__main__":
    logs.configure("console")
    Day().live()
