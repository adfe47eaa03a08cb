"""The machine's clock is put back, or forward, under a node that runs: its steps go on.

Flow: tests/native/moved_clock > `dicomnode serve` > [test_moved_clock]
Never: the clock of this machine; one that only a part of the process sees.
"""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

import pytest

from tests.builders import NodeProcess, Peer, make_config
from tests.peers_programs import free_port
from tests.raw_scu import RawScu
from tests.receiving import MR, ROOT, encode, make_data_set
from tests.shims import build_shim
from tests.waiting import wait_until

DAY_S = 86400
WITHIN_S = 30.0


class MovedClock:
    """A wall clock of its own for a process that is started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "moved_clock"
        self.move(0)
        self.environment = {"LD_PRELOAD": str(build_shim("moved_clock", folder)), "MOVED_CLOCK": str(self._file)}

    def move(self, by_s: int) -> None:
        """Put it so many seconds before or after this machine's own, at once."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("=q", by_s))


def push_series(node: NodeProcess, number: int) -> str:
    """Send an MR of one slice, and return its series' UID."""
    uid = f"{ROOT}.{number}"
    data_set = make_data_set(StudyInstanceUID=f"{uid}.0", SeriesInstanceUID=uid, SOPInstanceUID=f"{uid}.1")
    with RawScu(node.port) as scanner:
        assert scanner.store(MR, f"{uid}.1", encode(data_set)) == 0x0000
    return uid


def is_judged(node: NodeProcess, series_uid: str) -> bool:
    """Say whether a series was found to be too thin, which is not done while it may grow."""
    return bool(node.show_series(series_uid)["state"] == "refused")


@pytest.mark.parametrize("by_s", [pytest.param(-DAY_S, id="back"), pytest.param(100 * DAY_S, id="forward")])
def test_a_clock_that_is_moved_holds_up_no_step(tmp_path: Path, by_s: int) -> None:
    port, clock = free_port(), MovedClock(tmp_path)
    node = NodeProcess(make_config(tmp_path, [Peer("scanner", "SCANNER")], port), port, ["receive", "pair", "send"])
    node.environment |= clock.environment
    with node:
        for number, moved_s in enumerate((0, by_s, 0), start=1):
            clock.move(moved_s)
            judged = partial(is_judged, node, push_series(node, number))
            wait_until(judged, WITHIN_S, f"a series that comes at {moved_s:+} s is judged")
