"""`make bench`: runs the groups asked for, or all, prints a table and writes benchmarks.json; with FULL=1 their pages.

Flow: make bench > [__main__] > groups, page
Never: an exit code that says a goal was missed; a benchmark tells, a test judges.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping

from tests.benchmarks import read, scale, send
from tests.benchmarks.ingest import run as ingest
from tests.benchmarks.page import PAGES, write_page
from tests.benchmarks.registration import devices
from tests.benchmarks.registration import run as registration
from tests.benchmarks.rows import Row, write_rows

GROUPS: Mapping[str, Callable[[], Iterable[Row]]] = {
    "ingest": ingest.measure,
    "read": read.measure,
    "send": send.measure,
    "registration": registration.measure,
    "devices": devices.measure,
    "scale": scale.measure,
}


def main(asked: list[str]) -> int:
    """Run these groups, or all."""
    if unknown := [name for name in asked if name not in GROUPS]:
        sys.stderr.write(f"no group is named {unknown[0]!r}; groups: {', '.join(GROUPS)}\n")
        return 2
    rows: list[Row] = []
    for name in asked or GROUPS:
        load_before = os.getloadavg()
        measured = list(GROUPS[name]())
        if os.environ.get("FULL") == "1" and name in PAGES:
            write_page(name, measured, load_before)
        rows += measured
    write_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
