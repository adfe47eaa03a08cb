"""Registration against SimpleITK, elastix and ANTs, and against its own parts, all on the same cases.

Flow: cases | methods > worker > [run] > models.train.records > summary | page
Never: a peer's process that runs beside ours, or a case one method sees and another does not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import numpy as np

from models.train.cases import Case
from models.train.records import append_records, continue_records, make_version
from registration.transforms import RigidTransform
from tests.benchmarks.registration.cases import REPOSITORY, CaseId, People, draw_case, find_unseen_people, list_cases
from tests.benchmarks.registration.methods import ALL, Measured, Method
from tests.benchmarks.registration.page import FOLDER, write_page
from tests.benchmarks.registration.summary import Outcome, summarise
from tests.benchmarks.registration.worker import Worker
from tests.benchmarks.rows import Row

NO_ANSWER_MM = float("inf")
RECORD = "registration.jsonl"  # beside the page
MADE_BY: Mapping[Path, tuple[str, ...]] = {
    REPOSITORY / "registration": ("*.py",),
    REPOSITORY / "models": ("*.onnx",),
    REPOSITORY / "models/train": ("anatomy.py", "cases.py", "simulate.py"),
    REPOSITORY / "tests/benchmarks/registration": ("cases.py", "methods.py", "peers.py", "worker.py"),
    REPOSITORY / "requirements": ("bench.lock",),
}


def measure() -> Iterator[Row]:
    """Yield the rows of this group: a fixed few cases, or with FULL=1 all of them, and then the page in docs too."""
    is_full = os.environ.get("FULL") == "1"
    methods = [method for method in ALL if method.is_here]
    if missing := [method.name for method in ALL if not method.is_here]:
        sys.stderr.write(f"not installed, so not measured: {', '.join(missing)}\n")
    people = find_unseen_people()
    cases = list_cases(is_full=is_full)
    outcomes = run_full(methods, cases, people, FOLDER) if is_full else [*chain(*run_cases(methods, cases, people))]
    yield from summarise(outcomes)


def run_full(methods: Sequence[Method], cases: Sequence[CaseId], people: People, folder: Path) -> list[Outcome]:
    """Measure every case, going on where a run of the same version was stopped; the page says how far it came."""
    record = folder / RECORD
    outcomes = [Outcome(**row) for row in continue_records(record, find_version(methods, people))]
    for found in run_cases(methods, cases[len(outcomes) // len(methods) :], people):
        append_records(record, map(asdict, found))
        outcomes += found
        write_page(folder, outcomes, len(cases), people.source)
    return outcomes


def find_version(methods: Sequence[Method], people: People) -> str:
    """Return a checksum of what an outcome depends on: the node's method, the peers, the cases, how they are met."""
    files = [path for folder, names in MADE_BY.items() for name in names for path in sorted(folder.glob(name))]
    who = [people.source, *people.names, *(method.name for method in methods)]
    return make_version([*(path.read_bytes() for path in files), *(name.encode() for name in who)])


def run_cases(methods: Sequence[Method], cases: Sequence[CaseId], people: People) -> Iterator[list[Outcome]]:
    """Give every case to every method, one at a time; yields the outcomes of each case."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(method.name)) for method in methods]
        for at, case in enumerate(cases, 1):
            sys.stderr.write(f"case {at} of {len(cases)}: {case.kind.name}\n")
            person, drawn = draw_case(case, people)
            yield [
                make_outcome(worker.method, (case, person), drawn, worker.measure(drawn.fixed, drawn.moving))
                for worker in workers
            ]


def make_outcome(method: str, whose: tuple[CaseId, str], drawn: Case, measured: Measured) -> Outcome:
    """Judge one answer by the truth, and put its figures together."""
    case, person = whose
    found, truth = measured.answer.fixed_from_moving, drawn.fixed_from_moving
    return Outcome(
        date=datetime.now(UTC).date().isoformat(),
        method=method,
        kind=case.kind.name,
        person=person,
        turn_deg=truth.angle_deg,
        shift_mm=float(np.linalg.norm(truth.inverse().apply(drawn.brain_mm).mean(axis=0))),
        is_cut=case.kind.cropped != "none",
        is_wrong=case.kind.is_other_person,
        tre_mm=NO_ANSWER_MM if found is None else drawn.tre_mm(RigidTransform.from_matrix(found)),
        verdict=measured.answer.verdict,
        wall_s=measured.wall_s,
        cpu_s=measured.cpu_s,
        peak_bytes=measured.peak_bytes,
    )
