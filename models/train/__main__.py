"""`python -m models.train --data FOLDER --output models/`: from a folder of T1 volumes to the network and its card.

Flow: [the command] > anatomy > samples > training > export > scoring > card
Never: a file of a held-out person in training; a model written before its scores are known to be of that model.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.train.anatomy import Person, load_people, split_people
from models.train.card import make_table, write_section
from models.train.export import CARD_NAME, FILE_NAME, make_onnx, write_model
from models.train.network import DescriptorNetwork
from models.train.samples import Subject, draw_pairs, make_scene, make_subject
from models.train.scoring import score_people
from models.train.training import ROTATIONS_DEG, Plan, train
from registration.descriptors import Network

log = logging.getLogger("models.train")

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
    plan = Plan(arguments.generic_steps, arguments.steps, arguments.seed)
    network = train(subjects, plan, report)
    arguments.output.mkdir(parents=True, exist_ok=True)
    export(network, subjects, arguments)
    scores = score(arguments.output, [people[name] for name in held_out], arguments.seed)
    write_facts(arguments, plan, (training, held_out), scores)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of T1 volumes (NIfTI) and one template")
    parser.add_argument("--output", type=Path, required=True, help="folder for the network and its card")
    cache = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "dicomnode-train"
    parser.add_argument("--cache", type=Path, default=cache, help="folder for prepared people (%(default)s)")
    parser.add_argument("--steps", type=int, default=3200, help="steps on people (%(default)s)")
    parser.add_argument("--generic-steps", type=int, default=80, help="steps on generic shapes (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of every draw (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (%(default)s)")
    return parser.parse_args()


def report(step: int, loss: float, right: float, _: DescriptorNetwork) -> None:
    """Say how training goes."""
    log.info("step %d: loss %.3f, %.0f %% of the batch ranked first", step, loss, 100 * right)


def export(network: DescriptorNetwork, subjects: Sequence[Subject], arguments: argparse.Namespace) -> None:
    """Write the network with 8-bit scales from training people, and a card with its checksum."""
    mr, pet = draw_scale_samples(subjects, np.random.default_rng(arguments.seed))
    write_model(make_onnx(network, mr, pet), arguments.output, {"seed": arguments.seed, "steps": arguments.steps})


def draw_scale_samples(
    subjects: Sequence[Subject], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw the patches that set the 8-bit scales."""
    drawn = []
    for subject in subjects[:: max(1, len(subjects) // SCALE_SUBJECTS)]:
        scene = make_scene(subject, rng, augment=True)
        points = scene.points[rng.choice(len(scene.points), SCALE_PATCHES, replace=False)]
        drawn.append(draw_pairs(scene, points, ROTATIONS_DEG, rng, augment=True))
    return np.concatenate([pairs.mr for pairs in drawn]), np.concatenate([pairs.pet for pairs in drawn])


def score(folder: Path, people: Sequence[Person], seed: int) -> Mapping[str, float]:
    """Score the file as written, the way registration loads it."""
    scores = score_people(people, Network.load(folder / FILE_NAME, device="cpu"), seed)
    log.info("top-1 within 8 mm of 300, held-out people: %s", scores)
    return scores


def write_facts(
    arguments: argparse.Namespace, plan: Plan, split: tuple[list[str], list[str]], scores: Mapping[str, float]
) -> None:
    """Write scores and split into both cards."""
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    training, held_out = split
    lines = [f'date = "{date}"', f"training = {training}".replace("'", '"'), f"held_out = {held_out}".replace("'", '"')]
    lines += ["", "[top_1_within_8_mm_of_300]", *(f'"{name}" = {value}' for name, value in scores.items())]
    with (arguments.output / CARD_NAME).open("a", encoding="utf-8") as card:
        card.write("\n".join(lines) + "\n")
    low, high = ROTATIONS_DEG
    body = f"""Trained on {len(training)} people ({", ".join(training)}).
Held out, never trained on: {", ".join(held_out)}.

{plan.generic_steps} steps on shapes made by code, then {plan.people_steps} on people; 160 pairs a step from two scenes,
the PET turned by {low:.0f}-{high:.0f} degrees; seed {plan.seed}. 8-bit activations, 7-bit weights.

{LICENCES}

{LIMITS}

Share of 300 places in the MR whose nearest PET descriptor of 300 lies within 8 mm of the right place:

{make_table(["held-out people, rotation of the PET", "top-1"], scores.items())}"""
    command = f"python -m models.train --data FOLDER --output models/ --steps {plan.people_steps} --seed {plan.seed}"
    write_section(arguments.output, "Network", command, date, body)


if __name__ == "__main__":
    main()
