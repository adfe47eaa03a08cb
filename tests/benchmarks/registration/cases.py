"""The cases every method gets: people no network has seen, or synthetic ones where the data folder is not there.

Flow: models.train | builders > [cases] > run
Never: a person the networks were trained on; a case that depends on which others are asked for.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as cache_results
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicomnode.demo.phantom import BRAIN, Head, Tissue
from dicomnode.demo.scans import lay_sagittal, make_mr
from models.train.anatomy import Person, fetch_person, find_people, split_people
from models.train.cases import HARD_SETS, SETS, WRONG_SETS, Case, CaseSet, make_case, seed_of
from registration.volume import Volume
from tests.builders import head

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = REPOSITORY.parent / "shared" / "data"
CASES_OF_A_SET = 8
QUICK_STEP = 4  # the quick run takes one case of every fourth set
SYNTHETIC = tuple(f"synthetic-{seed}" for seed in range(901, 907))
# What the simulated PET tells apart, in the order of `Person.tissue`, and what it is made of in a synthetic head.
TISSUES = (
    tuple(tissue for tissue in BRAIN if tissue is not Tissue.WHITE),
    (Tissue.WHITE,),
    (Tissue.FLUID,),
    (Tissue.MUSCLE, Tissue.FAT, Tissue.EYE),
)


@dataclass(frozen=True)
class People:
    """Who the cases are made of: names, how one is loaded, and where they come from in words."""

    names: tuple[str, ...]
    load: Callable[[str], Person]
    source: str


@dataclass(frozen=True)
class CaseId:
    """One case: a set and a number in it."""

    kind: CaseSet
    number: int


def list_cases(*, is_full: bool) -> list[CaseId]:
    """Return every case, by turns of every set, or those of the quick run."""
    if is_full:
        return [CaseId(kind, at) for at in range(CASES_OF_A_SET) for kind in (*SETS, *HARD_SETS, *WRONG_SETS)]
    return [CaseId(kind, 0) for kind in (*SETS[::QUICK_STEP], *HARD_SETS[::QUICK_STEP], *WRONG_SETS)]


def find_unseen_people() -> People:
    """Return the held-out people of the folder that DATA names, by default beside the checkout; or synthetic ones."""
    folder = Path(os.environ.get("DATA") or DATA)
    if not folder.is_dir():
        return People(SYNTHETIC, make_synthetic_person, "synthetic people")
    template, paths = find_people(folder)
    cache = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "dicomnode-train"
    names = tuple(split_people(list(paths))[1])
    load = cache_results(lambda name: fetch_person(name, paths[name], template, cache))
    return People(names, load, f"{len(names)} held-out people")


def make_synthetic_person(name: str) -> Person:
    """Make a person of a synthetic head: its MR, and the tissue on the MR's grid."""
    seed = int(name.rpartition("-")[2])
    made = head(seed)
    scan = make_mr(made, np.eye(4), seed=seed)
    tissue = np.stack([lay_sagittal(made, _add(made, group))[0] for group in TISSUES])
    return Person(name, Volume(scan.array, scan.affine), tissue.astype(np.uint8), is_stripped=False)


def choose_people(case: CaseId, people: People) -> tuple[Person, Person]:
    """Return whose MR and whose PET: by turns, those left out that do not suit the set."""
    first, _ = seed_of(case.kind, case.number)
    order = [people.names[(first + case.number + turn) % len(people.names)] for turn in range(len(people.names))]
    loaded = (people.load(name) for name in order)
    able = (person for person in loaded if not (case.kind.is_pet_stripped and person.is_stripped))
    person = next(able)
    return person, next(able) if case.kind.is_other_person else person


def draw_case(case: CaseId, people: People) -> tuple[str, Case]:
    """Make one case; returns whose MR it is, and the case."""
    person, other = choose_people(case, people)
    rng = np.random.default_rng(seed_of(case.kind, case.number))
    return person.name, make_case(person, other, case.kind, rng)


def _add(made: Head, group: tuple[Tissue, ...]) -> NDArray[np.float32]:
    """Add the shares of a group up, 0 to 255."""
    total = made.fractions[list(group)].sum(axis=0, dtype=np.float32)
    return np.asarray(np.minimum(total, np.float32(255)))
