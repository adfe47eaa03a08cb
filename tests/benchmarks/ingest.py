"""Receiving C-STORE: the node against DCMTK's storescp and Orthanc, tuned, from one raw sender in a process of its own.

Flow: raw_association > [ingest] > rows
Never: a peer as it comes (with Nagle's algorithm on they take 44 ms an instance); a sender that is the slowest part.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks.rows import Row
from tests.builders import NODE_AE, NodeProcess, Peer, make_config
from tests.peers_programs import Orthanc, Process, StoreScp, free_port
from tests.raw_association import COMMAND, P_DATA, RawAssociation, fragments, pdu, store_command
from tests.receiving import MR, ROOT, encode, make_data_set

ASSOCIATIONS = (1, 4, 16)
INSTANCES = 320  # in each measurement, over all its associations
FULL_INSTANCES = 1600
ROUNDS, FULL_ROUNDS = 3, 5
SIZE_PX = 256  # an MR slice of 141 KB
FIRST = 1_000_000_000  # as many digits in every UID
PDU_BYTES_MAX = 131072
SEED = 20260304
NODE, STORESCP, ORTHANC = "node", "storescp", "Orthanc"
# DESIGN: ours to Orthanc's, by the number of associations; storescp flushes nothing to disk, so that it is no goal.
GOALS = {1: 3.0, 4: 2.5, 16: 3.0}
GOAL_CPU = 0.4


@dataclass(frozen=True)
class Scp:
    """A Storage SCP that runs."""

    name: str
    process: Process
    port: int
    ae_title: str

    def cpu_s(self) -> float:
        """Return what it has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


@dataclass(frozen=True)
class Measured:
    """One run against one SCP."""

    per_s: float
    cpu_s_per_1000: float


def measure() -> Iterator[Row]:
    """Yield the rows of this group; more rounds of more instances with FULL=1."""
    is_full = os.environ.get("FULL") == "1"
    rounds, count = (FULL_ROUNDS, FULL_INSTANCES) if is_full else (ROUNDS, INSTANCES)
    shuffle = random.Random(SEED).shuffle  # noqa: S311  an order, not a secret
    found: dict[tuple[str, int], list[Measured]] = {}
    with ExitStack() as running, tempfile.TemporaryDirectory() as folder:
        scps = _start(running, Path(folder))
        sender = running.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        first = FIRST
        for associations in ASSOCIATIONS:
            for round_number in range(rounds + 1):
                shuffle(scps)
                for scp in scps:
                    measured = _run(scp, sender, associations, count, first)
                    first += count
                    if round_number:  # the first one warms up
                        found.setdefault((scp.name, associations), []).append(measured)
    yield from _make_rows(found)


def _start(running: ExitStack, folder: Path) -> list[Scp]:
    port = free_port()
    (folder / "node").mkdir()
    node = NodeProcess(make_config(folder / "node", [Peer("scanner", "SCANNER")], port), port, ["receive"])
    storescp, orthanc = StoreScp(folder / "storescp"), Orthanc(folder / "orthanc")
    scps = [
        Scp(NODE, node, port, NODE_AE),
        Scp(STORESCP, storescp, storescp.port, storescp.ae_title),
        Scp(ORTHANC, orthanc, orthanc.port, orthanc.ae_title),
    ]
    for scp in scps:
        running.enter_context(scp.process)
    return scps


def _run(scp: Scp, sender: ProcessPoolExecutor, associations: int, count: int, first: int) -> Measured:
    before = scp.cpu_s()
    seconds = sender.submit(send, scp.port, scp.ae_title, associations, count, first).result()
    return Measured(count / seconds, (scp.cpu_s() - before) * 1000 / count)


def send(port: int, called: str, associations: int, count: int, first: int) -> float:
    """Store `count` instances over several associations at once, and return the seconds from the first to the last."""
    start = threading.Barrier(associations + 1)
    failures: list[str] = []

    def store(share: range) -> None:
        with RawAssociation(port) as raw:
            raw.associate(called=called, maximum_length=PDU_BYTES_MAX)
            parts = _make_message(raw.maximum_length).split(str(FIRST).encode())
            start.wait()
            for number in share:
                raw.send(str(number).encode().join(parts))
                answer = raw.read()
                if answer is None or b"\0\0\0\x09\x02\0\0\0\0\0" not in answer:  # (0000,0900) is 0000
                    failures.append(f"{number}: {answer!r}")
            raw.release()

    shares = [range(first + share, first + count, associations) for share in range(associations)]
    threads = [threading.Thread(target=store, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    start.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failures:
        raise RuntimeError(f"{called} did not store {len(failures)} of {count}: {failures[0]}")
    return seconds


def _make_message(maximum_length: int) -> bytes:
    data = encode(make_data_set(FIRST, size=SIZE_PX))
    size = min(maximum_length or PDU_BYTES_MAX, PDU_BYTES_MAX) - 6
    pdvs = fragments(1, COMMAND, store_command(MR, f"{ROOT}.3.{FIRST}"), size) + fragments(1, 0, data, size)
    return b"".join(pdu(P_DATA, value) for value in pdvs)


def _make_rows(found: dict[tuple[str, int], list[Measured]]) -> Iterator[Row]:
    for associations in ASSOCIATIONS:
        ours, name = found[NODE, associations], f"{associations} associations"
        for peer in (STORESCP, ORTHANC):
            rates = [(one.per_s, other.per_s) for one, other in zip(ours, found[peer, associations], strict=True)]
            least = GOALS[associations] if peer == ORTHANC else 0.0
            yield _make_row(name, "instances/s", peer, rates, (least, math.inf))
        # storescp's children are waited for too late to be counted.
        pairs = zip(ours, found[ORTHANC, associations], strict=True)
        cpu_s = [(one.cpu_s_per_1000, other.cpu_s_per_1000) for one, other in pairs]
        yield _make_row(f"{name}, CPU of 1000", "s", ORTHANC, cpu_s, (0.0, GOAL_CPU))


def _make_row(name: str, unit: str, peer: str, pairs: list[tuple[float, float]], goal: tuple[float, float]) -> Row:
    """Give medians, ours first; the ratio is the median of those of the rounds, each of which measured both."""
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    least, most = goal
    words = f">= {least:g}x" if least else f"<= {most:g}x" if most < math.inf else ""
    met = least <= ratio <= most if words else None
    return Row("ingest", name, ours, unit, f"{peer} {theirs:.3g}", ratio, words, met)
