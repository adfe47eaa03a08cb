"""Synthetic patients as folders of DICOM files, a node's configuration, and the node as a process.

Flow: tests > [builders] > demo
Never: real data; an anatomy of its own (`dicomnode.demo` makes it).
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from dicomnode.database.engine import open_database
from dicomnode.database.jobs import fetch_jobs
from dicomnode.database.outbox import fetch_outbox
from dicomnode.database.pairs import fetch_pairs
from dicomnode.database.series import fetch_series, fetch_series_rows
from dicomnode.demo.patient import Person, Visit, write_mr, write_pet
from dicomnode.demo.phantom import Head, make_head
from dicomnode.demo.scans import Scan, fixed_from_moving, make_mr, make_pet, move_points, rigid_matrix
from dicomnode.settings_file import load_settings
from tests.peers_programs import LOOPBACK, Process

FAST_MR_MM = 2.5
FAST_PET_MM = (4.0, 4.0, 4.0)
BRAIN_POINTS = 2000
NODE_AE = "DICOMNODE"
COMMAND_TIMEOUT_S = 180.0
LISTINGS: Mapping[str, Callable[..., list[Any]]] = {
    "series": fetch_series_rows,
    "pairs": fetch_pairs,
    "jobs": fetch_jobs,
    "outbox": fetch_outbox,
}


@dataclass(frozen=True)
class Patient:
    """A synthetic patient on disk and the truth about it.

    Attributes
    ----------
    mr_files, pet_files : list of Path
        In the order of k.
    fixed_from_moving : (4, 4) float64
        True transform of PET points to MR points, LPS mm.
    points_mm : (n, 3) float64
        Points of the brain in the PET's patient coordinates.
    """

    mr_folder: Path
    pet_folder: Path
    mr_files: list[Path]
    pet_files: list[Path]
    mr: Scan
    pet: Scan
    fixed_from_moving: NDArray[np.float64]
    points_mm: NDArray[np.float64]

    @property
    def files(self) -> list[Path]:
        """Every file of both series, the MR first."""
        return [*self.mr_files, *self.pet_files]


@functools.lru_cache(maxsize=2)
def head(seed: int) -> Head:
    """Return a person's head; the last two are kept, since one takes seconds to make."""
    return make_head(seed)


def make_patient(
    folder: Path,
    seed: int = 0,
    *,
    person: Person | None = None,
    angles_deg: tuple[float, float, float] = (8.0, -5.0, 10.0),
    shift_mm: tuple[float, float, float] = (12.0, -9.0, 15.0),
    mr_spacing_mm: float = FAST_MR_MM,
) -> Patient:
    """Write an MR and a PET of one synthetic person below `folder`, in `mr/` and `pet/`.

    Parameters
    ----------
    folder : Path
    seed : int
        The person, the scans' noise, and every UID.
    person : Person, optional
        Who is in the headers; by default a patient whose ID holds the seed.
    angles_deg, shift_mm : tuple of float
        The misalignment: how the PET's frame lies to the MR's.
    mr_spacing_mm : float
        2.5 by default, which is small and fast; the PET has voxels of 4 mm then, and of 3 x 2 x 2 mm for 1.
    """
    mr, pet, points_mm = _scan(seed, angles_deg, shift_mm, mr_spacing_mm)
    who = person or Person(patient_id=f"SYN-{seed:04d}", name=f"Synthetic^{seed}")
    key = f"test/{who.patient_id}/{seed}"
    mr_folder, pet_folder = folder / "mr", folder / "pet"
    return Patient(
        mr_folder=mr_folder,
        pet_folder=pet_folder,
        mr_files=write_mr(mr_folder, mr, Visit(who, f"{key}/mr")),
        pet_files=write_pet(pet_folder, pet, Visit(who, f"{key}/pet", date="20260304", time="100000")),
        mr=mr,
        pet=pet,
        fixed_from_moving=fixed_from_moving(mr, pet),
        points_mm=points_mm,
    )


@functools.lru_cache(maxsize=4)
def _scan(
    seed: int, angles_deg: tuple[float, float, float], shift_mm: tuple[float, float, float], mr_spacing_mm: float
) -> tuple[Scan, Scan, NDArray[np.float64]]:
    """Return the MR, the PET and points of the brain in the PET's patient coordinates; the last few are kept."""
    mr_from_head = rigid_matrix((3.0, -4.0, 5.0), (4.0, -18.0, 22.0), np.zeros(3))
    truth = rigid_matrix(angles_deg, shift_mm, mr_from_head[:3, 3])
    pet_spacing_mm = FAST_PET_MM if mr_spacing_mm > 1 else (3.0, 2.0, 2.0)
    mr = make_mr(head(seed), mr_from_head, spacing_mm=mr_spacing_mm, seed=seed)
    pet = make_pet(head(seed), np.linalg.inv(truth) @ mr_from_head, spacing_mm=pet_spacing_mm, seed=seed)
    return mr, pet, move_points(pet.scan_from_head, head(seed).brain_points(BRAIN_POINTS))


