"""What all the answers come to: one line a method and set, and the goals they are held against.

Flow: run > [summary] > rows | page
Never: a failure left out of a median, or a set averaged with another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.train.cases import HARD_SETS
from tests.benchmarks.registration.methods import PEERS
from tests.benchmarks.rows import Row

GROUP = "registration"
OURS, FEATURES, MULTI_START, ANTS = "default", "features only", "SimpleITK multi-start", "ANTs"
FAILED_MM = 5.0
EASY_DEG = 60.0
HARD = tuple(kind.name for kind in HARD_SETS)
HARD_CUT = tuple(kind.name for kind in HARD_SETS if kind.cropped != "none")
HARD_FAILURES = 0.05  # of the cases of the hard sets
GOAL_S, LONGEST_S, GOAL_BYTES, ACCEPTED_SHARE = 6.0, 12.0, 1.2e9, 0.97
FEATURES_MM, FEATURES_CUT_MM = 1.0, 4.0
TIME_RATIOS = {MULTI_START: 0.5, ANTS: 0.15}


@dataclass(frozen=True)
class Outcome:
    """One method's answer to one case; `tre_mm` is infinite without an answer, `verdict` empty where there is none."""

    date: str
    method: str
    kind: str
    person: str
    turn_deg: float
    shift_mm: float
    is_cut: bool
    is_wrong: bool
    tre_mm: float
    verdict: str
    wall_s: float
    cpu_s: float
    peak_bytes: int

    @property
    def is_failure(self) -> bool:
        """Whether the answer must not be used; there is no right one to another person's PET."""
        return self.is_wrong or self.tre_mm > FAILED_MM


@dataclass(frozen=True)
class Line:
    """One method on one set."""

    method: str
    kind: str
    cases: int
    median_mm: float
    p95_mm: float
    max_mm: float
    failures: int
    accepted_failures: int
    wall_s: float
    cpu_s: float
    peak_bytes: int


def list_lines(outcomes: Sequence[Outcome]) -> list[Line]:
    """Sum each method up on each set, in the order they came."""
    keys = dict.fromkeys((outcome.kind, outcome.method) for outcome in outcomes)
    return [make_line([one for one in outcomes if (one.kind, one.method) == (kind, method)]) for kind, method in keys]


def make_line(outcomes: Sequence[Outcome]) -> Line:
    """Sum one method up on one set."""
    tre_mm = np.array([one.tre_mm for one in outcomes])
    return Line(
        method=outcomes[0].method,
        kind=outcomes[0].kind,
        cases=len(outcomes),
        median_mm=float(np.median(tre_mm)),
        p95_mm=float(np.percentile(tre_mm, 95, method="higher")),
        max_mm=float(tre_mm.max()),
        failures=sum(one.is_failure for one in outcomes),
        accepted_failures=sum(one.is_failure and one.verdict == "accept" for one in outcomes),
        wall_s=float(np.median([one.wall_s for one in outcomes])),
        cpu_s=float(np.median([one.cpu_s for one in outcomes])),
        peak_bytes=max(one.peak_bytes for one in outcomes),
    )


