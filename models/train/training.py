"""The two phases: generic shapes first, then people; one step is 160 pairs from two scenes, drawn a step ahead.

Flow: samples > network > [training] > export
Never: a held-out person; a draw that the seed does not fix.

Sources: Jordan and others 2024, https://kellerjordan.github.io/posts/muon (Muon: docs/decisions/0026).
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.train.network import DescriptorNetwork, contrast, make_alexnet, make_slim
from models.train.samples import Pose, SceneStream, Subject, choose_near, draw_pairs, make_generic_subject
from registration.profiles import DEFAULT, PAPER

PAIRS_OF_A_SCENE = 80
KERNEL_RATE, OTHER_RATE = 2e-2, 3e-3  # of learning, at its height
WEIGHT_DECAY = 1e-2  # of kernels
WARM_UP_STEPS = 40
AVERAGE_DECAY = 0.99
SHAPES, SHAPE_SCENES = 40, 120
SCENES_OF_A_STEP = 2
HAS_BF16 = torch.cpu.get_capabilities().get(
    "avx512_bf16", False
)  # elsewhere bfloat16 is four times slower than float32


@dataclass(frozen=True)
class Recipe:
    """What a profile's network is made of: its layers, and how its samples are cut."""

    make_network: Callable[[], DescriptorNetwork]
    pose: Pose


RECIPES: Mapping[str, Recipe] = {
    "default": Recipe(make_slim, Pose((0.0, 55.0), DEFAULT.planes)),
    "paper": Recipe(make_alexnet, Pose((0.0, 25.0), PAPER.planes)),
}


@dataclass(frozen=True)
class Plan:
    """How long each phase runs, how many samples (a person's MR and a PET) the second learns from, and every seed."""

    shape_steps: int
    people_steps: int
    samples: int
    seed: int


Report = Callable[[str, int, float, float], None]  # phase, step, loss, share ranked first


def train(recipe: Recipe, subjects: Sequence[Subject], plan: Plan, report: Report) -> DescriptorNetwork:
    """Train from random weights; returns the running average of the weights, in evaluation mode."""
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    network = recipe.make_network()
    average = copy.deepcopy(network)
    shapes = [make_generic_subject(rng) for _ in range(SHAPES if plan.shape_steps else 0)]
    phases = (
        ("shapes", shapes, SHAPE_SCENES, plan.shape_steps),
        ("people", subjects, plan.samples, plan.people_steps),
    )
    for number, (phase, people, scenes, steps) in enumerate(phases, 1):
        if steps:
            seed = plan.seed * 10 + number
            draws = steps * SCENES_OF_A_STEP
            stream = SceneStream(people, min(scenes, draws), draws, seed)
            _run_phase(_Run(network, average, recipe.pose, seed), stream, steps, functools.partial(report, phase))
    average.eval()
    return average


@dataclass(frozen=True, eq=False)
class _Run:
    """What is trained, its running average, and how samples are cut."""

    network: DescriptorNetwork
    average: DescriptorNetwork
    pose: Pose
    seed: int


@dataclass(frozen=True, eq=False)
class _Batch:
    """Pairs of two scenes: patches of MR and of PET, places (n, 3) in voxels, and which scene each is of."""

    mr: Tensor
    pet: Tensor
    places: Tensor
    scenes: Tensor


def _run_phase(run: _Run, stream: SceneStream, steps: int, report: Callable[[int, float, float], None]) -> None:
    """Run one phase with its own warm-up and cosine decay."""
    network = run.network
    optimiser = _Optimiser(network)
    network.train()
    for step, batch in enumerate(_draw_ahead(stream, run, steps)):
        share = min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + np.cos(np.pi * step / steps))
        loss, right = _learn(network, batch)
        optimiser.step(share)
        _follow(run.average, network, min(AVERAGE_DECAY, (1 + step) / (10 + step)))
        report(step, loss, right)


def _draw_ahead(stream: SceneStream, run: _Run, steps: int) -> Iterator[_Batch]:
    """Draw the batches in one thread of their own, each while the one before is learned from."""
    rng = np.random.default_rng([run.seed, 1])  # not the stream's own draws once more
    with ThreadPoolExecutor(1) as drawing:
        ahead = drawing.submit(_draw_batch, stream, run.pose, rng)
        for _ in range(steps - 1):
            batch, ahead = ahead.result(), drawing.submit(_draw_batch, stream, run.pose, rng)
            yield batch
        yield ahead.result()


def _draw_batch(stream: SceneStream, pose: Pose, rng: np.random.Generator) -> _Batch:
    drawn = [
        draw_pairs(scene, choose_near(scene.points, PAIRS_OF_A_SCENE, rng), pose, rng, augment=True)
        for scene in [stream.next_scene() for _ in range(SCENES_OF_A_STEP)]
    ]
    mr, pet, places = (
        torch.from_numpy(np.concatenate(parts))
        for parts in zip(*((pairs.mr, pairs.pet, pairs.places) for pairs in drawn), strict=True)
    )
    return _Batch(mr, pet, places, torch.arange(SCENES_OF_A_STEP).repeat_interleave(PAIRS_OF_A_SCENE))


class _Optimiser:
    """Muon for the kernels, each seen as the matrix from what goes in to what comes out; AdamW for all else."""

    def __init__(self, network: DescriptorNetwork) -> None:
        self._kernels = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        self._matrices = [nn.Parameter(kernel.detach().flatten(1)) for kernel in self._kernels]  # the same numbers
        others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
        self._rates: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (torch.optim.Muon(self._matrices, KERNEL_RATE, WEIGHT_DECAY), KERNEL_RATE),
            (torch.optim.AdamW(others, OTHER_RATE, weight_decay=0.0), OTHER_RATE),
        )

    def step(self, share: float) -> None:
        """Take a step by the gradients that are there, at this share of the rates."""
        for matrix, kernel in zip(self._matrices, self._kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for optimiser, rate in self._rates:
            optimiser.param_groups[0]["lr"] = rate * share
            optimiser.step()


def _learn(network: DescriptorNetwork, batch: _Batch) -> tuple[float, float]:
    """Find the gradients of a batch; returns the loss and the share of MR patches whose own PET patch ranks first."""
    mr, pet = (patches.to(memory_format=torch.channels_last) for patches in (batch.mr, batch.pet))
    with torch.autocast("cpu", torch.bfloat16, enabled=HAS_BF16):
        a, b = network(mr, pet)
    loss = contrast(a, b, batch.places, batch.scenes, network.log_scale)
    network.zero_grad()
    torch.autograd.backward(loss)
    right = ((a @ b.T).argmax(dim=1) == torch.arange(len(a))).float().mean()
    return loss.item(), right.item()


@torch.no_grad()
def _follow(average: DescriptorNetwork, network: DescriptorNetwork, decay: float) -> None:
    """Move the average's weights a little towards the network's; counters and statistics likewise.

    A stem that serves both modalities is moved once: neither parameters nor buffers list it twice.
    """
    pairs = ((average.parameters(), network.parameters()), (average.buffers(), network.buffers()))
    for kept, new in itertools.chain.from_iterable(zip(*pair, strict=True) for pair in pairs):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)
