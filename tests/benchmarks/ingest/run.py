"""Receiving C-STORE: the node against DCMTK's storescp and Orthanc, tuned, the same instances in shuffled rounds.

Flow: scps, senders > [run] > figures
Never: a ratio of two rounds; a time that ends before the last release is answered: by then the node has its rows
committed and its files moved.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.ingest.beset import COUNT, measure_beset
from tests.benchmarks.ingest.figures import (
    CASES,
    Case,
    Measured,
    list_rows,
    make_beset_row,
    make_memory_row,
    make_recovery_row,
)
from tests.benchmarks.ingest.recovery import TURNS, measure_recovery
from tests.benchmarks.ingest.scps import NODE, ORTHANC, Scp, start_scps
from tests.benchmarks.ingest.senders import FIRST, Load, Sent, hold_raw, send_files, send_raw, write_files
from tests.benchmarks.rows import Row

ROUNDS, FULL_ROUNDS = 3, 7
SAMPLE_S = 0.2
SEED = 20260304


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    cases: tuple[Case, ...] = CASES
    held: int = 100  # associations at once
    beset_by: int = COUNT  # instances that a sender who is beset sends
    turns: int = TURNS  # of fifty instances each that a crash leaves


def measure() -> Iterator[Row]:
    """Yield the rows of this group; more rounds with FULL=1."""
    yield from measure_all(Extent(FULL_ROUNDS if os.environ.get("FULL") == "1" else ROUNDS))


def measure_all(extent: Extent) -> Iterator[Row]:
    """Yield the rows of this group, of so much."""
    found: dict[tuple[Case, str], list[Measured]] = {}
    draw = random.Random(SEED)  # noqa: S311  an order, not a secret
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        scps = start_scps(running, Path(folder))
        sender = running.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        first = FIRST
        for round_number in range(extent.rounds + 1):  # the first of them warms up, and is not counted
            cases = [case for case in extent.cases if round_number or case.has_goal]
            runs = [(case, scp) for case in cases for scp in scps if scp.name in case.scps]
            draw.shuffle(runs)
            for case, scp in runs:
                load = Load(scp.port, scp.ae_title, case.associations, case.count, first)
                first += case.count
                measured = _run(case, scp, load, sender)
                if round_number:
                    found.setdefault((case, scp.name), []).append(measured)
        yield from list_rows(found, extent.cases)
        crowded = [scp for scp in scps if scp.name != ORTHANC]  # which serves a few at a time, and lets the others wait
        held = {scp.name: _hold(scp, extent.held, first + number * extent.held) for number, scp in enumerate(crowded)}
        yield from make_memory_row(held, extent.held)
        (node,) = (scp for scp in scps if scp.name == NODE)
        first += len(crowded) * extent.held
        pairs = measure_beset(
            node, lambda load: sender.submit(send_raw, load).result(), first, extent.rounds, extent.beset_by
        )
        yield make_beset_row(pairs)
    yield make_recovery_row(measure_recovery(extent.turns))


def _run(case: Case, scp: Scp, load: Load, sender: ProcessPoolExecutor) -> Measured:
    with tempfile.TemporaryDirectory() as name, ExitStack() as sampling:
        folder = Path(name)
        if case.sender != "raw":
            write_files(load, folder)
        peak = sampling.enter_context(_sample_memory(scp))
        before = scp.cpu_s()
        sent: Sent = (
            sender.submit(send_raw, load).result() if case.sender == "raw" else send_files(case.sender, load, folder)
        )
        cpu_s = scp.cpu_s() - before
    return Measured(
        per_s=load.count / sent.seconds,
        cpu_s_per_1000=cpu_s * 1000 / load.count,
        responses_s=tuple(sorted(sent.responses_s)),
        pss_mb=peak[0],
    )


@contextmanager
def _sample_memory(scp: Scp) -> Iterator[list[float]]:
    """Give the largest share of memory that is seen inside the `with` block, as the one item of a list."""
    peak, is_over = [scp.pss_mb()], threading.Event()

    def sample() -> None:
        while not is_over.wait(SAMPLE_S):
            peak[0] = max(peak[0], scp.pss_mb())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def _hold(scp: Scp, associations: int, first: int) -> float:
    """Return the memory that open associations take, each of which has stored an instance."""
    held = hold_raw(Load(scp.port, scp.ae_title, associations, associations, first))
    try:
        return scp.pss_mb()
    finally:
        for raw in held:
            raw.release()
            raw.socket.close()
