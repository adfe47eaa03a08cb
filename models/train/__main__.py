"""`python -m models.train --data FOLDER --output models/`: from a folder of T1 volumes to a network and its card.

Flow: [the command] > anatomy > samples > training > export > scoring > card
Never: a file of a held-out person in training; a model written before its scores are known to be of that model.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.train.anatomy import Person, load_people, split_people
from models.train.card import make_table, write_section
from models.train.export import make_onnx, write_model
from models.train.network import DescriptorNetwork
from models.train.samples import TURNS_OF_A_DRAW, Pose, Subject, draw_pairs, make_scene, make_subject
from models.train.scoring import score_people
from models.train.training import RECIPES, Plan, train
from registration.descriptors import Network
from registration.profiles import PROFILES

log = logging.getLogger("models.train")

STEPS = {"default": 5500, "paper": 1600}
CURVE_STEPS = 100
SCALE_SUBJECTS, SCALE_PATCHES = 4, 128  # training people whose patches set the 8-bit scales
LICENCES = """Sources: OpenfMRI ds000011 (PDDL 1.0; thanks to the OpenfMRI project and NSF OCI-1131441), studyforrest
(Hanke et al. 2014, PDDL), OpenNeuro ds002748 (CC0), Colin27 and the ICBM 152 2009a template (MNI, permissive). No PET
was used: it is simulated from the MR's own tissue. GPL templates are excluded by name."""
LIMITS = """Limits: one protocol for each source, adults without disease; contrast, field strength, lesions and tracers
come from simulation alone, so the figures are optimistic for real PET."""


def main() -> None:
    """Train, export, score and write the card."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    people = load_people(arguments.data, arguments.cache)
    training, held_out = split_people(list(people))
    log.info("training on %s", ", ".join(training))
    log.info("held out: %s", ", ".join(held_out))
    subjects = [make_subject(people[name]) for name in training]
    steps = STEPS[arguments.profile] if arguments.steps is None else arguments.steps
    plan = Plan(arguments.generic_steps, steps, arguments.seed)
    curve = Curve()
    network = train(RECIPES[arguments.profile], subjects, plan, curve.report)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{PROFILES[arguments.profile].network}.onnx"
    export(network, subjects, path, (arguments.profile, plan))
    scores = score(path, [people[name] for name in held_out], (arguments.profile, plan))
    facts = Facts(arguments.profile, plan, training, held_out, curve.rows, scores)
    write_facts(path, facts)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of T1 volumes (NIfTI) and one template")
    parser.add_argument("--output", type=Path, required=True, help="folder for the network and its card")
    cache = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "dicomnode-train"
    parser.add_argument("--cache", type=Path, default=cache, help="folder for prepared people (%(default)s)")
    parser.add_argument("--profile", choices=sorted(RECIPES), default="default", help="whose network (%(default)s)")
    parser.add_argument("--steps", type=int, help=f"steps on people ({STEPS})")
    parser.add_argument("--generic-steps", type=int, default=80, help="steps on generic shapes (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of every draw (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (%(default)s)")
    return parser.parse_args()


@dataclass
class Curve:
    """How training went: each hundred steps the phase, the step, mean loss and mean share ranked first."""

    rows: list[tuple[str, int, str, str]] = field(default_factory=list)
    _since: list[tuple[float, float]] = field(default_factory=list)

    def report(self, phase: str, step: int, loss: float, right: float) -> None:
        """Take one step's figures."""
        self._since.append((loss, right))
        if (step + 1) % CURVE_STEPS == 0:
            loss, right = np.mean(self._since, axis=0)
            self.rows.append((phase, step + 1, f"{loss:.2f}", f"{right:.2f}"))
            self._since.clear()
            log.info("%s, step %d: loss %.2f, %.0f %% of the batch ranked first", phase, step + 1, loss, 100 * right)


@dataclass(frozen=True)
class Facts:
    """What the cards say of a network."""

    profile: str
    plan: Plan
    training: Sequence[str]
    held_out: Sequence[str]
    curve: Sequence[tuple[str, int, str, str]]
    scores: Mapping[str, float]


def export(network: DescriptorNetwork, subjects: Sequence[Subject], path: Path, made: tuple[str, Plan]) -> None:
    """Write the network with 8-bit scales from training people, and a card with its checksum."""
    profile, plan = made
    mr, pet = draw_scale_samples(subjects, RECIPES[profile].pose, np.random.default_rng(plan.seed))
    write_model(make_onnx(network, mr, pet), path, {"seed": plan.seed, "steps": plan.people_steps})


def draw_scale_samples(
    subjects: Sequence[Subject], pose: Pose, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw the patches that set the 8-bit scales."""
    drawn = []
    for subject in subjects[:: max(1, len(subjects) // SCALE_SUBJECTS)]:
        scene = make_scene(subject, rng, augment=True)
        points = scene.points[rng.choice(len(scene.points), SCALE_PATCHES, replace=False)]
        drawn.append(draw_pairs(scene, points, pose, rng, augment=True))
    return np.concatenate([pairs.mr for pairs in drawn]), np.concatenate([pairs.pet for pairs in drawn])


def score(path: Path, people: Sequence[Person], made: tuple[str, Plan]) -> Mapping[str, float]:
    """Score the file as written, the way registration loads it."""
    profile, plan = made
    scores = score_people(people, Network.load(path, device="cpu"), PROFILES[profile].planes, plan.seed)
    log.info("top-1 within 8 mm of 300, held-out people: %s", scores)
    return scores


def write_facts(path: Path, facts: Facts) -> None:
    """Write scores, split and curve into both cards."""
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    lines = [f'date = "{date}"', *(f"{key} = {json.dumps(vars(facts)[key])}" for key in ("training", "held_out"))]
    lines += ["", "[top_1_within_8_mm_of_300]", *(f'"{name}" = {value}' for name, value in facts.scores.items())]
    with path.with_suffix(".toml").open("a", encoding="utf-8") as card:
        card.write("\n".join(lines) + "\n")
    shown = [row for row in facts.curve if row[1] == CURVE_STEPS or row[1] % (5 * CURVE_STEPS) == 0]
    plan, (low, high) = facts.plan, RECIPES[facts.profile].pose.degrees
    body = f"""Trained on {len(facts.training)} people ({", ".join(facts.training)}).
Held out, never trained on: {", ".join(facts.held_out)}.

{plan.generic_steps} steps on shapes made by code, then {plan.people_steps} on people; 160 pairs a step from two scenes,
mostly neighbours, the PET turned in {TURNS_OF_A_DRAW} ways by {low:.0f}-{high:.0f} degrees; seed {plan.seed}. 8-bit
activations, 7-bit weights.

{LICENCES}

{LIMITS}

Share of 300 places in the MR whose nearest PET descriptor of 300 lies within 8 mm of the right place:

{make_table(["held-out people, rotation of the PET", "top-1"], facts.scores.items())}

How training went, means over the {CURVE_STEPS} steps before, at some of them:

{make_table(["phase", "step", "loss", "share of the batch ranked first"], shown)}"""
    command = f"python -m models.train --data FOLDER --output models/ --profile {facts.profile}"
    title = f"Network of the profile {facts.profile}: {path.name}"
    write_section(path.parent, title, command, date, body)


if __name__ == "__main__":
    main()
