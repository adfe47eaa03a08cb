"""A PET simulated from somebody's T1: tissue by intensity, uptake, point spread, noise, another patient frame.

Flow: tests > [pet_from_mr] > demo
Never: a reader of ours: SimpleITK reads the T1, so that its geometry is not the node's own opinion.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from dicomnode.demo.patient import Person, Visit, write_pet
from dicomnode.demo.scans import FWHM_PER_SIGMA, Scan, move_points, rigid_matrix
from dicomnode.demo.shapes import Field, blur, sample_linear

itk: Any = SimpleITK  # it has no types

WORK_MM = 2.0
PET_SHAPE = (80, 128, 128)
PET_STEP_MM = (3.0, 2.0, 2.0)
CORTEX_BQ_PER_ML = 20000.0
FWHM_MM = 5.5
BRAIN_POINTS = 2000


@dataclass(frozen=True)
class SimulatedPet:
    """The PET's files, and the truth: PET points to MR points, for (n, 3) points of the brain in the PET's frame."""

    files: list[Path]
    fixed_from_moving: NDArray[np.float64]
    points_mm: NDArray[np.float64]


def simulate_pet(
    mr_folder: Path,
    folder: Path,
    person: Person,
    angles_deg: tuple[float, float, float],
    shift_mm: tuple[float, float, float],
) -> SimulatedPet:
    """Write a PET of the head in an MR series below `folder`, misaligned by a turn about the brain and a shift."""
    image, affine = _read_on_coarse_grid(mr_folder)
    brain = _find_brain(image)
    uptake = blur(_uptake(image, brain), FWHM_MM / FWHM_PER_SIGMA / WORK_MM)
    inside = np.argwhere(brain).astype(np.float64)
    mr_points = move_points(affine, inside)
    centre = mr_points.mean(axis=0)
    truth = rigid_matrix(angles_deg, shift_mm, centre)
    moving_from_fixed = np.asarray(np.linalg.inv(truth), np.float64)
    pet_affine = np.eye(4)[[2, 1, 0, 3]] @ np.diag([*PET_STEP_MM, 1.0])
    middle = move_points(moving_from_fixed, centre[None])[0]
    pet_affine[:3, 3] = middle - pet_affine[:3, :3] @ ((np.array(PET_SHAPE) - 1) / 2)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in PET_SHAPE), indexing="ij"))
    between = np.linalg.inv(affine) @ truth @ pet_affine
    place = np.tensordot(between[:3, :3], index, 1) + between[:3, 3].reshape(3, 1, 1, 1)
    array = sample_linear(uptake, place.astype(np.float32))
    rng = np.random.default_rng(5)
    noise = blur(rng.standard_normal(PET_SHAPE, np.float32), 0.8)
    array = np.maximum(array + 0.06 / noise.std() * noise * np.sqrt(array + 0.02), 0) * np.float32(CORTEX_BQ_PER_ML)
    visit = Visit(person, "test/pet-from-mr", date="20180926", time="101500")
    return SimulatedPet(
        files=write_pet(folder, Scan(array, pet_affine, np.eye(4)), visit),
        fixed_from_moving=truth,
        points_mm=move_points(moving_from_fixed, rng.choice(mr_points, BRAIN_POINTS)),
    )


def _read_on_coarse_grid(folder: Path) -> tuple[Field, NDArray[np.float64]]:
    """Read a series with SimpleITK and average it on voxels of about 2 mm; affine in the order k, j, i."""
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = itk.Cast(reader.Execute(), itk.sitkFloat32)
    image = itk.BinShrink(image, [max(1, round(WORK_MM / step)) for step in image.GetSpacing()])
    affine = np.eye(4)
    affine[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing()))[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return np.asarray(itk.GetArrayFromImage(image), np.float32), affine


def _even_out(image: Field) -> Field:
    """Divide by the local mean of what is not air: the coil sees the middle of this head brighter than its rim."""
    solid = (image > 0.2 * np.percentile(image, 98)).astype(np.float32)
    return np.asarray(image / np.maximum(blur(image * solid, 12.0) / np.maximum(blur(solid, 12.0), 1e-3), 1e-3))


def _find_brain(image: Field) -> NDArray[np.bool_]:
    """Return the largest piece of bright tissue that is left when thin connections are cut."""
    tissue = itk.GetImageFromArray((_even_out(image) > 0.8).astype(np.uint8))
    cut = itk.RelabelComponent(itk.ConnectedComponent(itk.BinaryErode(tissue, [2, 2, 2])))
    brain = itk.BinaryMorphologicalClosing(itk.BinaryDilate(cut == 1, [4, 4, 4]), [7, 7, 7])
    return np.asarray(itk.GetArrayFromImage(brain), bool)


def _uptake(image: Field, brain: NDArray[np.bool_]) -> Field:
    """Return FDG-like uptake: by intensity against the white matter near by, grey 1 and white a quarter."""
    even = _even_out(image)
    bright = (brain & (even > np.median(even[brain]))).astype(np.float32)
    white = blur(image * bright, 8.0) / np.maximum(blur(bright, 8.0), 1e-3)
    share = image / np.maximum(white, 1e-3)
    of_brain = np.interp(share, [0.3, 0.5, 0.75, 0.95], [0.03, 1.0, 1.0, 0.25]).astype(np.float32)
    solid = image > 0.2 * np.percentile(image, 98)
    return np.where(brain, of_brain, np.float32(0.15) * solid).astype(np.float32)
