"""Whatever happens to the node at any step of a deletion: it is ended, and no file is left without a row.

Flow: Step > [test_housekeeping_crashes] > faulty_node
Never: a list of steps: the product's own table says where to strike.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicomnode.database.deletions import fetch_deletions
from dicomnode.database.engine import open_database
from dicomnode.database.marks import set_mark
from dicomnode.database.migrate import migrate
from dicomnode.housekeeping.retention import CLOCK
from dicomnode.settings_file import load_settings
from dicomnode.steps import IN_HOUSEKEEPING, Step
from tests.builders import NodeProcess, make_config
from tests.house import DAY_S, House
from tests.peers_programs import free_port
from tests.system.faults import TROUBLES, Faults
from tests.waiting import wait_until

WITHIN_S = 60.0
KEPT = {"days": 1.0}
SECTIONS = {f"retention.{kind}": KEPT for kind in ("paired", "unpaired", "outputs")} | {
    "retention": {"hold_hours": 1.0}
}
DELETIONS = 4  # of what `fill` brings: two series that are paired, what was made of them, one that is not
STEPS = sorted(IN_HOUSEKEEPING, key=lambda step: step.value)


class Bench:
    """A storage root whose nodes delete what is older than a day, as soon as they look."""

    def __init__(self, folder: Path, house: House, config: Path, port: int) -> None:
        self.house = house
        self.faults = Faults(config, port, folder / "marks", house.root / "dicomnode.sqlite")
        self.faults.marks.mkdir()

    def fill(self, number: int) -> None:
        """Bring what is old enough to go."""
        self.house.finish(self.house.pair(number)[0])
        self.house.deliver()
        self.house.settle(self.house.receive("MR", 500 + number), "unpaired")

    def make_node(self, fault: str, steps: Iterable[Step]) -> NodeProcess:
        """Return a node that will meet a fault at these steps; the clock was seen a moment ago, and is believed."""
        with self.house.database.write() as connection:
            set_mark(connection, CLOCK, at=time.time(), until=0.0)
        return self.faults.make_node(fault, steps, "--roles", "receive")

    def live_to_the_end(self, node: NodeProcess, deletions: int) -> None:
        """Let a node that runs delete all; then no file is left, and none was forgotten."""

        def is_done() -> bool:
            with self.house.database.read() as connection:
                return [one.done_at is not None for one in fetch_deletions(connection)] == [True] * deletions

        wait_until(is_done, WITHIN_S, f"all is deleted; so far {node.output()[-3000:]}")
        assert self.house.files() == self.house.named_files() == set()


@contextmanager
def bench_in(folder: Path, root: Path) -> Iterator[Bench]:
    port = free_port()
    root.mkdir(exist_ok=True)
    config = make_config(folder, [], port, {**SECTIONS, "node": {"storage_root": str(root)}})
    url = load_settings(config).database_url
    migrate(url)
    database = open_database(url)
    with House(root, database, now=time.time() - 9 * DAY_S) as house:
        yield Bench(folder, house, config, port)
    database.close()


@pytest.mark.parametrize("fault", ["kill_node", "terminate_node"])
def test_a_node_that_ends_at_any_step_of_a_deletion_leaves_no_file_without_a_row(tmp_path: Path, fault: str) -> None:
    with bench_in(tmp_path, tmp_path / "storage") as bench:
        for number, step in enumerate(STEPS, start=1):
            bench.fill(number)
            bench.faults.live_until(bench.make_node(fault, [step]), step, WITHIN_S)
            assert bench.house.files() <= bench.house.named_files()

        with bench.make_node(fault, []) as node:
            bench.live_to_the_end(node, DELETIONS * len(STEPS))


@pytest.mark.parametrize("name", TROUBLES)
def test_a_full_disk_and_a_locked_database_at_any_step_of_a_deletion_are_told_of_and_delay_it(
    tmp_path: Path, disk: Path, name: str
) -> None:
    with bench_in(tmp_path, disk / "storage") as bench:
        bench.fill(1)
        node = bench.make_node("await_trouble", STEPS)
        try:
            with bench.faults.making(TROUBLES[name], STEPS, node):
                bench.faults.start(node)
                bench.live_to_the_end(node, DELETIONS)
            assert [step for step in STEPS if not bench.faults.is_told(step)] == []
        finally:
            node.stop()
