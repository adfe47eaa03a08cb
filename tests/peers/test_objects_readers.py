"""Other readers place our objects where we mean them: SimpleITK, GDCM, dcm2niix, and the standard's text on DCMTK."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gdcm
import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from dicomnode.outputs.objects import OutputFile, OutputRequest, write_outputs
from dicomnode.settings import OutputSettings
from dicomnode.volumes.series import load_series
from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.dicomnode.outputs.known_inputs import INPUTS
from tests.dicomnode.outputs.known_requests import PET, QUARTER_TURN, SMALL_MOTION, make_request
from tests.dicomnode.series_files import SeriesSpec, write_series

sitk: Any = SimpleITK  # untyped
Items = list[tuple[str, NDArray[np.float64]]]
ON_GRID_MM = 1e-3
ORIENTED = {name: INPUTS[name] for name in ("axial", "coronal", "sagittal half millimetre", "oblique", "Enhanced")}


@pytest.fixture(scope="module", params=list(ORIENTED.values()), ids=list(ORIENTED))
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OutputRequest, list[OutputFile]]:
    asked = request.param.request()
    return asked, write_outputs(asked, tmp_path_factory.mktemp("outputs"))


def read_with_simpleitk(paths: list[Path]) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in paths])
    return reader.Execute()


def affine_of(image: Any) -> NDArray[np.float64]:
    """Return SimpleITK's geometry as our affine, (k, j, i) to LPS mm."""
    affine = np.eye(4)
    origin = image.TransformContinuousIndexToPhysicalPoint((0, 0, 0))
    for column, unit in enumerate(((0, 0, 1), (0, 1, 0), (1, 0, 0))):
        affine[:3, column] = np.subtract(image.TransformContinuousIndexToPhysicalPoint(unit), origin)
    affine[:3, 3] = image.GetOrigin()
    return affine


