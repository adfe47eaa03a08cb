"""The page of the full run: tables of every method on every set, and the capture range as a plot.

Flow: run > [page] > docs/benchmarks/registration.md, capture-range.svg
Never: a figure typed by hand; the page is written whole, with its date and command.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from models.train.cases import PET_SHIFT_IN_VIEW_MM
from models.train.plot import Panel, Points, draw
from tests.benchmarks.page import show_row
from tests.benchmarks.registration.summary import Line, Outcome, list_lines, summarise

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "benchmarks"
COMMAND = 'FULL=1 make bench ARGS="registration"'
PLOT = "capture-range.svg"
TURNS_DEG = (0.0, 30.0, 60.0, 90.0, 120.0, 150.0, 180.0)
SHIFTS_MM = (0.0, 25.0, 50.0, 75.0, 100.0, 125.0, 150.0)
SHIFT_UP_TO_DEG = 60.0  # larger turns fail for another reason
HEAD = "| method | cases | median mm | 95 % mm | max mm | failures | accepted | wall s | CPU s | peak GB |"
TEXT = """# Registration: every method on the same cases

`{command}`, {dates}, {cores} cores ({machine}); {done} of {cases} cases of {source}, PET simulated.

Target registration error (TRE): the mean over points of the brain. A failure is more than 5 mm, or no answer; the
column "accepted" counts failures whose verdict was `accept`, which `default` alone can give. To another person's PET
every answer is a failure. Seconds are medians; the peak is the process', with both volumes in it. PET simulated from
the MR's own tissue flatters every method; what a real one adds or lacks is not in these figures. The verdict's gates
and coefficients were chosen by runs of these same people.

`paper` and `SIFT only` end with their last estimate; `features only` and `CNN only` look from turned starts where few
matches agree, and end with guided matching; `NMI only` has the node's climbs from two starts and no feature.

## Goals

| what | node | unit | peer | ratio | goal | met |
|---|---|---|---|---|---|---|
{goals}

## Capture range

Share of the uncropped cases that end under 5 mm, by the turn between PET and MR, and by the shift where the turn is at
most 60 degrees: how far the brain's middle lies from where the headers put it. Beyond {view:.0f} mm the field of view
moves with the head. Cases by turn: {turns}; by shift: {shifts}.

![Success against rotation and shift]({plot})

{tables}
"""


def write_page(folder: Path, outcomes: Sequence[Outcome], cases: int, source: str) -> None:
    """Write the page and its plot from what was measured so far of so many cases."""
    ours = [one for one in outcomes if one.method == outcomes[0].method]
    text = TEXT.format(
        command=COMMAND,
        dates=" and ".join(sorted({one.date for one in outcomes})),
        cores=os.cpu_count(),
        machine=platform.machine(),
        done=len(ours),
        cases=cases,
        source=source,
        plot=PLOT,
        tables="\n\n".join(make_tables(list_lines(outcomes))),
        goals="\n".join(map(show_row, summarise(outcomes))),
        view=PET_SHIFT_IN_VIEW_MM,
        turns=count_cases([at for at, _ in list_turns(ours)], TURNS_DEG, "degrees"),
        shifts=count_cases([at for at, _ in list_shifts(ours)], SHIFTS_MM, "mm"),
    )
    (folder / "registration.md").write_text(text, encoding="utf-8")
    (folder / PLOT).write_text(draw_capture_range(outcomes), encoding="utf-8")


def make_tables(lines: Sequence[Line]) -> list[str]:
    """Return a heading and a table for each set."""
    tables = []
    for kind in dict.fromkeys(line.kind for line in lines):
        rows = [make_table_row(line) for line in lines if line.kind == kind]
        tables.append("\n".join([f"## {kind}", "", HEAD, "|---" * HEAD.count(" | ") + "|---|", *rows]))
    return tables


def make_table_row(line: Line) -> str:
    """Return one method's row."""
    errors = (f"{value:.2f}" for value in (line.median_mm, line.p95_mm, line.max_mm))
    costs = (f"{line.wall_s:.1f}", f"{line.cpu_s:.1f}", f"{line.peak_bytes / 1e9:.2f}")
    cells = (line.method, str(line.cases), *errors, str(line.failures), str(line.accepted_failures), *costs)
    return "| " + " | ".join(cells) + " |"


def draw_capture_range(outcomes: Sequence[Outcome]) -> str:
    """Draw success against rotation and against shift, as SVG."""
    turns, shifts = list_turns(outcomes), list_shifts(outcomes)
    panels = [
        Panel("turn, degrees", TURNS_DEG, find_success(turns, TURNS_DEG)),
        Panel("shift, mm", SHIFTS_MM, find_success(shifts, SHIFTS_MM)),
    ]
    return draw("Cases under 5 mm", panels)


def list_turns(outcomes: Sequence[Outcome]) -> list[tuple[float, Outcome]]:
    """Return the uncropped cases, each with its turn in degrees."""
    return [(one.turn_deg, one) for one in outcomes if not (one.is_cut or one.is_wrong)]


def list_shifts(outcomes: Sequence[Outcome]) -> list[tuple[float, Outcome]]:
    """Return those of them that are turned little, each with its shift in mm."""
    return [(one.shift_mm, one) for turn_deg, one in list_turns(outcomes) if turn_deg <= SHIFT_UP_TO_DEG]


def count_cases(places: Sequence[float], edges: Sequence[float], unit: str) -> str:
    """Tell in words how many cases each bin holds."""
    counts = [(low, high, sum(low < at <= high for at in places)) for low, high in pairwise(edges)]
    return ", ".join(f"{low:.0f}-{high:.0f} {unit} {count}" for low, high, count in counts)


def find_success(cases: Sequence[tuple[float, Outcome]], edges: Sequence[float]) -> dict[str, Points]:
    """Return for each method the middle of each bin that holds a case, and the share that succeeds there."""
    lines: dict[str, Points] = {}
    for method in dict.fromkeys(one.method for _, one in cases):
        points = []
        for low, high in pairwise(edges):
            held = [one for at, one in cases if one.method == method and low < at <= high]
            if held:
                points.append(((low + high) / 2, sum(not one.is_failure for one in held) / len(held)))
        lines[method] = points
    return lines
