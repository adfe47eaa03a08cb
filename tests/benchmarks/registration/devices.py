"""The network and a whole registration on the CPU and, where there is one, on CUDA.

Flow: cases > [devices] > rows
Never: a CUDA figure from a machine without CUDA; what is missing there is said instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from models.train.cases import SETS
from registration.descriptors import Network
from registration.errors import DeviceError
from registration.pipeline import register
from tests.benchmarks.registration.cases import CaseId, People, draw_case
from tests.benchmarks.registration.methods import THREADS
from tests.benchmarks.rows import Row

PATCHES = 2048
RUNS = 3  # after one that warms up; the best counts


def compare_devices(people: People) -> Iterator[Row]:
    """Yield patches a second and seconds a registration on each device."""
    _, case = draw_case(CaseId(SETS[0], 0), people)
    patches = np.random.default_rng(0).random((PATCHES, 3, 64, 64), dtype=np.float32)
    for device in ("cpu", "cuda"):
        try:
            network = Network.load(device=device, threads=THREADS)
        except DeviceError as error:
            sys.stderr.write(f"not measured on {device}: {error}\n")
            continue
        rate = PATCHES / find_shortest(partial(network.describe, patches, is_moving=True))
        yield Row("registration", f"patches described, {device}", rate, "1/s", "", None, "", met=None)
        whole = find_shortest(partial(register, case.fixed, case.moving, network))
        yield Row("registration", f"one registration, {device}", whole, "s", "", None, "", met=None)


def find_shortest(run: Callable[[], object]) -> float:
    """Return the wall seconds of the shortest of several runs."""
    seconds = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
