"""Reading stays within its memory, and the benchmark that says how fast it is runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from tests.benchmarks.read import GOAL_MEMORY, SERIES, find_memory, measure_time
from tests.dicomnode.enhanced_files import make_enhanced
from tests.dicomnode.series_files import make_series, write_files, write_series

MR = SERIES["MR 160 x 512 x 460"]


def single_frames() -> Sequence[pydicom.Dataset]:
    return make_series(MR)


def one_object() -> Sequence[pydicom.Dataset]:
    return [make_enhanced(make_series(MR)[::-1])]


def turned_round() -> Sequence[pydicom.Dataset]:
    slices = make_series(MR)
    for header in slices:
        header.PhotometricInterpretation = "MONOCHROME1"
    return slices


@pytest.mark.parametrize("make", [single_frames, one_object, turned_round])
def test_a_large_mr_takes_at_most_three_times_its_volume(
    tmp_path: Path, make: Callable[[], Sequence[pydicom.Dataset]]
) -> None:
    write_files(tmp_path, make())
    taken_bytes, volume_bytes = find_memory(tmp_path)
    assert volume_bytes == 160 * 512 * 460 * 4
    assert volume_bytes < taken_bytes <= GOAL_MEMORY * volume_bytes


@pytest.mark.parametrize("name", SERIES)
def test_the_benchmark_measures_both_readers(tmp_path: Path, name: str) -> None:
    small = replace(SERIES[name], shape=(20, 32, 30), spacing_mm=(5.0, 3.0, 3.0))
    row = measure_time(name, write_series(tmp_path, small), rounds=1)
    assert (row.group, row.name, row.unit) == ("read", name, "s")
    assert row.value > 0
    assert row.ratio is not None
    assert row.met == (row.ratio <= 1)
    assert row.peer.startswith("SimpleITK ")
