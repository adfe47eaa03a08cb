"""The scale benchmark: its sums, and that it measures a whole node.

Flow: tests.benchmarks.scale > [test_scale_benchmark]
Never: a comparison; `make bench` makes it.
"""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.scale import list_rows, measure_rate
from tests.builders import make_patient


def test_a_delay_beyond_the_goal_is_told_and_more_workers_stand_beside_one() -> None:
    median, longest, one, two = list_rows([9.0, 11.0, 15.5], {1: 200.0, 2: 300.0})

    assert (median.value, median.met) == (11.0, True)
    assert (longest.value, longest.met) == (15.5, False)
    assert (one.value, one.ratio, one.met) == (200.0, None, None)
    assert (two.peer, two.ratio) == ("1 worker 200", 1.5)


def test_pairs_go_through_a_whole_node_to_orthanc(tmp_path: Path) -> None:
    patients = [make_patient(tmp_path / f"patient-{seed}", seed) for seed in range(2)]

    assert 10 < measure_rate(tmp_path / "node", patients, workers=1) < 3600