def mean_tre_mm(found: NDArray[np.float64], truth: NDArray[np.float64], points_mm: NDArray[np.float64]) -> float:
    """Return the mean distance between where two transforms take the same points, mm."""
    apart = move_points(found, points_mm) - move_points(truth, points_mm)
    return float(np.linalg.norm(apart, axis=1).mean())


@dataclass(frozen=True)
class Peer:
    """A `[[peers]]` table, and a `[[destinations]]` one when it receives."""

    name: str
    ae_title: str
    port: int = 104
    may: tuple[str, ...] = ("store",)
    commitment: str = ""  # whom it is asked of to keep safe what this one receives


def make_config(
    folder: Path, peers: Iterable[Peer], port: int, sections: Mapping[str, Mapping[str, Any]] | None = None
) -> Path:
    """Write a configuration for a node on loopback with short periods, and return the file.

    Parameters
    ----------
    folder : Path
        The file goes here, the storage root into `storage/` below.
    peers : iterable of Peer
        Those that may `receive` are destinations.
    port : int
    sections : mapping, optional
        Further keys, or others than the ones below, by table.
    """
    tables: dict[str, dict[str, Any]] = {
        "node": {"ae_title": NODE_AE, "bind": LOOPBACK, "port": port, "storage_root": str(folder / "storage")},
        "pairing": {"series_quiet_period_s": 0.5, "study_quiet_period_s": 0.5},
        "jobs": {"retry_first_s": 0.5},
        "send": {"retry_first_s": 0.5, "retry_ceiling_s": 2.0, "timeout_s": 5.0},
        "limits": {"disk_reserve_bytes": 0, "shutdown_s": 5.0},
    }
    for name, keys in (sections or {}).items():
        tables.setdefault(name, {}).update(keys)
    lines = [_table(f"[{name}]", keys) for name, keys in tables.items()]
    for peer in peers:
        keys = {"name": peer.name, "ae_title": peer.ae_title, "host": LOOPBACK, "port": peer.port, "may": [*peer.may]}
        lines.append(_table("[[peers]]", keys))
        if "receive" in peer.may:
            lines.append(_table("[[destinations]]", {"peer": peer.name, "commitment": peer.commitment}))
    (folder / "storage").mkdir(parents=True, exist_ok=True)
    path = folder / "dicomnode.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _table(heading: str, keys: Mapping[str, Any]) -> str:
    # JSON's strings, numbers, booleans and flat lists are TOML too.
    return "\n".join([heading, *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""])


def dicomnode_command() -> list[str]:
    """Return the console script that stands beside this interpreter."""
    return [str(Path(sys.executable).with_name("dicomnode"))]


@dataclass(frozen=True)
class CommandResult:
    """How one run of the command ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output, parsed."""
        return json.loads(self.stdout)


def run_command(*arguments: str | Path, cwd: Path | None = None) -> CommandResult:
    """Run `dicomnode` with these arguments to its end."""
    done = subprocess.run(
        [*dicomnode_command(), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
        cwd=cwd,
    )
    return CommandResult(done.returncode, done.stdout, done.stderr)


class NodeProcess(Process):
    """`dicomnode serve` as a process; `port` answers once the `with` block is entered."""

    def __init__(self, config: Path, port: int, roles: Sequence[str] = ()) -> None:
        self.config = config
        self.port = port
        command = [*dicomnode_command(), "serve", "--config", str(config)]
        if roles:
            command += ["--roles", ",".join(roles)]
        super().__init__(command, config.with_name("node.log"), (port,))

    def list_rows(self, listing: str) -> list[dict[str, Any]]:
        """Return the rows of `series`, `pairs`, `jobs` or `outbox` as the database has them now."""
        with self._read() as connection:
            return [asdict(row) for row in LISTINGS[listing](connection)]

    def show_series(self, series_uid: str) -> dict[str, Any]:
        """Return one series' row, without whose it is."""
        with self._read() as connection:
            return asdict(fetch_series(connection, series_uid).row)

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        # The same rows as `dicomnode series list --json`, without a new interpreter for each look.
        database = open_database(load_settings(self.config).database_url)
        try:
            with database.read() as connection:
                yield connection
        finally:
            database.close()
