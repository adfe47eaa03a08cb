"""`python -m models.train.evaluate --data FOLDER`: registration of held-out people, judged by TRE against the truth.

Flow: anatomy > cases > registration > [evaluate] > card
Never: a person the network was trained on.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.train.anatomy import Person, load_people, split_people
from models.train.card import make_table, write_section
from models.train.cases import HARD_SETS, SETS, Case, CaseSet, make_case
from registration.descriptors import Network
from registration.pipeline import register
from registration.preprocess import prepare_fixed, prepare_moving
from registration.problem import pose_problem
from registration.search import centre_start, estimate_by_features

log = logging.getLogger("models.train")

FAILED_MM = 5.0
ABOUT = """Held-out people; PET simulated from the MR's tissue at 2x2x3 mm, in a frame of its own. TRE is the mean over
400 points of the brain. Seconds are medians on two cores, shared with other work where the CPU seconds are not much
above the wall's; reading files is not included. Verdicts: accept / review / reject."""


@dataclass(frozen=True)
class Outcome:
    """One case: TRE of features alone and of the whole, mm; wall and CPU seconds; the verdict."""

    feature_mm: float
    final_mm: float
    wall_s: float
    cpu_s: float
    verdict: str


def main() -> None:
    """Run the sets and write the card's section."""
    parser = argparse.ArgumentParser(prog="python -m models.train.evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of T1 volumes (NIfTI) and one template")
    parser.add_argument("--output", type=Path, default=Path("models"), help="folder of the card (%(default)s)")
    cache = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "dicomnode-train"
    parser.add_argument("--cache", type=Path, default=cache, help="folder for prepared people (%(default)s)")
    parser.add_argument("--cases", type=int, default=12, help="of each set (%(default)s)")
    parser.add_argument("--hard-cases", type=int, default=6, help="of each hard set (%(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    everybody = load_people(arguments.data, arguments.cache)
    people = [everybody[name] for name in split_people(list(everybody))[1]]
    network = Network.load(device="cpu", threads=2)
    rows = []
    for number, kind in enumerate([*SETS, *HARD_SETS]):
        count = arguments.cases if kind in SETS else arguments.hard_cases
        rows.append(summarise(kind, run_set(kind, count, people, network, number)))
        log.info("%s", rows[-1])
    head = [
        "set (cases)",
        "features alone, TRE mm: median / max / over 5",
        "final",
        "verdicts a/r/r",
        "wall s",
        "CPU s",
    ]
    command = f"python -m models.train.evaluate --data FOLDER --cases {arguments.cases}"
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    write_section(arguments.output, "Registration", command, date, ABOUT + "\n\n" + make_table(head, rows))


def run_set(kind: CaseSet, count: int, people: Sequence[Person], network: Network, number: int) -> list[Outcome]:
    """Run a set's cases, the people by turns."""
    outcomes = []
    for at in range(count):
        person = people[at % len(people)]
        outcome = run_case(make_case(person, person, kind, np.random.default_rng([number, at])), network)
        log.info("%s %d %s: %s", kind.name, at, person.name, outcome)
        outcomes.append(outcome)
    return outcomes


def run_case(case: Case, network: Network) -> Outcome:
    """Register one case, and look at what features alone would have said."""
    wall, cpu = time.perf_counter(), time.process_time()
    registration = register(case.fixed, case.moving, network)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    prepared = prepare_fixed(case.fixed), prepare_moving(case.moving)
    features = estimate_by_features(pose_problem(case.fixed, prepared, network, 0), centre_start(*prepared))
    feature_mm = case.tre_mm(features.pose.fixed_from_moving)
    return Outcome(feature_mm, case.tre_mm(registration.fixed_from_moving), wall, cpu, registration.verdict)


def summarise(kind: CaseSet, outcomes: Sequence[Outcome]) -> list[str]:
    """Return a table's row."""
    cells = [f"{kind.name} ({len(outcomes)})"]
    for values in ([o.feature_mm for o in outcomes], [o.final_mm for o in outcomes]):
        failures = sum(value > FAILED_MM for value in values)
        cells.append(f"{np.median(values):.2f} / {max(values):.1f} / {failures}")
    verdicts = [o.verdict for o in outcomes]
    cells.append(" / ".join(str(verdicts.count(name)) for name in ("accept", "review", "reject")))
    return [*cells, f"{np.median([o.wall_s for o in outcomes]):.1f}", f"{np.median([o.cpu_s for o in outcomes]):.1f}"]


if __name__ == "__main__":
    main()
