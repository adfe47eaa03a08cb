"""An MR and a PET of a synthetic head, each in a patient frame of its own, with the truth between them.

Flow: run > [scans] > phantom
Never: DICOM (`patient` writes it). Arrays are (k, j, i), affines give LPS mm, a transform is `<to>_from_<from>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicomnode.demo.phantom import Head, Tissue
from dicomnode.demo.shapes import Field, blur, sample_linear, smooth_noise

# Signal of a T1-weighted gradient echo, white matter 1.
T1_SIGNAL = {
    Tissue.MUSCLE: 0.42,
    Tissue.FAT: 1.15,
    Tissue.BONE: 0.05,
    Tissue.FLUID: 0.2,
    Tissue.CORTEX: 0.64,
    Tissue.WHITE: 1.0,
    Tissue.NUCLEI: 0.78,
    Tissue.CEREBELLUM: 0.68,
    Tissue.EYE: 0.18,
}
# FDG uptake, cortex 1: grey to white about 4 to 1, the scalp low but seen.
FDG_UPTAKE = {
    Tissue.MUSCLE: 0.16,
    Tissue.FAT: 0.06,
    Tissue.BONE: 0.07,
    Tissue.FLUID: 0.03,
    Tissue.CORTEX: 1.0,
    Tissue.WHITE: 0.25,
    Tissue.NUCLEI: 1.1,
    Tissue.CEREBELLUM: 0.85,
    Tissue.EYE: 0.05,
}
WHITE_SIGNAL = 800.0
CORTEX_BQ_PER_ML = 24000.0
MR_HALF_WIDTH_MM = 88.0
PET_EXTENT_MM = (201.0, 254.0, 254.0)  # k, j, i
PET_CENTRE_MM = np.array([0.0, 4.0, -14.0])  # head coordinates: where the technologist centres the scan
FWHM_PER_SIGMA = 2.3548


@dataclass(frozen=True)
class Scan:
    """A volume and where the head was in it.

    Attributes
    ----------
    array : (k, j, i) float32
        MR: arbitrary units; PET: Bq/ml.
    affine : (4, 4) float64
        Index (k, j, i, 1) to this scan's patient coordinates, LPS mm.
    scan_from_head : (4, 4) float64
        Head coordinates to this scan's patient coordinates, rigid.
    """

    array: Field
    affine: NDArray[np.float64]
    scan_from_head: NDArray[np.float64]


def rigid_matrix(
    angles_deg: tuple[float, float, float], shift_mm: tuple[float, float, float], centre_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the (4, 4) rigid transform that turns about x, then y, then z through a centre, then shifts."""
    cx, cy, cz = np.cos(np.deg2rad(angles_deg))
    sx, sy, sz = np.sin(np.deg2rad(angles_deg))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_y @ about_x
    matrix[:3, 3] = centre_mm - matrix[:3, :3] @ centre_mm + np.array(shift_mm)
    return matrix


