"""One method in a process of its own: what it takes of time and memory is nobody else's.

Flow: run > [worker] > methods
Never: a figure of another method's libraries; the time to start, to import, to load a network or to warm up.

`python -m tests.benchmarks.registration.worker METHOD DESCRIPTOR` answers on an inherited connection.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.benchmarks.registration.easy import RIGHT_MM, make_easy_case
from tests.benchmarks.registration.methods import METHODS, NO_ANSWER, THREADS, Answer, Measured, Method, Run

REPOSITORY = Path(__file__).resolve().parents[3]
START_S = 180.0
ONE_CASE_S = 600.0
THREAD_VARIABLES = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORGET_PEAK = "5"  # proc(5), clear_refs
ENDED = (EOFError, BrokenPipeError, ConnectionResetError)


class WorkerError(Exception):
    """A method cannot be measured at all."""


class Worker:
    """A method's process; it is started again when it dies or runs too long, which counts as no answer."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Any = None  # its type differs between Unix and Windows

    def __enter__(self) -> Worker:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def measure(self, fixed: Volume, moving: Volume) -> Measured:
        """Register one pair there."""
        started = time.perf_counter()
        try:
            self._connection.send((fixed, moving))
            if self._connection.poll(ONE_CASE_S):
                measured: Measured = self._connection.recv()
                return measured
        except ENDED:
            pass
        self._stop()
        self._start()
        return Measured(Answer(None, NO_ANSWER), time.perf_counter() - started, 0.0, 0)

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        descriptor = theirs.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.registration.worker", self.method, str(descriptor)],
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(THREADS))},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[descriptor],
        )
        theirs.close()
        try:
            refusal = self._connection.recv() if self._connection.poll(START_S) else f"not ready after {START_S:g} s"
        except ENDED:
            refusal = "it ended while it started"
        if refusal:
            self._stop()
            raise WorkerError(f"{self.method}: {refusal}")

    def _stop(self) -> None:
        self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def main(name: str, descriptor: int) -> None:
    """Serve one method until the other side hangs up."""
    cv2.setNumThreads(THREADS)
    connection = Connection(descriptor)
    method = METHODS[name]
    run = method.load()
    connection.send(prove(method, run))
    while True:
        try:
            fixed, moving = connection.recv()
        except ENDED:
            return
        connection.send(measure_call(run, fixed, moving))


def prove(method: Method, run: Run) -> str:
    """Warm a method up on a pair that anybody can register; returns what is wrong, empty when nothing is.

    A peer whose images or transform we convert wrongly would look bad by our fault.
    """
    case = make_easy_case()
    answer = run(case.fixed, case.moving)
    if not method.is_peer:
        return ""
    if answer.fixed_from_moving is None:
        return "no answer on a pair that anybody can register"
    apart_mm = case.tre_mm(RigidTransform.from_matrix(answer.fixed_from_moving))
    return "" if apart_mm < RIGHT_MM else f"{apart_mm:.1f} mm off on a pair that anybody can register"


def measure_call(run: Run, fixed: Volume, moving: Volume) -> Measured:
    """Run a method once and measure it."""
    CLEAR.write_text(FORGET_PEAK, encoding="ascii")
    wall, cpu = time.perf_counter(), time.process_time()
    answer = run(fixed, moving)
    return Measured(answer, time.perf_counter() - wall, time.process_time() - cpu, read_peak_bytes())


def read_peak_bytes() -> int:
    """Return the largest resident size of this process since it was last forgotten."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
