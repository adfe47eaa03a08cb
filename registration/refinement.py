"""Polish of a rigid transform by normalised mutual information: Powell's method over six parameters.

Flow: pipeline > [refinement] > similarity
Never: a solution below the overlap guard; a random draw.

Sources: Powell 1964, doi:10.1093/comjnl/7.2.155; Brent 1973, chapter 5 (parabolic steps).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.similarity import Comparison, measure
from registration.transforms import RigidTransform, rotation_about

RADIUS_MM = 70.0  # of a head: an angle times it is the shift at the brain's surface, so all six steps are in mm
GOLDEN = 0.3819660113
LARGEST_BRACKET = 12  # times the first step is doubled at most

Function = Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True)
class Search:
    """How far and how finely to look: first step and stop in mm, sweeps over all directions at most."""

    step_mm: float
    stop_mm: float
    sweeps: int


COARSE = Search(step_mm=8.0, stop_mm=0.6, sweeps=6)
QUICK = Search(step_mm=8.0, stop_mm=1.0, sweeps=3)
FINE = Search(step_mm=1.5, stop_mm=0.2, sweeps=3)
SETTLE_MM = (0.6, 1.2)  # apart, where the nearer ones show no top
LONGEST_SETTLE = 3.0  # times that


def refine(
    comparison: Comparison, fixed_from_moving: RigidTransform, centre_mm: NDArray[np.float64], search: Search
) -> tuple[RigidTransform, float]:
    """Climb to the nearest top of the normalised mutual information.

    Parameters
    ----------
    comparison : Comparison
    fixed_from_moving : RigidTransform
        Where to start.
    centre_mm : (3,) float64, fixed LPS mm
        The middle of the head, round which angles are taken.
    search : Search

    Returns
    -------
    fixed_from_moving : RigidTransform
    similarity : float
        Not lower than at the start.
    """
    moving_from_fixed, similarity = climb_from(comparison, fixed_from_moving.inverse().matrix, centre_mm, search)
    return RigidTransform.from_matrix(moving_from_fixed).inverse(), similarity


def climb_from(
    comparison: Comparison, moving_from_fixed: NDArray[np.float64], centre_mm: NDArray[np.float64], search: Search
) -> tuple[NDArray[np.float64], float]:
    """Climb as `refine` from a (4, 4) matrix, which may mirror; returns `moving_from_fixed` and the similarity."""
    pose = _poses_round(moving_from_fixed, centre_mm)
    best, value = minimise(lambda steps_mm: -measure(comparison, pose(steps_mm)), np.zeros(6), search)
    return pose(best), -value


def settle(
    comparison: Comparison, fixed_from_moving: RigidTransform, centre_mm: NDArray[np.float64], threads: int
) -> RigidTransform:
    """Step from next to a top to where the quadratic through the 28 poses around is highest.

    Where it has no top, or the volumes get no more alike there, poses further off are tried, and at last the pose is
    kept as it is. Arguments as `refine`'s.
    """
    pose = _poses_round(fixed_from_moving.inverse().matrix, centre_mm)
    for around_mm in SETTLE_MM:
        top = find_top(lambda step: measure(comparison, pose(step)), around_mm, threads)
        if top is not None:
            return RigidTransform.from_matrix(pose(top)).inverse()
    return fixed_from_moving


def find_top(function: Function, around: float, threads: int) -> NDArray[np.float64] | None:
    """Return where the quadratic through six parameters' 28 values around 0 is highest, if that is higher than at 0."""
    axes = around * np.eye(6)
    pairs = list(itertools.combinations(range(6), 2))
    steps = [np.zeros(6), *axes, *-axes, *(axes[m] + axes[n] for m, n in pairs)]
    with ThreadPoolExecutor(threads) as pool:
        values = np.array(list(pool.map(function, steps)))
    here, up, down, both = values[0], values[1:7], values[7:13], values[13:]
    slope = (up - down) / 2
    curve = np.diag(up + down - 2 * here)
    for (m, n), value in zip(pairs, both, strict=True):
        curve[m, n] = curve[n, m] = value - up[m] - up[n] + here
    if np.linalg.eigvalsh(curve)[-1] >= 0:
        return None
    step = -np.linalg.solve(curve, slope)
    step *= around * min(1.0, LONGEST_SETTLE / float(np.linalg.norm(step)))
    return step if function(step) > here else None


def _poses_round(
    start: NDArray[np.float64], centre_mm: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return what turns six steps in mm, three turns about the centre and three shifts, into moving_from_fixed."""

    def moving_from_fixed(steps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        rotation = rotation_about(steps_mm[:3] / RADIUS_MM)
        step = np.eye(4)
        step[:3, :3] = rotation
        step[:3, 3] = centre_mm + steps_mm[3:] - rotation @ centre_mm
        return np.asarray(start @ step)

    return moving_from_fixed


def minimise(function: Function, start: NDArray[np.float64], search: Search) -> tuple[NDArray[np.float64], float]:
    """Minimise a function of n parameters by Powell's method; returns where and how low."""
    directions = list(np.eye(len(start)))
    point, value = start.copy(), function(start)
    step_mm = search.step_mm
    for _ in range(search.sweeps):
        before, value_before = point, value
        falls = []
        for direction in directions:
            moved, lower = minimise_along(function, (point, value), direction, step_mm)
            falls.append(value - lower)
            point, value = moved, lower
        shift = point - before
        length = float(np.linalg.norm(shift))
        if length > search.stop_mm:
            point, value = minimise_along(function, (point, value), shift / length, length / 2)
            if max(falls) > 0.2 * (value_before - value):
                directions[int(np.argmax(falls))] = shift / length
        if length < search.stop_mm and step_mm <= 4 * search.stop_mm:
            break
        step_mm = max(2 * search.stop_mm, min(step_mm / 2, length))
    return point, value


def minimise_along(
    function: Function, start: tuple[NDArray[np.float64], float], direction: NDArray[np.float64], step_mm: float
) -> tuple[NDArray[np.float64], float]:
    """Minimise along a line from a point with its value: bracket by doubling, then three parabolic steps."""
    point, value = start
    known = {0.0: value}

    def at(distance: float) -> float:
        if distance not in known:
            known[distance] = function(point + distance * direction)
        return known[distance]

    sign = 1.0 if at(step_mm) <= at(-step_mm) else -1.0
    reach = step_mm
    if at(sign * reach) < value:
        for _ in range(LARGEST_BRACKET):
            if at(sign * 2 * reach) >= at(sign * reach):
                break
            reach *= 2
    for _ in range(3):
        at(_parabola(known))
    best = min(known, key=lambda distance: (known[distance], abs(distance)))
    return point + best * direction, known[best]


def _parabola(known: dict[float, float]) -> float:
    """Return where the parabola through the best distance and its two neighbours is lowest, or a golden section."""
    distances = sorted(known)
    best = min(range(len(distances)), key=lambda n: known[distances[n]])
    best = min(max(best, 1), len(distances) - 2)
    a, b, c = distances[best - 1 : best + 2]
    fa, fb, fc = known[a], known[b], known[c]
    curvature = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    if curvature != 0.0:
        lowest = b - 0.5 * ((b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)) / curvature
        if a < lowest < c and min(lowest - a, c - lowest, abs(lowest - b)) > 0.02 * (c - a):
            return lowest
    return b + GOLDEN * ((c - b) if c - b > b - a else (a - b))
