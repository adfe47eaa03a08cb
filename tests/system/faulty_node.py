"""`dicomnode serve` to which something happens the first time it reaches a step: run as `python -m`, with $FAULT.

Flow: test_crash_matrix, test_housekeeping_crashes > [faulty_node] > dicomnode.cli; worker processes import it again,
before anything of dicomnode
Never: another product than the one that is shipped, save for the registration: a stand-in behind the same worker
processes, that takes no time and finds the same transform each time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import registration.pipeline
from dicomnode import steps
from dicomnode.database import engine
from tests.system.stand_in import stand_in
from tests.waiting import wait_until

BUSY_TIMEOUT_S = 1.0
TROUBLE_TIMEOUT_S, LOOK_EVERY_S = 30.0, 0.002
TURN, MADE = "turn", ".made"  # marks beside those of the steps; `faults` makes and takes them too


def kill_node(_step: steps.Step) -> None:
    """End the node's own process, and with it, by its own doing, its workers."""
    if multiprocessing.parent_process() is None:
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()  # until the worker notices that its parent is gone


def kill_worker(_step: steps.Step) -> None:
    """End this worker process."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate_node(_step: steps.Step) -> None:
    """Ask the node to stop, and go on."""
    os.kill(os.getpid() if multiprocessing.parent_process() is None else os.getppid(), signal.SIGTERM)


def await_trouble(step: steps.Step) -> None:
    """Go on once there is the trouble that `faults` makes after this step."""
    made = Path(PLAN["marks"], step.value + MADE)
    wait_until(made.exists, TROUBLE_TIMEOUT_S, f"there is trouble after {step.value}", LOOK_EVERY_S)


FAULTS: Mapping[str, Callable[[steps.Step], None]] = {
    function.__name__: function for function in (kill_node, kill_worker, terminate_node, await_trouble)
}
PLAN = json.loads(os.environ["FAULT"])  # fault, steps, marks (a folder)


def reach(step: steps.Step, **_ids: Any) -> None:
    """Do what is planned, once for each step, however many processes and lives the node has."""
    if step.value not in PLAN["steps"]:
        return
    strike = FAULTS[PLAN["fault"]]
    if _take_turn(step) if strike is await_trouble else _leave_mark(step.value):
        strike(step)


def _take_turn(step: steps.Step) -> bool:
    """Mark a step unless there is trouble after another: it has its turn when it is reached again."""
    if not _leave_mark(TURN):
        return False
    if not _leave_mark(step.value):
        Path(PLAN["marks"], TURN).unlink()
        return False
    return True


def _leave_mark(name: str) -> bool:
    """Leave a mark; False where it is there already."""
    try:
        Path(PLAN["marks"], name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


steps.reach = reach
engine.BUSY_TIMEOUT_S = BUSY_TIMEOUT_S
registration.pipeline.register = stand_in

if __name__ == "__main__":
    from dicomnode.cli import main

    sys.exit(main())
