"""From what was measured to rows: medians of ours, ratios of what one round measured of both.

Flow: run > [figures] > tests.benchmarks.rows
Never: a clock or a process; a goal for what nothing flushes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.ingest.recovery import Recovery
from tests.benchmarks.ingest.scps import NODE, ORTHANC, STORESCP, STORESCP_FLUSHED
from tests.benchmarks.rows import Row

EVERY = (NODE, STORESCP, STORESCP_FLUSHED, ORTHANC)
DURABLE = (NODE, STORESCP_FLUSHED, ORTHANC)
# The goals, by the number of associations: ours to theirs.
RATES = {STORESCP_FLUSHED: {1: 1.1, 4: 1.0, 16: 1.1}, ORTHANC: {1: 3.0, 4: 2.5, 16: 3.0}}
CPU = {ORTHANC: 0.4}
MEMORY_MB = 150.0
BESET_LEAST = 0.8  # of the speed without them


@dataclass(frozen=True)
class Case:
    """What is sent, by whom, to whom."""

    name: str
    sender: str
    associations: int
    count: int
    scps: tuple[str, ...]
    has_goal: bool = False


@dataclass(frozen=True)
class Measured:
    """One run against one SCP."""

    per_s: float
    cpu_s_per_1000: float
    responses_s: tuple[float, ...]  # sorted; empty where the sender does not say
    pss_mb: float


def _several(associations: int) -> str:
    return f"{associations} association" + ("" if associations == 1 else "s")


CASES = (
    *(Case(_several(number), "raw", number, 320, EVERY, has_goal=True) for number in (1, 4, 16)),
    Case("a burst of 64 over 1 association", "raw", 1, 64, DURABLE),
    Case("a series of 2000 over 4 associations", "raw", 4, 2000, DURABLE),
    *(Case(f"storescu, {_several(number)}", "storescu", number, 64, DURABLE) for number in (1, 4, 16)),
    *(Case(f"dcmsend, {_several(number)}", "dcmsend", number, 64, DURABLE) for number in (1, 4, 16)),
)


def list_rows(found: Mapping[tuple[Case, str], Sequence[Measured]], cases: Sequence[Case] = CASES) -> Iterator[Row]:
    """Yield the rows of every case that was measured."""
    for case in cases:
        if (case, NODE) not in found:
            continue
        for peer in case.scps[1:]:
            pairs = list(zip(found[case, NODE], found[case, peer], strict=True))
            least = RATES.get(peer, {}).get(case.associations, 0.0) if case.has_goal else 0.0
            yield _make_row(case.name, "instances/s", peer, _each(pairs, lambda one: one.per_s), least=least)
            most = CPU.get(peer, math.inf) if case.has_goal else math.inf
            yield _make_row(
                f"{case.name}, CPU of 1000", "s", peer, _each(pairs, lambda one: one.cpu_s_per_1000), most=most
            )
            if case.sender == "raw":
                for share in (50, 99):
                    times = _each(pairs, lambda one, share=share: 1000 * find_share(one.responses_s, share))  # type: ignore[misc]  # a lambda's default
                    yield _make_row(f"{case.name}, response p{share}", "ms", peer, times)
                yield _make_row(f"{case.name}, peak PSS", "MB", peer, _each(pairs, lambda one: one.pss_mb))


def make_memory_row(held: Mapping[str, float], associations: int) -> Iterator[Row]:
    """Yield what open associations take, for each peer."""
    ours = held[NODE]
    for peer in (STORESCP, STORESCP_FLUSHED):
        goal, met = f"<= {MEMORY_MB:g} MB", ours <= MEMORY_MB
        name = f"{associations} associations held, PSS"
        yield Row("ingest", name, ours, "MB", f"{peer} {held[peer]:.3g}", ours / held[peer], goal, met)


def make_beset_row(pairs: Sequence[tuple[float, float]]) -> Row:
    """Return what a sender keeps of its speed while many peers begin to say something; `pairs` are beset and alone."""
    beset, alone = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    name, goal = "1 association beset by 200 half-open peers", f">= {BESET_LEAST:g}x"
    return Row("ingest", name, beset, "instances/s", f"alone {alone:.3g}", ratio, goal, ratio >= BESET_LEAST)


def make_recovery_row(recovery: Recovery) -> Row:
    """Return how much longer a start takes after a crash."""
    name = f"start after a crash with {recovery.files} instances without rows"
    peer = f"a clean start {recovery.clean_s:.3g}"
    ratio = recovery.after_crash_s / recovery.clean_s
    return Row("ingest", name, recovery.after_crash_s, "s", peer, ratio, "", None)


def find_share(ordered: Sequence[float], percent: int) -> float:
    """Return the value that so many percent do not exceed."""
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def _each(pairs: Sequence[tuple[Measured, Measured]], value: Callable[[Measured], float]) -> list[tuple[float, float]]:
    return [(value(ours), value(theirs)) for ours, theirs in pairs]


def _make_row(
    name: str, unit: str, peer: str, pairs: list[tuple[float, float]], *, least: float = 0.0, most: float = math.inf
) -> Row:
    """Give medians; the ratio is the median of those of the rounds, each of which measured both."""
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = [
        one / other for one, other in pairs if other
    ]  # CPU is counted in ticks, of which a short run may get none
    ratio = statistics.median(ratios) if ratios else None
    goal = f">= {least:g}x" if least else f"<= {most:g}x" if most < math.inf else ""
    met = least <= ratio <= most if goal and ratio is not None else None
    return Row("ingest", name, ours, unit, f"{peer} {theirs:.3g}", ratio, goal, met)
