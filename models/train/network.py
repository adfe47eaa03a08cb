"""The descriptor networks: AlexNet's five convolutions and FC6, as published and slim with a stem for each modality.

Flow: samples > [network] > export
Never: anything the ONNX file does not hold; export folds the batch norms into the convolutions.

Sources: Krizhevsky, Sutskever and Hinton 2012 (the layers); Ioffe and Szegedy 2015, arXiv:1502.03167 (batch norm);
van den Oord, Li and Vinyals 2018, arXiv:1807.03748 (the loss).
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (32, 96, 192, 128, 128)
DESCRIPTOR = 256
ALEXNET_WIDTHS = (64, 192, 384, 256, 256)
ALEXNET_DESCRIPTOR = 4096
NEGATIVE_APART_VOXELS = 4.0  # 8 mm: nearer points are the same place for matching


class Stem(nn.Sequential):
    """Convolutions 1 and 2, one modality's own: (n, 3, 64, 64) to (n, 96, 8, 8)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(WIDTHS[0], WIDTHS[1], 5, padding=2, bias=False),
            nn.BatchNorm2d(WIDTHS[1]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )


class Trunk(nn.Sequential):
    """Convolutions 3 to 5 and FC6, shared: (n, 96, 8, 8) to (n, 256)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(WIDTHS[1:]):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(WIDTHS[4] * 16, DESCRIPTOR))


class DescriptorNetwork(nn.Module):
    """Both stems (which may be one), the trunk, and the temperature of the loss."""

    def __init__(self, mr: nn.Sequential, pet: nn.Sequential, trunk: nn.Sequential) -> None:
        super().__init__()
        self.mr = mr
        self.pet = pet
        self.trunk = trunk
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    @property
    def has_one_stem(self) -> bool:
        """Whether both modalities go through the same convolutions."""
        return self.mr is self.pet

    def forward(self, mr: Tensor, pet: Tensor) -> tuple[Tensor, Tensor]:
        """Describe MR and PET patches: two (n, d) of unit length."""
        both = self.mr(torch.cat([mr, pet])) if self.has_one_stem else torch.cat([self.mr(mr), self.pet(pet)])
        described = functional.normalize(self.trunk(both).float(), dim=1)
        return described[: len(mr)], described[len(mr) :]

    @torch.no_grad()
    def describe(self, patches: NDArray[np.float32], *, is_moving: bool) -> NDArray[np.float32]:
        """Describe (n, 3, 64, 64) patches of one modality in float32, as `registration.descriptors.Network` does."""
        stem = self.pet if is_moving else self.mr
        described = functional.normalize(self.trunk(stem(torch.from_numpy(patches))), dim=1)
        return np.asarray(described.numpy(), dtype=np.float32)


def make_slim() -> DescriptorNetwork:
    """Make the network of the default profile: (n, 3, 64, 64) to (n, 256)."""
    return DescriptorNetwork(Stem(), Stem(), Trunk())


def make_alexnet() -> DescriptorNetwork:
    """Make AlexNet up to FC6, with batch norm, one for both modalities: (n, 3, 64, 64) to (n, 4096)."""
    one, two, three, four, five = ALEXNET_WIDTHS
    convolutions = (nn.Conv2d(3, one, 11, 4, 2, bias=False), nn.Conv2d(one, two, 5, padding=2, bias=False))
    stem: list[nn.Module] = []
    for layer in convolutions:
        stem += [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    trunk: list[nn.Module] = []
    for before, after in itertools.pairwise((two, three, four, five)):
        trunk += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    trunk += [nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(five, ALEXNET_DESCRIPTOR)]
    shared = nn.Sequential(*stem)
    return DescriptorNetwork(shared, shared, nn.Sequential(*trunk))


def contrast(mr: Tensor, pet: Tensor, places: Tensor, scenes: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE: each MR descriptor shall be nearest to its own PET descriptor, and the other way round.

    `places` (n, 3) are voxels, `scenes` (n,) tell which scene; other points of the same scene nearer than 8 mm are
    neither right nor wrong and left out.
    """
    logits = mr @ pet.T * log_scale.clamp(max=4.6).exp()
    near = (torch.cdist(places, places) < NEGATIVE_APART_VOXELS) & (scenes[:, None] == scenes[None, :])
    near.fill_diagonal_(False)
    logits = logits.masked_fill(near, -1e4)
    own = torch.arange(len(mr))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
