"""One measured figure, how it is shown, and the file all of them go to.

Flow: benchmarks > [rows] > benchmarks.json
Never: a figure that was not measured in this run.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path("benchmarks.json")
WIDE = 200  # characters of a line where nobody has a terminal
COLUMNS = ("group", "name", "value", "unit", "peer", "ratio", "goal", "met")


@dataclass(frozen=True)
class Row:
    """A figure of ours, a peer's in the same run where there is one, and what it should be."""

    group: str
    name: str
    value: float
    unit: str
    peer: str  # its name and figure, or empty
    ratio: float | None  # ours to the peer's
    goal: str
    met: bool | None  # None where there is no goal


def write_rows(rows: Sequence[Row]) -> None:
    """Print the table, and write the file below the current folder."""
    table = Table()
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_show(asdict(row)[column]) for column in COLUMNS))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}
    measured = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine}
    RESULTS.write_text(json.dumps({**measured, "rows": [asdict(row) for row in rows]}, indent=2), encoding="utf-8")


def _show(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
