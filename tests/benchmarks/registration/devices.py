"""The network and a registration of full size on the CPU and, where there is one, on CUDA.

Flow: cases > [devices] > rows
Never: a CUDA figure from a machine without CUDA; what is missing there is said instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from models.train.cases import SETS, Case
from registration.descriptors import Network
from registration.errors import DeviceError
from registration.pipeline import register
from registration.resample import Grid, resample
from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.benchmarks.registration.cases import CaseId, People, draw_case
from tests.benchmarks.registration.methods import THREADS
from tests.benchmarks.registration.summary import GOAL_BYTES, GOAL_S, GROUP, OURS
from tests.benchmarks.registration.worker import Worker
from tests.benchmarks.rows import Row

PATCHES = 2048
MR_SHAPE = (192, 256, 256)
FULL_SIZE = "MR of 192 x 256 x 256 mm, PET of 2 x 2 x 3 mm"
RUNS = 3  # after one that warms up; the best counts


def compare_devices(people: People) -> Iterator[Row]:
    """Yield patches a second and seconds a registration on each device."""
    case = draw_full_size(people)
    with Worker(OURS) as worker:
        alone = worker.measure(case.fixed, case.moving)
    yield Row(GROUP, f"{FULL_SIZE}, wall", alone.wall_s, "s", "", None, f"<= {GOAL_S:g} s", alone.wall_s <= GOAL_S)
    met = alone.peak_bytes <= GOAL_BYTES
    yield Row(GROUP, f"{FULL_SIZE}, peak", alone.peak_bytes / 1e9, "GB", "", None, f"<= {GOAL_BYTES / 1e9:g} GB", met)
    patches = np.random.default_rng(0).random((PATCHES, 3, 64, 64), dtype=np.float32)
    for device in ("cpu", "cuda"):
        try:
            network = Network.load(device=device, threads=THREADS)
        except DeviceError as error:
            sys.stderr.write(f"not measured on {device}: {error}\n")
            continue
        rate = PATCHES / find_shortest(partial(network.describe, patches, is_moving=True))
        yield Row(GROUP, f"patches described, {device}", rate, "1/s", "", None, "", met=None)
        whole = find_shortest(partial(register, case.fixed, case.moving, network))
        yield Row(GROUP, f"{FULL_SIZE}, {device}, shortest", whole, "s", "", None, "", met=None)


def draw_full_size(people: People) -> Case:
    """Return an easy case whose MR is as a scanner makes it: 1 mm voxels, 192 x 256 x 256 of them."""
    _, case = draw_case(CaseId(SETS[0], 0), people)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = 1.0
    affine[:3, 3] = case.fixed.centre_mm - (np.array(MR_SHAPE[::-1]) - 1) / 2
    affine[3, 3] = 1.0
    fixed = Volume(resample(case.fixed, Grid(affine, MR_SHAPE), RigidTransform.identity()), affine)
    return replace(case, fixed=fixed)


def find_shortest(run: Callable[[], object]) -> float:
    """Return the wall seconds of the shortest of several runs."""
    seconds = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
