"""The demonstration's patient: one MR and one PET as files, the truth between them, and what came back judged by it.

Flow: run > [case] > scans, patient
Never: the node's own numbers: the judgement reads the DICOM objects that the stand-in PACS received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from dicomnode.demo.patient import Person, Visit, write_mr, write_pet
from dicomnode.demo.phantom import Head, make_head
from dicomnode.demo.picture import Panels, choose_planes
from dicomnode.demo.scans import (
    Scan,
    fixed_from_moving,
    lay_sagittal,
    make_mr,
    make_pet,
    move_points,
    read_at,
    rigid_matrix,
)
from dicomnode.errors import SeriesRefusedError

SEED = 7
MR_FOLDER, PET_FOLDER = "MR", "PET"
# How the head lay in the MR scanner, and how the PET's frame lies to the MR's: degrees about x, y, z, and mm.
MR_POSE = ((2.0, -3.0, 4.0), (3.0, -16.0, 20.0))
MISALIGNMENT = ((12.0, -7.0, 15.0), (18.0, -14.0, 22.0))
BRAIN_POINTS = 3000
OFF_GRID_VOXELS = 1e-3


@dataclass(frozen=True)
class Case:
    """A synthetic patient on disk; `points_mm` are (n, 3) points of the brain in the PET's patient coordinates."""

    head: Head
    mr: Scan
    pet: Scan
    mr_files: Sequence[Path]
    pet_files: Sequence[Path]
    fixed_from_moving: NDArray[np.float64]
    points_mm: NDArray[np.float64]

    @property
    def displacement_mm(self) -> float:
        """How far, in the mean, the misalignment moves the points of the brain."""
        moved = move_points(self.fixed_from_moving, self.points_mm) - self.points_mm
        return float(np.linalg.norm(moved, axis=1).mean())


def make_case(folder: Path) -> Case:
    """Make the demonstration's patient and write both series below `folder`, in `MR/` and `PET/`."""
    head = make_head(SEED)
    mr_from_head = rigid_matrix(*MR_POSE, np.zeros(3))
    truth = rigid_matrix(*MISALIGNMENT, mr_from_head[:3, 3])
    mr = make_mr(head, mr_from_head, seed=SEED)
    pet = make_pet(head, np.linalg.inv(truth) @ mr_from_head, seed=SEED)
    return Case(
        head=head,
        mr=mr,
        pet=pet,
        mr_files=write_mr(folder / MR_FOLDER, mr, Visit(Person(), "demo/mr")),
        pet_files=write_pet(folder / PET_FOLDER, pet, Visit(Person(), "demo/pet", date="20260304", time="094500")),
        fixed_from_moving=fixed_from_moving(mr, pet),
        points_mm=move_points(pet.scan_from_head, head.brain_points(BRAIN_POINTS)),
    )


def measure_tre_mm(case: Case, registration_file: Path) -> NDArray[np.float64]:
    """Return the distance between found and true place of each point, (n,) mm, by a Spatial Registration object."""
    # PS3.3 C.20.2: the last item carries the PET's matrix, row by row.
    moving = pydicom.dcmread(registration_file).RegistrationSequence[-1]
    values = moving.MatrixRegistrationSequence[0].MatrixSequence[0].FrameOfReferenceTransformationMatrix
    found = np.array(values, np.float64).reshape(4, 4)
    apart = move_points(found, case.points_mm) - move_points(case.fixed_from_moving, case.points_mm)
    return np.asarray(np.linalg.norm(apart, axis=1))


def make_panels(case: Case, pt_files: Sequence[Path], fused_files: Sequence[Path]) -> Panels:
    """Lay everything on the MR's grid for the picture.

    Raises
    ------
    SeriesRefusedError
        If a received slice does not lie on a slice of the MR.
    """
    brain = lay_sagittal(case.head, case.head.brain_share())[0]
    planes = choose_planes(brain)
    shape = case.mr.array.shape
    pet_before, pet_after = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    fused = np.zeros((*shape, 3), np.uint8)
    for axis, index in enumerate(planes):
        in_plane = [np.arange(n) if other != axis else np.array([index]) for other, n in enumerate(shape)]
        pet_before[np.ix_(*in_plane)] = read_at(case.pet, case.mr.affine, np.meshgrid(*in_plane, indexing="ij"))
    for path in pt_files:
        slice_ = pydicom.dcmread(path)
        pet_after[_find_slice(case.mr, slice_)] = slice_.pixel_array * float(slice_.RescaleSlope)
    for path in fused_files:
        slice_ = pydicom.dcmread(path)
        fused[_find_slice(case.mr, slice_)] = slice_.pixel_array
    return Panels(case.mr.array, pet_before, pet_after, fused, brain, planes)


def _find_slice(mr: Scan, slice_: pydicom.Dataset) -> int:
    """Return the k of the MR slice that a received slice says it lies on."""
    corner = np.array([*slice_.ImagePositionPatient, 1.0], np.float64)
    k, j, i, _ = (float(n) for n in np.linalg.inv(mr.affine) @ corner)
    if np.abs([k - round(k), j, i]).max() > OFF_GRID_VOXELS:
        raise SeriesRefusedError(f"a received slice starts at voxel ({k:.3f}, {j:.3f}, {i:.3f}) of the MR's grid")
    return round(k)
