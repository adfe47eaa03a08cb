"""Nodes that meet a fault at given steps, and lives that end there.

Flow: test_crash_matrix, test_housekeeping_crashes > [faults] > faulty_node
Never: a fault that came unseen: each one leaves a mark.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dicomnode.cli.serve import EXIT_NOT_NOW
from dicomnode.steps import Step
from tests.builders import NodeProcess
from tests.conftest import REPOSITORY
from tests.waiting import wait_until


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
        node.environment["FAULT"] = json.dumps({**plan, "database": str(self.database)})
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