def move_points(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a (4, 4) transform to (n, 3) points in mm."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])


def make_mr(head: Head, mr_from_head: NDArray[np.float64], *, spacing_mm: float = 1.0, seed: int = 0) -> Scan:
    """Take a T1-weighted 3D MR in sagittal slices, the box laid along the head as a technologist does.

    Parameters
    ----------
    head : Head
    mr_from_head : (4, 4) float64
        Where the head lies in the MR's patient frame, rigid, mm.
    spacing_mm : float
        Voxel edge.
    seed : int
        Of the coil's shading and of the noise.

    Returns
    -------
    Scan
        k runs to the patient's left, j from the vertex to the neck, i from the face to the back.
    """
    rng = np.random.default_rng([seed, 1])
    array, box = lay_sagittal(head, _weigh(head, T1_SIGNAL))
    if spacing_mm != 1.0:
        array, box = _coarsen(array, box, spacing_mm)
    array *= 1 + 0.12 * smooth_noise(rng, _shape(array), 60.0 / spacing_mm)
    # The magnitude of a complex signal: Rician noise.
    real = array + 0.025 * rng.standard_normal(array.shape, np.float32)
    array = np.hypot(real, 0.025 * rng.standard_normal(array.shape, np.float32))
    return Scan(array * np.float32(WHITE_SIGNAL), mr_from_head @ box, mr_from_head)


def make_pet(
    head: Head,
    pet_from_head: NDArray[np.float64],
    *,
    spacing_mm: tuple[float, float, float] = (3.0, 2.0, 2.0),
    fwhm_mm: float = 5.5,
    seed: int = 0,
) -> Scan:
    """Take an FDG PET in axial slices of the scanner: blurred, noisy, in the head's place of that day.

    Parameters
    ----------
    head : Head
    pet_from_head : (4, 4) float64
        Where the head lies in the PET's patient frame, rigid, mm.
    spacing_mm : tuple of float
        Of k, j, i.
    fwhm_mm : float
        Width of the point spread at half its height.
    seed : int
        Of the regional uptake and of the noise.

    Returns
    -------
    Scan
        k runs to the head's vertex, j to the back, i to the left; Bq/ml, noise of about 6 % in the cortex.
    """
    rng = np.random.default_rng([seed, 2])
    uptake = _weigh(head, FDG_UPTAKE)
    uptake *= np.repeat(1 + 0.08 * smooth_noise(rng, (uptake.shape[0], 1, 1), 25.0), uptake.shape[2], axis=2)
    uptake = blur(uptake, fwhm_mm / FWHM_PER_SIGMA)
    shape = tuple(int(extent / step) for extent, step in zip(PET_EXTENT_MM, spacing_mm, strict=True))
    affine = np.eye(4)[[2, 1, 0, 3]] @ np.diag([*spacing_mm, 1.0])
    middle = move_points(pet_from_head, PET_CENTRE_MM[None])[0]
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    head_index_from_pet = np.linalg.inv(pet_from_head @ head.affine) @ affine
    array = sample_linear(uptake, _grid_positions(head_index_from_pet, shape))
    # Counting noise after the reconstruction's filter: it grows with the root of the activity.
    noise = blur(rng.standard_normal(shape, np.float32), 0.8)
    array = np.maximum(array + 0.06 / noise.std() * noise * np.sqrt(array + 0.02), 0)
    return Scan(array * np.float32(CORTEX_BQ_PER_ML), affine, pet_from_head)


def lay_sagittal(head: Head, values: Field) -> tuple[Field, NDArray[np.float64]]:
    """Turn values on the head's grid, (k, j, i), into the MR's sagittal slices.

    Returns
    -------
    array : (k, j, i) float32
        k runs to the left, j down, i to the back; cut to the MR's width.
    affine : (4, 4) float64
        Its index to head coordinates, LPS mm.
    """
    first = int(np.ceil(-MR_HALF_WIDTH_MM - head.affine[0, 3]))
    values = values[:, :, first : first + int(2 * MR_HALF_WIDTH_MM)]
    affine = np.zeros((4, 4))
    affine[:, 0] = head.affine[:, 2]
    affine[:, 1] = -head.affine[:, 0]
    affine[:, 2] = head.affine[:, 1]
    affine[:, 3] = head.affine @ [values.shape[0] - 1, 0, first, 1]
    return np.ascontiguousarray(values[::-1].transpose(2, 0, 1)), affine


def read_at(scan: Scan, affine: NDArray[np.float64], index: Sequence[NDArray[np.intp]]) -> Field:
    """Read a scan at voxels of another grid that is given in the same patient coordinates, 0 outside.

    Parameters
    ----------
    scan : Scan
    affine : (4, 4) float64
        Of the other grid: index (k, j, i, 1) to LPS mm.
    index : three (...) arrays
        k, j and i of the voxels.

    Returns
    -------
    (...) float32
    """
    between = np.linalg.inv(scan.affine) @ affine
    position = np.tensordot(between[:3, :3], np.stack(index), 1) + between[:3, 3].reshape(3, *([1] * index[0].ndim))
    return sample_linear(scan.array, position.astype(np.float32))


def fixed_from_moving(fixed: Scan, moving: Scan) -> NDArray[np.float64]:
    """Return the true (4, 4) transform from the moving scan's patient coordinates to the fixed scan's, mm."""
    return np.asarray(fixed.scan_from_head @ np.linalg.inv(moving.scan_from_head))


def _weigh(head: Head, weights: dict[Tissue, float]) -> Field:
    total = np.zeros(head.fractions.shape[1:], np.float32)
    for tissue, weight in weights.items():
        total += np.float32(weight / 255.0) * head.fractions[tissue]
    return total


def _coarsen(array: Field, affine: NDArray[np.float64], spacing_mm: float) -> tuple[Field, NDArray[np.float64]]:
    """Average 1 mm voxels into voxels of `spacing_mm`, keeping the box."""
    shape = tuple(int(n / spacing_mm) for n in array.shape)
    fine_from_coarse = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    fine_from_coarse[:3, 3] = (spacing_mm - 1) / 2
    smooth = blur(array, spacing_mm / FWHM_PER_SIGMA)
    return sample_linear(smooth, _grid_positions(fine_from_coarse, shape)), affine @ fine_from_coarse


def _grid_positions(to_from_grid: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the (3, k, j, i) places, by a (4, 4) transform, of the indices of a grid."""
    matrix = to_from_grid.astype(np.float32)
    k, j, i = (
        np.arange(n, dtype=np.float32).reshape([-1 if a == b else 1 for b in range(3)]) for a, n in enumerate(shape)
    )
    return np.stack([row[0] * k + row[1] * j + row[2] * i + row[3] for row in matrix[:3]])


def _shape(array: Field) -> tuple[int, int, int]:
    k, j, i = array.shape
    return k, j, i
