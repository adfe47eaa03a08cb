"""The page of the full run.

Flow: run > [page] > docs/benchmarks/ingest.md
Never: a figure typed by hand; the page is written whole, with its date, machine and load.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.rows import Row

PAGE = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "ingest.md"
COMMAND = 'FULL=1 make bench ARGS="ingest"'
HEAD = "| what | node | unit | peer | ratio | goal | met |\n|---|---|---|---|---|---|---|"
TEXT = """# Receiving: the node beside storescp and Orthanc

`{command}`, {date}, {cores} cores ({machine}). Load of the machine over 1, 5 and 15 minutes, before
the run: {before}; after it: {after}.

MR slices of 256 x 256 (131 KB), Explicit VR Little Endian. The peers are DCMTK's storescp (`--fork`, PDUs of 128 KiB),
the same with each file flushed before it is closed (by a library that this benchmark builds), and Orthanc with its
default `SyncStorageArea`; all with TCP_NODELAY. Every round runs every case against every SCP, in an order of its own;
a figure is the median over the rounds, a ratio the median of the ratios within a round. The time of a case ends when
the last release is answered: by then the node has committed its rows and moved its files. CPU is the SCP's, with its
children's. {count} rounds.

{head}
{rows}
"""


def write_page(rows: Sequence[Row], load_before: tuple[float, float, float], rounds: int) -> None:
    """Write the page."""
    text = TEXT.format(
        command=COMMAND,
        date=datetime.now(UTC).date().isoformat(),
        cores=os.cpu_count(),
        machine=platform.machine(),
        before=_show_load(load_before),
        after=_show_load(os.getloadavg()),
        head=HEAD,
        count=rounds,
        rows="\n".join(map(show_row, rows)),
    )
    PAGE.write_text(text, encoding="utf-8")


def show_row(row: Row) -> str:
    """Return a line of the table."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = {None: "", True: "yes", False: "no"}[row.met]
    return f"| {row.name} | {row.value:.3g} | {row.unit} | {row.peer} | {ratio} | {row.goal} | {met} |"


def _show_load(load: tuple[float, float, float]) -> str:
    return ", ".join(f"{value:.1f}" for value in load)
