"""The suite is the same list in every process: two share it, and refuse to begin where theirs differ."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

SEEDS = ("1", "2", "3", "4")  # of the order of sets of words, which is another in each process


def test_every_process_collects_the_same_tests_in_one_order() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    running = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in SEEDS
    ]
    collected = [[line for line in one.communicate()[0].splitlines() if "::" in line] for one in running]

    assert len(collected[0]) > 1000
    assert all(one == collected[0] for one in collected[1:])