def corners_mm(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    index = np.array([(k, j, i, 1) for k in (0, shape[0] - 1) for j in (0, shape[1] - 1) for i in (0, shape[2] - 1)])
    corners: NDArray[np.float64] = (index @ affine.T)[:, :3]
    return corners


@pytest.mark.parametrize("kind", ["pt", "rgb"])
def test_simpleitk_reads_pt_and_rgb_on_the_mr_grid(written: tuple[OutputRequest, list[OutputFile]], kind: str) -> None:
    request, files = written
    image = read_with_simpleitk([file.path for file in files if file.kind == kind])
    volume = request.fixed.volume
    assert image.GetSize() == volume.shape[::-1]
    assert image.GetNumberOfComponentsPerPixel() == {"pt": 1, "rgb": 3}[kind]
    difference = corners_mm(affine_of(image), volume.shape) - corners_mm(volume.affine, volume.shape)
    assert np.abs(difference).max() < ON_GRID_MM


def as_simpleitk(volume: Volume) -> Any:
    image = sitk.GetImageFromArray(volume.array)
    spacing = volume.spacing_mm
    image.SetOrigin(volume.affine[:3, 3].tolist())
    image.SetSpacing(spacing[::-1].tolist())
    image.SetDirection((volume.affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    return image


def test_pt_values_are_those_that_simpleitk_interpolates_at_the_same_points(
    written: tuple[OutputRequest, list[OutputFile]],
) -> None:
    request, files = written
    paths = [file.path for file in files if file.kind == "pt"]
    got = sitk.GetArrayFromImage(read_with_simpleitk(paths))
    moving_from_fixed = request.fixed_from_moving.inverse().matrix
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(moving_from_fixed[:3, :3].ravel().tolist())
    transform.SetTranslation(moving_from_fixed[:3, 3].tolist())
    moving = request.moving.volume
    wanted = sitk.GetArrayFromImage(
        sitk.Resample(
            as_simpleitk(moving), as_simpleitk(request.fixed.volume), transform, sitk.sitkBSpline, 0.0, sitk.sitkFloat64
        )
    )
    wanted = np.clip(wanted, 0, moving.array.max())
    inside = is_well_inside(request)
    assert np.count_nonzero(inside) > 1000
    slope = float(got.max()) / 32767
    assert np.abs(got - wanted)[inside].max() <= slope


def is_well_inside(request: OutputRequest) -> NDArray[np.bool_]:
    """Tell which MR voxels lie at least one PET voxel within the PET: at its rim, readers' conventions differ."""
    fixed, moving = request.fixed.volume, request.moving.volume
    matrix = moving.index_from_mm @ request.fixed_from_moving.inverse().matrix @ fixed.affine
    index = np.indices(fixed.shape).reshape(3, -1)
    at = matrix[:3, :3] @ index + matrix[:3, 3:]
    inside: NDArray[np.bool_] = np.all((at >= 1) & (at <= np.array(moving.shape)[:, None] - 2), axis=0)
    return inside.reshape(fixed.shape)


@pytest.mark.parametrize("kind", ["pt", "rgb"])
def test_dcm2niix_reads_pt_and_rgb_on_the_mr_grid(
    written: tuple[OutputRequest, list[OutputFile]], tmp_path: Path, peer_program: Callable[[str], Path], kind: str
) -> None:
    request, files = written
    folder = tmp_path / kind
    folder.mkdir()
    for file in files:
        if file.kind == kind:
            (folder / file.path.name).symlink_to(file.path)
    subprocess.run(
        [peer_program("dcm2niix"), "-o", tmp_path, "-f", kind, "-z", "n", "-b", "n", folder],
        check=True,
        capture_output=True,
    )
    (path,) = tmp_path.glob("*.nii")
    image: Any = nibabel.load(path)
    volume = request.fixed.volume
    assert sorted(image.shape[:3]) == sorted(volume.shape)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    theirs = corners_mm(ras @ image.affine, image.shape)
    ours = corners_mm(volume.affine, volume.shape)
    apart_mm = np.linalg.norm(theirs[:, None] - ours[None], axis=2)
    assert sorted(apart_mm.argmin(axis=1)) == list(range(8))  # it turns axes; the corners are the same eight
    assert apart_mm.min(axis=1).max() < ON_GRID_MM


@pytest.mark.parametrize("kind", ["pt", "rgb"])
def test_gdcm_reads_pt_and_rgb_on_the_mr_grid(written: tuple[OutputRequest, list[OutputFile]], kind: str) -> None:
    request, files = written
    affine = request.fixed.volume.affine
    gdcm.ImageHelper.SetSecondaryCaptureImagePlaneModule(True)  # as ITK does: PS3.3 A.8.1 of today has the plane
    for k, file in enumerate(file for file in files if file.kind == kind):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(file.path))
        assert reader.Read()
        image = reader.GetImage()
        row, column = np.reshape(image.GetDirectionCosines(), (2, 3))
        np.testing.assert_allclose(image.GetOrigin(), affine[:3, 3] + k * affine[:3, 0], atol=ON_GRID_MM)
        last = np.array(request.fixed.volume.shape)[1:] - 1
        np.testing.assert_allclose(image.GetSpacing(1) * column * last[0], affine[:3, 1] * last[0], atol=ON_GRID_MM)
        np.testing.assert_allclose(image.GetSpacing(0) * row * last[1], affine[:3, 2] * last[1], atol=ON_GRID_MM)


@pytest.mark.parametrize(
    ("spec", "modality"),
    [(asked.fixed, "MR") for asked in ORIENTED.values()] + [(PET, "PT")],
    ids=[*ORIENTED, "pet"],
)
def test_inputs_are_placed_as_simpleitk_places_them(tmp_path: Path, spec: SeriesSpec, modality: str) -> None:
    assert spec.modality == modality
    paths = write_series(tmp_path, spec)
    volume = load_series(paths).volume
    image = read_with_simpleitk(paths)
    difference = corners_mm(affine_of(image), volume.shape) - corners_mm(volume.affine, volume.shape)
    assert np.abs(difference).max() < ON_GRID_MM
    np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(image), rtol=1e-5, atol=1e-4)


def read_transforms(dump: str) -> dict[str, NDArray[np.float64]]:
    """Read `dcmdump`'s text as PS3.3 C.20.2.1.1 says: each item's frame of reference and product of matrices."""
    transforms: dict[str, NDArray[np.float64]] = {}
    frame = ""
    top = re.search(r"^\(0020,0052\) UI \[([\d.]+)\]", dump, re.MULTILINE)
    assert top is not None
    for line in dump.splitlines():
        if match := re.match(r"^ +\(0020,0052\) UI \[([\d.]+)\]", line):
            frame = match[1]
            transforms[frame] = np.eye(4)
        elif match := re.match(r"^ +\(3006,00c6\) DS \[([^\]]+)\]", line):
            words = match[1].split("\\")
            assert len(words) == 16
            assert all(len(word) <= 16 for word in words)
            transforms[frame] = np.array(words, dtype=float).reshape(4, 4) @ transforms[frame]
    transforms["registered"] = transforms[top[1]]
    return transforms


@pytest.mark.parametrize("transform", [RigidTransform(QUARTER_TURN), SMALL_MOTION], ids=["quarter turn", "small"])
def test_a_second_reader_carries_points_from_pet_to_mr(
    tmp_path: Path, peer_program: Callable[[str], Path], transform: RigidTransform
) -> None:
    files = write_outputs(make_request(transform=transform), tmp_path)
    command: list[str | Path] = [peer_program("dcmdump"), "+L", files[-1].path]
    dump = subprocess.run(
        command, check=True, capture_output=True, text=True, encoding="utf-8", errors="replace"
    ).stdout
    transforms = read_transforms(dump)
    np.testing.assert_array_equal(transforms["registered"], np.eye(4))
    points = np.array([[10.0, 20.0, 30.0], [-55.5, 14.25, 80.0], [0.0, 0.0, 0.0]])
    carried = np.column_stack([points, np.ones(3)]) @ transforms[f"{PET.uid}.4"].T
    # Where the points must go, from the transform's own rotation and shift, written out.
    wanted = [transform.matrix[:3, :3] @ point + transform.matrix[:3, 3] for point in points]
    np.testing.assert_allclose(carried[:, :3], wanted, atol=1e-9)
    if transform.matrix[0, 1] == -1:
        np.testing.assert_array_equal(carried[0, :3], (-8, 3, 60))  # by hand


def multiply(matrices: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    product = np.eye(4)
    for matrix in matrices:
        product = matrix @ product
    return product


# How readers find the moving series' matrix among the items, each a frame of reference and a matrix.
CONVENTIONS: dict[str, Callable[[Items], NDArray[np.float64]]] = {
    "by frame of reference (ITK, pydicomRT)": lambda items: dict(items)[f"{PET.uid}.4"],
    "the product of all (SlicerRT)": lambda items: multiply(matrix for _, matrix in items),
    "the last (DICOMautomaton)": lambda items: items[-1][1],
    "the second": lambda items: items[1][1],
    "the first that is not the identity": lambda items: next(m for _, m in items if not (m == np.eye(4)).all()),
}


def read_items(path: Path) -> Items:
    """Read frame of reference and matrix of each item with GDCM."""
    reader = gdcm.Reader()
    reader.SetFileName(str(path))
    assert reader.Read()

    def items_of(data_set: Any, group: int, element: int) -> list[Any]:
        sequence = data_set.GetDataElement(gdcm.Tag(group, element)).GetValueAsSQ()
        return [sequence.GetItem(n).GetNestedDataSet() for n in range(1, sequence.GetNumberOfItems() + 1)]

    def text_of(data_set: Any, group: int, element: int) -> str:
        value = data_set.GetDataElement(gdcm.Tag(group, element)).GetByteValue()
        return str(value.GetBuffer()).strip(" \0")

    found = []
    for item in items_of(reader.GetFile().GetDataSet(), 0x0070, 0x0308):
        (registration,) = items_of(item, 0x0070, 0x0309)
        (matrix,) = items_of(registration, 0x0070, 0x030A)
        words = text_of(matrix, 0x3006, 0x00C6).split("\\")
        found.append((text_of(item, 0x0020, 0x0052), np.array(words, dtype=float).reshape(4, 4)))
    return found


@pytest.mark.parametrize("convention", list(CONVENTIONS.values()), ids=list(CONVENTIONS))
def test_every_way_of_reading_the_items_carries_points_from_pet_to_mr(
    tmp_path: Path, convention: Callable[[Items], NDArray[np.float64]]
) -> None:
    request = make_request(transform=RigidTransform(QUARTER_TURN), settings=OutputSettings(objects=("reg",)))
    (file,) = write_outputs(request, tmp_path)
    # By hand: the PET point (10, 20, 30) goes to (-20 + 12, 10 - 7, 30 + 30).
    np.testing.assert_allclose(convention(read_items(file.path)) @ (10, 20, 30, 1), (-8, 3, 60, 1), atol=1e-12)