def summarise(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Yield the rows: what is asked of the product, each beside the peer it is measured against."""
    right = [one for one in outcomes if not one.is_wrong]
    yield from compare_errors(list_lines(right))
    yield from count_failures(outcomes)
    if any(one.method == OURS for one in outcomes):
        yield from compare_times([one for one in outcomes if one.method in (OURS, *TIME_RATIOS)])


def compare_errors(lines: Sequence[Line]) -> Iterator[Row]:
    """Yield each set's median beside that of the best peer which does not fail there."""
    for line in lines:
        if line.method == FEATURES and line.kind not in HARD:
            met = line.median_mm <= FEATURES_MM and not line.failures
            yield Row(GROUP, f"features alone, {line.kind}", line.median_mm, "mm", "", None, "<= 1 mm, none > 5", met)
        if line.method == FEATURES and line.kind in HARD_CUT:
            met = line.median_mm <= FEATURES_CUT_MM
            yield Row(GROUP, f"features alone, {line.kind}", line.median_mm, "mm", "", None, "<= 4 mm", met)
        if line.method != OURS:
            continue
        peers = [peer for peer in lines if peer.kind == line.kind and peer.method in PEERS]
        best = min((peer for peer in peers if not peer.failures), key=lambda peer: peer.median_mm, default=None)
        ratio = line.median_mm / best.median_mm if best else None
        met = not line.failures if ratio is None else ratio <= 1.0
        words = f"{best.method} {best.median_mm:.2g}" if best else "every peer fails" if peers else ""
        yield Row(GROUP, f"TRE, {line.kind}", line.median_mm, "mm", words, ratio, "<= 1x", met)


def count_failures(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Yield how often no usable answer came, and how often it was noticed."""
    ours = [one for one in outcomes if one.method == OURS]
    for name, is_hard, allowed in (("failures", False, 0.0), ("failures, hard sets", True, HARD_FAILURES)):
        mine = [one for one in ours if (one.kind in HARD) == is_hard and not one.is_wrong]
        if mine:
            count, goal = sum(one.is_failure for one in mine), int(allowed * len(mine))
            kinds = {one.kind for one in mine}
            words, met = count_of_peers(outcomes, kinds), count <= goal and not find_worse(outcomes, kinds)
            yield Row(GROUP, name, float(count), f"of {len(mine)}", words, None, f"<= {goal}, <= any peer's", met)
    accepted = sum(one.is_failure and one.verdict == "accept" for one in ours)
    yield Row(GROUP, "failures accepted", float(accepted), f"of {len(ours)}", "", None, "0", accepted == 0)
    easy = [one for one in ours if not one.is_failure and one.turn_deg <= EASY_DEG and one.kind not in HARD]
    if easy:
        share = sum(one.verdict == "accept" for one in easy) / len(easy)
        met = share >= ACCEPTED_SHARE
        yield Row(GROUP, "right ones accepted, up to 60 deg", share, f"of {len(easy)}", "", None, ">= 0.97", met)


def find_worse(outcomes: Sequence[Outcome], kinds: Iterable[str]) -> list[str]:
    """Return the sets on which some peer fails less often than ours."""
    worse = []
    for kind in kinds:
        failures = dict.fromkeys((one.method for one in outcomes if one.kind == kind), 0)
        for one in outcomes:
            if one.kind == kind:
                failures[one.method] += one.is_failure
        if any(failures[OURS] > count for method, count in failures.items() if method in PEERS):
            worse.append(kind)
    return worse


def count_of_peers(outcomes: Iterable[Outcome], kinds: set[str]) -> str:
    """Tell in words how often each peer failed on these sets."""
    failures = dict.fromkeys((one.method for one in outcomes if one.method in PEERS), 0)
    for one in outcomes:
        if one.method in failures and one.kind in kinds:
            failures[one.method] += one.is_failure
    return ", ".join(f"{method} {count}" for method, count in failures.items())


def compare_times(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Yield wall seconds and peak memory, median and worst, over all cases."""
    seconds = {method: [one.wall_s for one in outcomes if one.method == method] for method in (OURS, *TIME_RATIOS)}
    median = float(np.median(seconds[OURS]))
    yield Row(GROUP, "time, median", median, "s", "", None, f"<= {GOAL_S:g} s", median <= GOAL_S)
    longest = max(seconds[OURS])
    yield Row(GROUP, "time, longest", longest, "s", "", None, f"<= {LONGEST_S:g} s", longest <= LONGEST_S)
    for peer, goal in TIME_RATIOS.items():
        if seconds[peer]:
            theirs = float(np.median(seconds[peer]))
            ratio = median / theirs
            yield Row(GROUP, "time, median", median, "s", f"{peer} {theirs:.3g}", ratio, f"<= {goal:g}x", ratio <= goal)
    peak = max(one.peak_bytes for one in outcomes if one.method == OURS)
    yield Row(GROUP, "peak memory", peak / 1e9, "GB", "", None, f"<= {GOAL_BYTES / 1e9:g} GB", peak <= GOAL_BYTES)
