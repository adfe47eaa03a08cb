"""The pages of full runs: what was measured, against whom, when, on what, and how busy it was.

Flow: __main__ > [page] > docs/benchmarks/
Never: a figure typed by hand; a page is written whole, with its date, machine and load.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.rows import Row

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
Load = tuple[float, float, float]
TEXT = """# {title}

`FULL=1 make bench ARGS="{group}"`, {date}, {cores} cores ({machine}). Load of the machine over 1, 5 and 15 minutes,
before the run: {before}; after it: {after}.

{words}

| what | node | unit | peer | ratio | goal | met |
|---|---|---|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Page:
    """What a group's page is called, and what its figures mean."""

    title: str
    words: str


PAGES: Mapping[str, Page] = {
    "ingest": Page(
        "Receiving: the node beside storescp and Orthanc",
        """MR slices of 256 x 256 (131 KB), Explicit VR Little Endian. The peers are DCMTK's storescp (`--fork`, PDUs
of 128 KiB), the same with each file flushed before it is closed (by a library that this benchmark builds),
and Orthanc with its default `SyncStorageArea`; all with TCP_NODELAY. Every round runs every case against
every SCP, in an order of its own; a figure is the median over the rounds, a ratio the median of the ratios
within a round. The time of a case ends when the last release is answered: by then the node has committed
its rows and moved its files. CPU is the SCP's, with its children's.""",
    ),
    "read": Page(
        "Reading a series: the node beside SimpleITK",
        """The same files, read in turn from memory; a figure is the median over the rounds, a ratio the median of the
ratios within a round. Memory is what a process holds at most while it reads, above what it held before, against
the volume in float32.""",
    ),
    "send": Page(
        "Sending: the node beside storescu",
        """MR slices of 256 x 256 (131 KB) to one storescp, tuned (TCP_NODELAY) and with Nagle's algorithm on; the
node's time ends when every row says `sent`. "After an outage" is 500 instances that waited an hour for a
destination that was down, against the same without. Every round runs both in an order of its own; a figure
is the median over the rounds, a ratio the median of the ratios within a round.""",
    ),
    "devices": Page(
        "The CPU and CUDA",
        """The patches are cut round key points of the first case's MR, which both networks describe; the registration
is of that case, by the profile `default`, with two threads for the network wherever it runs. A figure is the best
of three, after one run to warm up, but for the wall time and the peak of a process that registers once.""",
    ),
    "scale": Page(
        "The whole node: from a scanner to a PACS",
        """Synthetic patients (MR of 1 mm, PET of 2 x 2 x 3 mm) sent by storescu, registered by the profile `default`,
and their results sent to Orthanc.""",
    ),
}


def write_page(group: str, rows: Sequence[Row], load_before: Load, folder: Path = FOLDER) -> None:
    """Write the page of one group."""
    page = PAGES[group]
    text = TEXT.format(
        title=page.title,
        group=group,
        date=datetime.now(UTC).date().isoformat(),
        cores=os.cpu_count(),
        machine=platform.machine(),
        before=_show_load(load_before),
        after=_show_load(os.getloadavg()),
        words=page.words,
        rows="\n".join(map(show_row, rows)),
    )
    (folder / f"{group}.md").write_text(text, encoding="utf-8")


def show_row(row: Row) -> str:
    """Return a line of the table."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = {None: "", True: "yes", False: "no"}[row.met]
    return f"| {row.name} | {row.value:.3g} | {row.unit} | {row.peer} | {ratio} | {row.goal} | {met} |"


def _show_load(load: Load) -> str:
    return ", ".join(f"{value:.1f}" for value in load)
