"""Other readers place our objects where we mean them: SimpleITK, dcm2niix, and one of the standard's text on DCMTK."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from dicomnode.outputs.objects import OutputFile, OutputRequest, write_outputs
from dicomnode.volumes.series import load_series
from registration.transforms import RigidTransform
from registration.volume import Volume
from tests.dicomnode.outputs.known_requests import MR, PET, QUARTER_TURN, SMALL_MOTION, make_request
from tests.dicomnode.series_files import OBLIQUE, SAGITTAL, SeriesSpec, write_series

sitk: Any = SimpleITK  # untyped
ON_GRID_MM = 1e-3
SPECS = {
    "axial": MR,
    "sagittal anisotropic": SeriesSpec(
        shape=(16, 170, 180),
        orientation=SAGITTAL,
        spacing_mm=(6.0, 0.5, 0.5),
        origin_mm=(40.0, -40.0, 45.0),
        uid="1.2.3.2",
    ),
    "oblique": SeriesSpec(orientation=OBLIQUE, uid="1.2.3.3"),
}


@pytest.fixture(scope="module", params=list(SPECS.values()), ids=list(SPECS))
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OutputRequest, list[OutputFile]]:
    asked = make_request(fixed=request.param)
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


def test_dcm2niix_reads_the_pt_on_the_mr_grid(
    written: tuple[OutputRequest, list[OutputFile]], tmp_path: Path, peer_program: Callable[[str], Path]
) -> None:
    request, files = written
    pt = tmp_path / "pt"
    pt.mkdir()
    for file in files:
        if file.kind == "pt":
            (pt / file.path.name).symlink_to(file.path)
    subprocess.run(
        [peer_program("dcm2niix"), "-o", tmp_path, "-f", "pt", "-z", "n", "-b", "n", pt],
        check=True,
        capture_output=True,
    )
    image: Any = nibabel.load(tmp_path / "pt.nii")
    volume = request.fixed.volume
    assert sorted(image.shape) == sorted(volume.shape)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    theirs = {tuple(np.round(point, 2)) for point in corners_mm(ras @ image.affine, image.shape)}
    ours = {tuple(np.round(point, 2)) for point in corners_mm(volume.affine, volume.shape)}
    np.testing.assert_allclose(sorted(theirs), sorted(ours), atol=0.011)


@pytest.mark.parametrize(
    ("spec", "modality"),
    [(spec, "MR") for spec in SPECS.values()] + [(PET, "PT")],
    ids=[*SPECS, "pet"],
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
