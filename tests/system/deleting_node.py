"""Housekeeping in a process of its own that is killed at a step: run as `python -m`, with $FAULT.

Flow: test_housekeeping_crashes > [deleting_node] > dicomnode.housekeeping
Never: another product than the one that is shipped.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from dicomnode import steps

STEP = os.environ["FAULT"]


def reach(step: steps.Step, **_ids: object) -> None:
    """End this process as power would, at the step that is planned."""
    if step.value == STEP:
        os.kill(os.getpid(), signal.SIGKILL)


steps.reach = reach

if __name__ == "__main__":
    from dicomnode.database.engine import open_database
    from dicomnode.housekeeping.service import HousekeepingService
    from dicomnode.settings_file import load_settings

    settings = load_settings(Path(sys.argv[1]))
    database = open_database(settings.database_url)
    hours = 0.0

    def wall() -> float:
        """Return the time, some hours further at each look."""
        return time.time() + hours * 3600.0

    def monotonic() -> float:
        """Return the same time, from another beginning."""
        return time.monotonic() + hours * 3600.0

    service = HousekeepingService(settings, database, wall, monotonic)
    for _ in range(30):
        service.step()
        hours += 2.0
    database.close()
