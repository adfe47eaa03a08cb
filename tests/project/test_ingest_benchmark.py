"""The ingest benchmark's sums: ratios of one round, goals of what flushes; and that every sender meets every SCP.

Flow: tests.benchmarks.ingest > [test_ingest_benchmark]
Never: a comparison; `make bench` makes it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks.ingest.figures import (
    CASES,
    EVERY,
    Case,
    Measured,
    find_share,
    list_rows,
    make_beset_row,
    make_memory_row,
    make_recovery_row,
)
from tests.benchmarks.ingest.recovery import ASSOCIATIONS, Recovery
from tests.benchmarks.ingest.run import Extent, measure_all
from tests.benchmarks.ingest.scps import NODE, ORTHANC, STORESCP, STORESCP_FLUSHED
from tests.benchmarks.page import show_row
from tests.benchmarks.rows import Row

ONE = next(case for case in CASES if case.associations == 1 and case.has_goal)


def measured(*rates: float, cpu_s: float = 1.0) -> list[Measured]:
    return [Measured(rate, cpu_s, (0.001, 0.002), 90.0) for rate in rates]


def rows_of(found: dict[tuple[Case, str], list[Measured]], peer: str) -> dict[str, Row]:
    return {row.name: row for row in list_rows(found) if row.peer.startswith(f"{peer} ") and "+" not in row.peer}


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    found = {(ONE, NODE): measured(300.0, 900.0, 500.0, cpu_s=0.5)}
    found |= {(ONE, peer): measured(100.0, 900.0, 100.0) for peer in EVERY[1:]}
    rows = rows_of(found, ORTHANC)
    assert (rows[ONE.name].value, rows[ONE.name].ratio) == (500.0, 3.0)
    assert (rows[ONE.name].goal, rows[ONE.name].met) == (">= 3x", True)
    cpu = rows[f"{ONE.name}, CPU of 1000"]
    assert (cpu.ratio, cpu.goal, cpu.met) == (0.5, "<= 0.4x", False)


def test_a_peer_that_was_given_no_tick_of_the_clock_has_no_ratio() -> None:
    found = {(ONE, name): measured(100.0, cpu_s=0.5 if name == NODE else 0.0) for name in EVERY}
    row = rows_of(found, ORTHANC)[f"{ONE.name}, CPU of 1000"]
    assert (row.ratio, row.met) == (None, None)


def test_a_peer_that_flushes_nothing_is_no_goal() -> None:
    found = {(ONE, name): measured(100.0) for name in EVERY}
    assert {row.goal for row in rows_of(found, STORESCP).values()} == {""}
    flushed = [row for row in list_rows(found) if row.peer.startswith(STORESCP_FLUSHED) and row.name == ONE.name]
    assert [(row.goal, row.met) for row in flushed] == [(">= 1.1x", False)]


@pytest.mark.parametrize(("percent", "value"), [(1, 1.0), (50, 50.0), (99, 99.0), (100, 100.0)])
def test_a_share_is_one_of_the_values(percent: int, value: float) -> None:
    assert find_share([float(number) for number in range(1, 101)], percent) == value


def test_every_number_of_associations_and_every_sender_is_measured() -> None:
    assert {case.associations for case in CASES if case.has_goal} == {1, 4, 16}
    assert {case.sender for case in CASES} == {"raw", "storescu", "dcmsend"}
    assert {64, 2000} <= {case.count for case in CASES}


def test_memory_has_a_goal_and_recovery_its_clean_start() -> None:
    (row, _) = make_memory_row({NODE: 151.0, STORESCP: 40.0, STORESCP_FLUSHED: 40.0}, 100)
    assert (row.goal, row.met) == ("<= 150 MB", False)
    beset = make_beset_row([(70.0, 100.0), (90.0, 100.0), (85.0, 110.0)])
    assert (beset.value, beset.peer, beset.goal, beset.met) == (85.0, "alone 100", ">= 0.8x", False)
    assert make_beset_row([(90.0, 100.0)]).met
    recovery = make_recovery_row(Recovery(500, 2.0, 3.0))
    assert show_row(recovery) == (
        "| start after a crash with 500 instances without rows | 3 | s | a clean start 2 | 1.50 |  |  |"
    )


def test_every_sender_is_measured_against_every_peer() -> None:
    cases = tuple(replace(case, count=2 * case.associations) for case in CASES if case.associations == 4)
    assert {case.sender for case in cases} == {case.sender for case in CASES}
    rows = list(measure_all(Extent(1, cases, held=5, beset_by=4, turns=1)))

    assert all(row.value > 0 for row in rows if row.unit == "instances/s")
    rates = {(row.name, peer) for row in rows for peer in EVERY if row.peer.startswith(f"{peer} ")}
    assert {(case.name, peer) for case in cases for peer in case.scps[1:]} <= rates
    (held, *_), beset, recovered = rows[-4:-2], rows[-2], rows[-1]
    assert (held.name, held.unit) == ("5 associations held, PSS", "MB")
    assert (beset.name, beset.unit) == ("1 association beset by 200 half-open peers", "instances/s")
    assert recovered.name == f"start after a crash with {ASSOCIATIONS} instances without rows"
