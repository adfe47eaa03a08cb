"""The two phases: generic shapes first, then people; one step is 160 pairs from two scenes.

Flow: samples > network > [training] > export
Never: a held-out person; a draw that the seed does not fix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.train.network import DescriptorNetwork, contrast
from models.train.samples import SceneStream, Subject, draw_pairs, make_generic_subject

PAIRS_OF_A_SCENE = 80
LEARNING_RATE = 1e-3
WARM_UP_STEPS = 40
AVERAGE_DECAY = 0.99
GENERIC_SUBJECTS = 6
ROTATIONS_DEG = (0.0, 60.0)


@dataclass(frozen=True)
class Plan:
    """How long each phase runs, and the seed of every draw."""

    generic_steps: int
    people_steps: int
    seed: int


Report = Callable[[int, float, float, DescriptorNetwork], None]  # step, loss, share ranked first, the average


def train(subjects: Sequence[Subject], plan: Plan, report: Report) -> DescriptorNetwork:
    """Train from random weights; returns the running average of the weights, in evaluation mode."""
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    network = DescriptorNetwork()
    average = copy.deepcopy(network)
    generic = [make_generic_subject(rng) for _ in range(GENERIC_SUBJECTS if plan.generic_steps else 0)]
    phases = [(generic, plan.generic_steps, 1), (list(subjects), plan.people_steps, 2)]
    for people, steps, phase in phases:
        if steps:
            stream = SceneStream(people, plan.seed * 10 + phase)
            _run_phase(network, average, stream, steps, report)
    average.eval()
    return average


def _run_phase(
    network: DescriptorNetwork, average: DescriptorNetwork, stream: SceneStream, steps: int, report: Report
) -> None:
    """Run one phase with its own warm-up and cosine decay."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    rng = np.random.default_rng(steps)
    network.train()
    for step in range(steps):
        share = min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * share
        loss, right = _step(network, optimiser, stream, rng)
        _follow(average, network, min(AVERAGE_DECAY, (1 + step) / (10 + step)))
        if step % 25 == 0 or step == steps - 1:
            report(step, loss, right, average)


def _step(
    network: DescriptorNetwork, optimiser: torch.optim.Optimizer, stream: SceneStream, rng: np.random.Generator
) -> tuple[float, float]:
    """Take one step; returns the loss and the share of MR patches whose own PET patch ranks first."""
    drawn = []
    for scene in (stream.next_scene(), stream.next_scene()):
        points = scene.points[rng.choice(len(scene.points), PAIRS_OF_A_SCENE, replace=False)]
        drawn.append(draw_pairs(scene, points, ROTATIONS_DEG, rng, augment=True))
    mr, pet = torch.cat([pairs.mr for pairs in drawn]), torch.cat([pairs.pet for pairs in drawn])
    places = torch.from_numpy(np.concatenate([pairs.places for pairs in drawn]))
    scenes = torch.arange(2).repeat_interleave(PAIRS_OF_A_SCENE)
    a, b = network(mr.to(memory_format=torch.channels_last), pet.to(memory_format=torch.channels_last))
    loss = contrast(a, b, places, scenes, network.log_scale)
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimiser.step()
    right = ((a @ b.T).argmax(dim=1) == torch.arange(len(a))).float().mean()
    return loss.item(), right.item()


@torch.no_grad()
def _follow(average: DescriptorNetwork, network: DescriptorNetwork, decay: float) -> None:
    """Move the average's weights a little towards the network's; counters and statistics likewise."""
    for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)
