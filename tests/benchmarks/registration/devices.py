"""The networks and a registration of full size on the CPU and, where there is one, on CUDA: rates, times, agreement.

Flow: cases > [devices] > rows
Never: a CUDA figure from a machine without CUDA; what is missing there is said instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.train.cases import SETS, Case
from registration.descriptors import Device, Network
from registration.errors import DeviceError
from registration.keypoints import find_fixed_points
from registration.patches import cut_patches, pad_for_patches
from registration.pipeline import register
from registration.preprocess import make_cube, make_cube_grid, prepare_fixed
from registration.problem import FIXED_POINTS
from registration.profiles import DEFAULT, PAPER, Profile
from registration.resample import Grid, resample
from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.benchmarks.registration.cases import CaseId, People, draw_case, find_unseen_people
from tests.benchmarks.registration.methods import THREADS
from tests.benchmarks.registration.summary import GOAL_BYTES, GOAL_S, OURS
from tests.benchmarks.registration.worker import Worker
from tests.benchmarks.rows import Row

T = TypeVar("T")
GROUP = "devices"
DEVICES: Sequence[Device] = ("cpu", "cuda")
PATCHES = 2048
MR_SHAPE = (192, 256, 256)
FULL_SIZE = "MR of 192 x 256 x 256 mm, PET of 2 x 2 x 3 mm, {}"
RUNS = 3  # after one that warms up; the best counts


def measure() -> Iterator[Row]:
    """Yield what a registration of full size takes, and on each device how fast it and the networks are, how alike."""
    person, case = draw_full_size(find_unseen_people())
    name = FULL_SIZE.format(person)
    with Worker(OURS) as worker:
        alone = worker.measure(case.fixed, case.moving)
    yield Row(GROUP, f"{name}, wall", alone.wall_s, "s", "", None, f"<= {GOAL_S:g} s", alone.wall_s <= GOAL_S)
    met = alone.peak_bytes <= GOAL_BYTES
    yield Row(GROUP, f"{name}, peak", alone.peak_bytes / 1e9, "GB", "", None, f"<= {GOAL_BYTES / 1e9:g} GB", met)
    devices = [*filter(is_here, DEVICES)]
    for profile in (DEFAULT, PAPER):
        yield from compare_networks(profile, cut_case(case, profile), devices)
    yield from compare_registrations(name, case, devices)


def is_here(device: Device) -> bool:
    """Whether the network runs there; says why not."""
    try:
        Network.load(device=device)
    except DeviceError as error:
        sys.stderr.write(f"not measured on {device}: {error}\n")
        return False
    return True


def cut_case(case: Case, profile: Profile) -> NDArray[np.float32]:
    """Return the patches round a case's key points, again and again until there are `PATCHES` of them."""
    fixed = prepare_fixed(case.fixed)
    cube = make_cube(fixed, make_cube_grid(fixed.centre_mm), RigidTransform.identity())
    points = find_fixed_points(cube, FIXED_POINTS, profile)
    patches = cut_patches(pad_for_patches(cube.array), points, profile.planes)
    return np.resize(patches, (PATCHES, *patches.shape[1:]))


def compare_networks(profile: Profile, patches: NDArray[np.float32], devices: Sequence[Device]) -> Iterator[Row]:
    """Yield patches a second on each device, and how far the last one's descriptors are from the first's."""
    described = []
    for device in devices:
        network = Network.load(profile.network, device=device, threads=THREADS)
        seconds, descriptors = find_shortest(partial(network.describe, patches, is_moving=True))
        rate = len(patches) / seconds
        yield Row(GROUP, f"patches described, {profile.network}, {device}", rate, "1/s", "", None, "", met=None)
        described.append(descriptors)
    if len(devices) > 1:
        apart = 1 - float((described[0] * described[-1]).sum(axis=1).min())
        yield Row(GROUP, f"cosine distance of both, {profile.network}, at most", apart, "", "", None, "", met=None)


def compare_registrations(name: str, case: Case, devices: Sequence[Device]) -> Iterator[Row]:
    """Yield seconds and error on each device, and how far apart the last answer is from the first's over the brain."""
    places = []
    for device in devices:
        network = Network.load(device=device, threads=THREADS)
        whole, registration = find_shortest(partial(register, case.fixed, case.moving, network))
        yield Row(GROUP, f"{name}, {device}, shortest", whole, "s", "", None, "", met=None)
        found = registration.fixed_from_moving
        yield Row(GROUP, f"{name}, {device}, error", case.tre_mm(found), "mm", "", None, "", met=None)
        places.append(found.apply(case.fixed_from_moving.inverse().apply(case.brain_mm)))
    if len(devices) > 1:
        apart = float(np.linalg.norm(places[-1] - places[0], axis=1).max())
        yield Row(GROUP, f"{name}, both answers apart, at most", apart, "mm", "", None, "", met=None)


def draw_full_size(people: People) -> tuple[str, Case]:
    """Return a person's name and an easy case of it, its MR as a scanner makes it: 192 x 256 x 256 voxels of 1 mm."""
    person, case = draw_case(CaseId(SETS[0], 0), people)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = 1.0
    affine[:3, 3] = case.fixed.centre_mm - (np.array(MR_SHAPE[::-1]) - 1) / 2
    affine[3, 3] = 1.0
    fixed = Volume(resample(case.fixed, Grid(affine, MR_SHAPE), RigidTransform.identity()), affine)
    return person, replace(case, fixed=fixed)


def find_shortest(run: Callable[[], T]) -> tuple[float, T]:
    """Return the wall seconds of the shortest of several runs, and what the last one gave."""
    seconds, result = [], run()
    for _ in range(RUNS):
        started = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result
