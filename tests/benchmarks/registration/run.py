"""Registration against SimpleITK, elastix and ANTs, and against its own parts, all on the same cases.

Flow: cases | methods > worker > [run] > summary | page
Never: a peer's process that runs beside ours, or a case one method sees and another does not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from models.train.cases import Case
from registration.transforms import RigidTransform
from tests.benchmarks.registration.cases import CaseId, People, draw_case, find_unseen_people, list_cases
from tests.benchmarks.registration.devices import compare_devices
from tests.benchmarks.registration.methods import ALL, Measured, Method
from tests.benchmarks.registration.page import write_page
from tests.benchmarks.registration.summary import Outcome, summarise
from tests.benchmarks.registration.worker import Worker
from tests.benchmarks.rows import Row

NO_ANSWER_MM = float("inf")


def measure() -> Iterator[Row]:
    """Yield the rows of this group: a fixed few cases, or with FULL=1 all of them, and then the page in docs too."""
    is_full = os.environ.get("FULL") == "1"
    methods = [method for method in ALL if method.is_here]
    if missing := [method.name for method in ALL if not method.is_here]:
        sys.stderr.write(f"not installed, so not measured: {', '.join(missing)}\n")
    people = find_unseen_people()
    outcomes = run_cases(methods, list_cases(is_full=is_full), people)
    if is_full:
        write_page(outcomes, people.source)
    yield from summarise(outcomes)
    yield from compare_devices(people)


def run_cases(methods: Sequence[Method], cases: Sequence[CaseId], people: People) -> list[Outcome]:
    """Give every case to every method, one at a time."""
    outcomes = []
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(method.name)) for method in methods]
        for at, case in enumerate(cases, 1):
            sys.stderr.write(f"case {at} of {len(cases)}: {case.kind.name}\n")
            person, drawn = draw_case(case, people)
            for worker in workers:
                measured = worker.measure(drawn.fixed, drawn.moving)
                outcomes.append(make_outcome(worker.method, (case, person), drawn, measured))
    return outcomes


def make_outcome(method: str, whose: tuple[CaseId, str], drawn: Case, measured: Measured) -> Outcome:
    """Judge one answer by the truth, and put its figures together."""
    case, person = whose
    found, truth = measured.answer.fixed_from_moving, drawn.fixed_from_moving
    return Outcome(
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
