"""Reading a series: ours against SimpleITK, from the same files in turn, and how much memory it takes.

Flow: series_files > [read] > rows
Never: a reader that is timed with a cold disk; another result than a volume of float32 values with its place.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydicom
import SimpleITK

from dicomnode.volumes.series import load_series
from tests.benchmarks.rows import Row
from tests.dicomnode.series_files import OBLIQUE, SeriesSpec, write_series

sitk: Any = SimpleITK  # untyped
ROUNDS, FULL_ROUNDS = 5, 15
PRIVATE_ELEMENTS, PRIVATE_BYTES = 100, 120  # of a real uMR 770's header: 136 elements, 18 KB
GOAL_TIME = 1.0
GOAL_MEMORY = 3.0
# Run in a process of its own: what it holds at most, above what it held before, is the reading's. Linux counts a
# process's peak (VmHWM) from its parent's on, unless it is told to start again.
MEASURE_MEMORY = """
import sys
from pathlib import Path
from dicomnode.volumes.series import load_series
def read_kibibytes(name):
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0])
paths = sorted(Path(sys.argv[1]).iterdir())
Path("/proc/self/clear_refs").write_text("5")
before = read_kibibytes("VmRSS")
series = load_series(paths)
print((read_kibibytes("VmHWM") - before) * 1024, series.volume.array.nbytes)
"""


def as_a_scanner_writes(header: pydicom.Dataset, _k: int) -> None:
    """Add the private elements that make most of a real header."""
    block = header.private_block(0x0071, "Bench Group", create=True)
    for number in range(PRIVATE_ELEMENTS):
        block.add_new(number, "LO", "x" * (PRIVATE_BYTES // 2))


SERIES: Mapping[str, SeriesSpec] = {
    "MR 160 x 512 x 460": SeriesSpec(
        shape=(160, 512, 460), orientation=OBLIQUE, spacing_mm=(1.0, 0.5, 0.5), change=as_a_scanner_writes
    ),
    "PET 258 x 256 x 256": SeriesSpec(
        modality="PT", shape=(258, 256, 256), spacing_mm=(1.0, 1.2, 1.2), change=as_a_scanner_writes
    ),
}


def measure() -> Iterator[Row]:
    """Yield the rows of this group; more rounds with FULL=1."""
    rounds = FULL_ROUNDS if os.environ.get("FULL") == "1" else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        for name, spec in SERIES.items():
            paths = write_series(Path(folder) / name, spec)
            yield measure_time(name, paths, rounds)
            yield measure_memory(name, paths[0].parent)


def measure_time(name: str, paths: Sequence[Path], rounds: int) -> Row:
    """Read by both in turn; the ratio is the median of the rounds'."""
    pairs = [(_seconds(load_series, paths), _seconds(read_by_simpleitk, paths)) for _ in range(rounds + 1)][1:]
    ours, theirs = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    return Row("read", name, ours, "s", f"SimpleITK {theirs:.3g}", ratio, f"<= {GOAL_TIME:g}x", ratio <= GOAL_TIME)


def measure_memory(name: str, folder: Path) -> Row:
    """Read in a process of its own; the ratio is to the float32 volume."""
    taken_bytes, volume_bytes = find_memory(folder)
    ratio = taken_bytes / volume_bytes
    mebibytes, peer = taken_bytes / 2**20, f"float32 {volume_bytes / 2**20:.3g}"
    return Row("read", f"{name}, memory", mebibytes, "MiB", peer, ratio, f"<= {GOAL_MEMORY:g}x", ratio <= GOAL_MEMORY)


def find_memory(folder: Path) -> tuple[int, int]:
    """Return what reading a series took at most, and what its volume takes, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY, str(folder)], capture_output=True, text=True, check=True
    )
    taken, volume = done.stdout.split()[-2:]
    return int(taken), int(volume)


def read_by_simpleitk(paths: Sequence[Path]) -> Any:
    """Read as its users do: the folder's files in GDCM's order, as float32."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(paths[0].parent))
    return sitk.ReadImage(names, sitk.sitkFloat32)


def _seconds(read: Callable[[Sequence[Path]], object], paths: Sequence[Path]) -> float:
    started = time.perf_counter()
    read(paths)
    return time.perf_counter() - started
