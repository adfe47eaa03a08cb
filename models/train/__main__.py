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
import platform
import tempfile
import time
import tomllib
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
from models.train.scoring import PLACES, SAMPLES, Scores, average, score_people
from models.train.training import HAS_BF16, RECIPES, SHAPES, Plan, train
from registration.descriptors import Network
from registration.profiles import PROFILES

log = logging.getLogger("models.train")

STEPS = {"default": 7000, "paper": 1600}
SHAPE_STEPS = 250
TRAINING_SAMPLES = 2000
CURVE_STEPS = 50
SAME_TOP_1 = 0.03  # what the same seed may differ by on another processor, which rounds otherwise
SCALE_SUBJECTS, SCALE_PATCHES = 4, 128  # training people whose patches set the 8-bit scales
LICENCES = """Sources: OpenfMRI ds000011 (PDDL 1.0; thanks to the OpenfMRI project and NSF OCI-1131441), studyforrest
(Hanke et al. 2014, PDDL), OpenNeuro ds002748 (CC0), Colin27 and the ICBM 152 2009a template (MNI, permissive). No PET
was used: it is simulated from the MR's own tissue. GPL templates are excluded by name."""
LIMITS = """Limits: one protocol for each source, adults without disease; contrast, field strength, lesions, atrophy and
tracers come from simulation alone, so the figures are optimistic for real PET."""


def main() -> None:
    """Train, export, score and write the card."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)  # samples are drawn in a thread of their own, beside the steps
    people = load_people(arguments.data, arguments.cache)
    training, held_out = split_people(list(people))
    log.info("training on %s", ", ".join(training))
    log.info("held out: %s", ", ".join(held_out))
    subjects = [make_subject(people[name]) for name in training]
    steps = STEPS[arguments.profile] if arguments.steps is None else arguments.steps
    plan = Plan(arguments.shape_steps, steps, TRAINING_SAMPLES, arguments.seed)
    curve = Curve()
    began = time.monotonic()
    network = train(RECIPES[arguments.profile], subjects, plan, curve.report)
    minutes = (time.monotonic() - began) / 60
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{PROFILES[arguments.profile].network}.onnx"
    before = read_scores(path)
    export(network, subjects, path, (arguments.profile, plan))
    unseen = [people[name] for name in held_out]
    planes = PROFILES[arguments.profile].planes
    scores = score_people(unseen, Network.load(path, device="cpu"), planes, plan.seed)
    in_float32 = average(score_people(unseen, network, planes, plan.seed), unseen)
    compare_scores(before, average(scores, unseen))
    write_facts(path, Facts(arguments.profile, plan, training, unseen, curve.rows, scores, in_float32, minutes))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of T1 volumes (NIfTI) and one template")
    parser.add_argument("--output", type=Path, required=True, help="folder for the network and its card")
    cache = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "dicomnode-train"
    parser.add_argument("--cache", type=Path, default=cache, help="folder for prepared people (%(default)s)")
    parser.add_argument("--profile", choices=sorted(RECIPES), default="default", help="whose network (%(default)s)")
    parser.add_argument("--steps", type=int, help=f"steps on people ({STEPS})")
    parser.add_argument("--shape-steps", type=int, default=SHAPE_STEPS, help="steps on shapes (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of every draw (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (%(default)s)")
    return parser.parse_args()


@dataclass
class Curve:
    """How training went: every so many steps the phase, the step, mean loss and mean share ranked first."""

    rows: list[tuple[str, int, str, str]] = field(default_factory=list)
    _since: list[tuple[float, float]] = field(default_factory=list)

    def report(self, phase: str, step: int, loss: float, right: float) -> None:
        """Take one step's figures."""
        if step == 0:  # a phase begins
            self._since.clear()
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
    held_out: Sequence[Person]
    curve: Sequence[tuple[str, int, str, str]]
    scores: Scores
    in_float32: Mapping[str, float]
    minutes: float


def read_scores(path: Path) -> Mapping[str, float]:
    """Return the scores of the network that is there already, as its card says them; nothing where there is none."""
    card = path.with_suffix(".toml")
    found = tomllib.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    scores: Mapping[str, float] = found.get("top_1_within_8_mm_of_300", {})
    return scores


def compare_scores(before: Mapping[str, float], scores: Mapping[str, float]) -> None:
    """Say how a network differs from the one it takes the place of: from the same seed, by no more than rounding."""
    apart = {name: round(scores[name] - value, 3) for name, value in before.items() if name in scores}
    log.info("top-1 within 8 mm of %d, held-out people: %s", PLACES, scores)
    if apart:
        words = "as" if max(map(abs, apart.values())) <= SAME_TOP_1 else "NOT as"
        log.info("%s good as the one before, within %.2f: %s", words, SAME_TOP_1, apart)


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


def write_facts(path: Path, facts: Facts) -> None:
    """Write scores, split and curve into both cards."""
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    held_out = [person.name for person in facts.held_out]
    means = average(facts.scores, facts.held_out)
    lines = [f'date = "{date}"', f"training = {json.dumps(facts.training)}", f"held_out = {json.dumps(held_out)}"]
    lines += ["", "[top_1_within_8_mm_of_300]", *(f'"{name}" = {value}' for name, value in means.items())]
    with path.with_suffix(".toml").open("a", encoding="utf-8") as card:
        card.write("\n".join(lines) + "\n")
    shown = [row for row in facts.curve if row[0] == "shapes" or row[1] in (50, 100, 200) or row[1] % 500 == 0]
    plan, (low, high) = facts.plan, RECIPES[facts.profile].pose.degrees
    rows = [(name, f"{value:.3f}", f"{facts.in_float32[name]:.3f}") for name, value in means.items()]
    arithmetic = "bfloat16" if HAS_BF16 else "float32"
    bins = list(next(iter(facts.scores.values())))
    people = [(name, *(f"{of_bins[bin_]:.3f}" for bin_ in bins)) for name, of_bins in facts.scores.items()]
    body = f"""Trained on {len(facts.training)} people ({", ".join(facts.training)}).
Held out, never trained on: {", ".join(held_out)}.

{plan.shape_steps} steps on patches of {SHAPES} shapes made by code, then {plan.people_steps} on {plan.samples} samples
of people, each an MR and a PET made from it; 160 pairs a step from two samples, mostly neighbours, the PET
turned in {TURNS_OF_A_DRAW} ways by {low:.0f}-{high:.0f} degrees, drawn anew in each step; seed {plan.seed}.
{facts.minutes:.0f} minutes on {os.cpu_count()} processors ({platform.machine()}, {arithmetic}). The file has
8-bit activations and 7-bit weights. Made again from the same seed on another processor, a share below may differ by
{SAME_TOP_1:.2f}; the command says by how much.

{LICENCES}

{LIMITS}

{SAMPLES} samples of the held-out people, drawn by person and rotation of the PET: the share of {PLACES} places in the
MR whose nearest PET descriptor of {PLACES} lies within 8 mm of the right place. Means over people, of the file and of
the network as trained:

{make_table(["held-out people, rotation of the PET", "8 bits", "float32"], rows)}

Of each person, 8 bits, by the rotation in degrees:

{make_table(["person", *bins], people)}

How training went, means over the {CURVE_STEPS} steps before, at some of them:

{make_table(["phase", "step", "loss", "share of the batch ranked first"], shown)}"""
    command = f"python -m models.train --data FOLDER --output models/ --profile {facts.profile}"
    title = f"Network of the profile {facts.profile}: {path.name}"
    write_section(path.parent, title, command, date, body)


if __name__ == "__main__":
    main()
