"""Nodes that meet a fault at given steps, lives that end there, and trouble that lasts until the node tells of it.

Flow: test_crash_matrix, test_housekeeping_crashes > [faults] > faulty_node
Never: a fault that came unseen: each one leaves a mark; trouble that is only told to the node: the disk has no room.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from dicomnode.cli.serve import EXIT_NOT_NOW
from dicomnode.steps import Step
from tests.builders import NodeProcess
from tests.conftest import REPOSITORY
from tests.waiting import wait_until

TURN, MADE, TOLD = "turn", ".made", ".told"  # marks beside and after those of the steps
FILL_BYTES = 65536
QUIET_TIMEOUT_S = 30.0  # until nobody reads or writes the database for a moment
LASTS_S = 0.2  # at least
LOOK_EVERY_S = 0.005


@contextmanager
def full_disk(database: Path) -> Iterator[Callable[[], None]]:
    """Use all room of a disk with a storage root and its SQLite database; give how to go on so.

    SQLite's log of writes has no room of its own, and a file that is removed frees none, as where the disk keeps
    snapshots; what is freed all the same is taken when what is given is called.
    """
    root = database.parent
    with closing(_connect(database)) as connection:
        wait_until(lambda: _empty_log(connection), QUIET_TIMEOUT_S, "SQLite's log of writes is empty")
    with TemporaryDirectory(dir=root.parent) as folder:
        files = (Path(place, name) for place, _, names in os.walk(root) for name in names if name.endswith(".dcm"))
        for number, path in enumerate(files):
            with suppress(FileNotFoundError):  # it was moved meanwhile
                Path(folder, str(number)).hardlink_to(path)
        with Path(folder, "filler").open("wb", buffering=0) as file:

            def take_room() -> None:
                with suppress(OSError):
                    while True:
                        file.write(bytes(FILL_BYTES))

            take_room()
            yield take_room


@contextmanager
def locked_database(database: Path) -> Iterator[Callable[[], None]]:
    """Hold SQLite's only write lock; there is nothing to do to go on so."""
    with closing(_connect(database)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield lambda: None


def find_open(output: str) -> str:
    """Return what keeps parts of a node from their work, as it said when that began, and no part is over it."""
    last: dict[str, str] = {}
    for line in output.splitlines():
        if part := re.search(r"node\.step_(?:failed|recovered) .*part=(\w+)", line):
            last[part[1]] = line
    return "\n".join(line for line in last.values() if "node.step_failed" in line)


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(database, isolation_level=None, timeout=QUIET_TIMEOUT_S)


def _empty_log(connection: sqlite3.Connection) -> bool:
    [(is_busy, _, _)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return not is_busy


@dataclass(frozen=True)
class Trouble:
    """What a node cannot do anything about, and its words for it, one of which it is to say."""

    make: Callable[[Path], AbstractContextManager[Callable[[], None]]]
    words: tuple[str, ...]


TROUBLES: Mapping[str, Trouble] = {
    "full disk": Trouble(full_disk, ("database or disk is full", "No space left on device", "bytes are free below")),
    "locked database": Trouble(locked_database, ("database is locked",)),
}


@dataclass(frozen=True)
class Faults:
    """What strikes the nodes of one configuration; `marks` is a folder, `database` their SQLite file."""

    config: Path
    port: int
    marks: Path
    database: Path

    def make_node(self, fault: str, steps: Iterable[Step], *flags: str) -> NodeProcess:
        """Return a node that will meet a fault at these steps."""
        node = NodeProcess(self.config, self.port)
        command = ["serve", "--config", str(self.config), *flags]
        node.command = [sys.executable, "-m", "tests.system.faulty_node", *command]
        node.cwd = REPOSITORY
        plan = {"fault": fault, "steps": [step.value for step in steps], "marks": str(self.marks)}
        node.environment["FAULT"] = json.dumps(plan)
        return node

    def start(self, node: NodeProcess) -> None:
        """Start a node, and again when it cannot now, as systemd does: a fault may come before its port opens."""
        while True:
            try:
                node.start()
            except AssertionError:
                if node.popen is None or node.popen.returncode != EXIT_NOT_NOW:
                    raise
            else:
                return

    def is_struck(self, step: Step) -> bool:
        """Say whether the fault has come."""
        return (self.marks / step.value).exists()

    def is_told(self, step: Step) -> bool:
        """Say whether the trouble after a step has come, was told of by the node, and is over."""
        return (self.marks / f"{step.value}{TOLD}").exists()

    @contextmanager
    def making(self, trouble: Trouble, steps: Iterable[Step], node: NodeProcess) -> Iterator[None]:
        """Make trouble after each of these steps of a node with `await_trouble`, until it says that there is."""
        is_over = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            making = threads.submit(self._make_all, trouble, frozenset(steps), node, is_over)
            try:
                yield
            finally:
                is_over.set()
            making.result()

    def _make_all(self, trouble: Trouble, steps: frozenset[Step], node: NodeProcess, is_over: threading.Event) -> None:
        while not is_over.wait(LOOK_EVERY_S):
            for step in steps:
                if self.is_struck(step) and not self.is_told(step):
                    self._make_one(trouble, step, node, is_over)

    def _make_one(self, trouble: Trouble, step: Step, node: NodeProcess, is_over: threading.Event) -> None:
        said_before = len(node.output())
        with trouble.make(self.database) as go_on:
            (self.marks / f"{step.value}{MADE}").touch()
            until = time.monotonic() + LASTS_S
            is_told = False
            while not (is_told and time.monotonic() > until):
                go_on()
                if is_over.wait(LOOK_EVERY_S):
                    return
                output = node.output()
                is_told = is_told or any(
                    word in output[said_before:] or word in find_open(output) for word in trouble.words
                )
        (self.marks / f"{step.value}{TOLD}").touch()
        (self.marks / TURN).unlink()

    def live_until(
        self, node: NodeProcess, step: Step, within_s: float, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Let a node live until it ends at a step, which may be before its port opens."""
        try:
            node.start()
            meanwhile()
            wait_until(lambda: not node.is_running(), within_s, f"it ends at {step.value}")
        except AssertionError:
            if node.is_running() or not self.is_struck(step):
                raise
        finally:
            node.kill()
        assert self.is_struck(step), node.output()
