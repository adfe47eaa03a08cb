"""`dicomnode serve` to which something happens the first time it reaches a step: run as `python -m`, with $FAULT.

Flow: test_crash_matrix, test_housekeeping_crashes > [faulty_node] > dicomnode.cli; worker processes import it again,
before anything of dicomnode
Never: another product than the one that is shipped, save for the registration: a stand-in behind the same worker
processes, that takes no time and finds the same transform each time.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import registration.pipeline
from dicomnode import steps
from dicomnode.database import engine
from tests.system.stand_in import stand_in

BUSY_TIMEOUT_S, LOCKED_S = 1.0, 1.5
FULL_WRITES = 3  # how many more of them the disk refuses
FULL_S, FILL_BYTES, FILL_EVERY_S = 1.5, 65536, 0.001


def kill_node() -> None:
    """End the node's own process, and with it, by its own doing, its workers."""
    if multiprocessing.parent_process() is None:
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()  # until the worker notices that its parent is gone


def kill_worker() -> None:
    """End this worker process."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate_node() -> None:
    """Ask the node to stop, and go on."""
    os.kill(os.getpid() if multiprocessing.parent_process() is None else os.getppid(), signal.SIGTERM)


def fill_disk() -> None:
    """Let the next flushes of this process, and writes that flush, fail as on a full disk."""
    left = [FULL_WRITES]
    flushes: dict[str, Callable[..., Any]] = {"fsync": os.fsync, "fdatasync": os.fdatasync, "pwritev": os.pwritev}

    def refuse(name: str, *arguments: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return flushes[name](*arguments)

    for name in flushes:
        setattr(os, name, partial(refuse, name))


def use_all_room() -> None:
    """Fill the disk below the storage root, and what is freed there, for longer than anybody tries once."""
    filler = Path(PLAN["database"]).with_name(f"filler-{time.monotonic_ns()}")

    def fill() -> None:
        until = time.monotonic() + FULL_S
        with filler.open("wb", buffering=0) as file:
            while time.monotonic() < until:
                try:
                    file.write(bytes(FILL_BYTES))
                except OSError:
                    is_full.set()
                    time.sleep(FILL_EVERY_S)
        filler.unlink()

    is_full = threading.Event()
    threading.Thread(target=fill, daemon=True).start()
    is_full.wait()


def lock_database() -> None:
    """Hold SQLite's only write lock for longer than anybody waits for it."""
    connection = sqlite3.connect(PLAN["database"], isolation_level=None, check_same_thread=False, timeout=LOCKED_S)
    connection.execute("BEGIN IMMEDIATE")
    threading.Timer(LOCKED_S, connection.close).start()


FAULTS: Mapping[str, Callable[[], None]] = {
    function.__name__: function
    for function in (kill_node, kill_worker, terminate_node, fill_disk, use_all_room, lock_database)
}
PLAN = json.loads(os.environ["FAULT"])  # fault, steps, marks (a folder), database


def reach(step: steps.Step, **_ids: Any) -> None:
    """Do what is planned, once for each step, however many processes and lives the node has."""
    if step.value not in PLAN["steps"]:
        return
    try:
        Path(PLAN["marks"], step.value).touch(exist_ok=False)
    except FileExistsError:
        return
    FAULTS[PLAN["fault"]]()


steps.reach = reach
engine.BUSY_TIMEOUT_S = BUSY_TIMEOUT_S
registration.pipeline.register = stand_in

if __name__ == "__main__":
    from dicomnode.cli import main

    sys.exit(main())
