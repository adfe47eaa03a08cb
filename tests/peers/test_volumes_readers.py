"""Every kind of series, right and wrong: read as SimpleITK and highdicom read it where they are right, or refused."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.series import load_series
from registration.volume import Volume
from tests.dicomnode.compressed_files import GDCM_SYNTAXES, compress
from tests.dicomnode.enhanced_files import make_enhanced, make_enhanced_series
from tests.dicomnode.series_files import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    SAGITTAL,
    Change,
    SeriesSpec,
    make_series,
    write_files,
    write_series,
)
from tests.peers.test_objects_readers import affine_of, corners_mm

sitk: Any = SimpleITK  # untyped
ON_GRID_MM = 1e-3
BOTH = ("SimpleITK", "highdicom")
SPEC = SeriesSpec(shape=(14, 32, 30))
Maker = Callable[[Path], list[Path]]


@dataclass(frozen=True)
class Case:
    """A series, the readers that place it rightly, and how ours ends: in a volume, or in a reason."""

    make: Maker
    peers: Sequence[str] = BOTH
    reason: str = ""
    affine: NDArray[np.float64] = field(default_factory=SPEC.affine)
    tolerance_mm: float = ON_GRID_MM


def of(spec: SeriesSpec, peers: Sequence[str] = BOTH, reason: str = "") -> Case:
    return Case(lambda folder: write_series(folder, spec), peers, reason, spec.affine())


def changed(change: Change, peers: Sequence[str] = BOTH, reason: str = "") -> Case:
    return of(replace(SPEC, change=change), peers, reason)


def of_data_sets(make: Callable[[], Sequence[pydicom.Dataset]], peers: Sequence[str] = BOTH, reason: str = "") -> Case:
    return Case(lambda folder: write_files(folder, make()), peers, reason)


def put(**words: object) -> Change:
    def change(header: pydicom.Dataset, _k: int) -> None:
        for keyword, value in words.items():
            setattr(header, keyword, value)

    return change


def without(count: int) -> Maker:
    return lambda folder: [path for k, path in enumerate(write_series(folder, SPEC)) if not 5 <= k < 5 + count]


def repeated(**words: Sequence[object]) -> Callable[[], list[pydicom.Dataset]]:
    """Make every slice once for each value that the words take."""

    def make() -> list[pydicom.Dataset]:
        slices = []
        for number in range(len(next(iter(words.values())))):
            for header in make_series(SPEC):
                header.SOPInstanceUID = f"{header.SOPInstanceUID}.{number}"
                for keyword, values in words.items():
                    setattr(header, keyword, values[number])
                slices.append(header)
        return slices

    return make


def copied(folder: Path) -> list[Path]:
    paths = write_series(folder, SPEC)
    return [*paths, Path(shutil.copy(paths[3], folder / "copy.dcm"))]


def one_position_twice() -> list[pydicom.Dataset]:
    slices = make_series(SPEC)
    extra = copy.deepcopy(slices[4])
    extra.SOPInstanceUID = "1.2.3.99"
    return [*slices, extra]


def numbers_swapped(header: pydicom.Dataset, k: int) -> None:
    header.InstanceNumber = {3: 4, 4: 3}.get(k, k)


def jittered(share: float) -> Change:
    """Move each slice off its place by up to a share of the step, along the normal."""

    def change(header: pydicom.Dataset, k: int) -> None:
        position = [float(value) for value in header.ImagePositionPatient]
        position[2] += share * SPEC.spacing_mm[0] * (-1, 1, 0, 1)[k % 4]
        header.ImagePositionPatient = [f"{value:.6f}" for value in position]

    return change


def spaced_twice(header: pydicom.Dataset, k: int) -> None:
    header.ImagePositionPatient = [-50, -45, -40 + (6 * k if k < 7 else 42 + 9 * (k - 7))]


def three_planes(header: pydicom.Dataset, k: int) -> None:
    header.ImageOrientationPatient = list((AXIAL, SAGITTAL, CORONAL)[k % 3])


def slopes(header: pydicom.Dataset, k: int) -> None:
    header.RescaleSlope, header.RescaleIntercept = 0.5 + 0.25 * k, -100 * k


def in_syntax(syntax: UID) -> Maker:
    def make(folder: Path) -> list[Path]:
        paths = write_series(folder, SPEC)
        for path in paths:
            compress(path, GDCM_SYNTAXES[syntax])
        return paths

    return make


def uncompressed(syntax: UID, *, is_enhanced: bool = False) -> Callable[[], list[pydicom.Dataset]]:
    def make() -> list[pydicom.Dataset]:
        slices = [make_enhanced_series(SPEC)] if is_enhanced else make_series(SPEC)
        for header in slices:
            header.file_meta.TransferSyntaxUID = syntax
            if syntax == ExplicitVRBigEndian:
                header.PixelData = np.frombuffer(header.PixelData, "<i2").astype(">i2").tobytes()
                header["PixelData"].VR = "OW"
        return slices

    return make


def enhanced_in(syntax: UID) -> Maker:
    def make(folder: Path) -> list[Path]:
        (path,) = write_files(folder, [make_enhanced(make_series(SPEC)[::-1])])
        compress(path, GDCM_SYNTAXES[syntax])
        return [path]

    return make


def legacy_converted(modality: str) -> Callable[[], list[pydicom.Dataset]]:
    kinds = {"MR": "LegacyConvertedEnhancedMRImage", "PT": "LegacyConvertedEnhancedPETImage"}

    def make() -> list[pydicom.Dataset]:
        slices = make_series(replace(SPEC, modality=modality))
        for header in slices:
            header.file_meta.ImplementationClassUID = UID("1.2.3")
        convert = getattr(highdicom.legacy, kinds[modality])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [convert(slices, "1.2.3.4", 7, "1.2.3.5", 1)]

    return make


# PS3.3 C.7.3.1.1.2: how an axial image's rows and columns run in each position of the patient.
POSITIONS = {
    "HFS": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "HFP": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "HFDL": (0.0, -1.0, 0.0, 1.0, 0.0, 0.0),
    "HFDR": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0),
    "FFS": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "FFP": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "FFDL": (0.0, 1.0, 0.0, 1.0, 0.0, 0.0),
    "FFDR": (0.0, -1.0, 0.0, -1.0, 0.0, 0.0),
}
PET = replace(SPEC, modality="PT")
TURNED = 0.9396926, 0.0, 0.3420201, 0.0, 1.0, 0.0  # 20 degrees about y
CASES = {
    "axial": of(SPEC),
    "sagittal": of(replace(SPEC, orientation=SAGITTAL)),
    "coronal": of(replace(SPEC, orientation=CORONAL)),
    "oblique": of(replace(SPEC, orientation=OBLIQUE)),
    "tilted": of(replace(SPEC, orientation=TURNED)),
    **{name: of(replace(SPEC, orientation=turn, change=put(PatientPosition=name))) for name, turn in POSITIONS.items()},
    "anisotropic 5 mm": of(replace(SPEC, shape=(24, 96, 90), spacing_mm=(5.0, 0.9, 1.1))),
    "0.5 mm": of(replace(SPEC, shape=(170, 170, 170), spacing_mm=(0.5, 0.5, 0.5))),
    "sheared": of(replace(SPEC, shear_mm=(0.0, 0.5, 0.0)), peers=()),  # both lose or refuse the shear
    "jittered": replace(changed(jittered(0.02), peers=()), tolerance_mm=0.2),  # neither fits: one slice's step is taken
    "numbers swapped": changed(numbers_swapped),
    "a copy of a file": Case(copied, peers=()),
    "PET, a slope each slice": of(PET),
    "MR, a slope each slice": changed(slopes),
    "16 bits signed": changed(put(PixelRepresentation=1)),
    "MONOCHROME1": changed(put(PhotometricInterpretation="MONOCHROME1"), peers=("highdicom",)),
    "implicit": of_data_sets(uncompressed(ImplicitVRLittleEndian)),
    "big endian": of_data_sets(uncompressed(ExplicitVRBigEndian)),
    "RLE": Case(in_syntax(RLELossless)),
    "JPEG lossless": Case(in_syntax(JPEGLossless), peers=("SimpleITK",)),
    "JPEG lossless, first-order": Case(in_syntax(JPEGLosslessSV1), peers=("SimpleITK",)),
    "JPEG-LS": Case(in_syntax(JPEGLSLossless)),
    "JPEG 2000": Case(in_syntax(JPEG2000Lossless)),
    "Enhanced MR": of_data_sets(lambda: [make_enhanced_series(SPEC)], peers=("highdicom",)),
    "Enhanced PET": of_data_sets(lambda: [make_enhanced_series(PET)], peers=("highdicom",)),
    "Enhanced MR, implicit": of_data_sets(uncompressed(ImplicitVRLittleEndian, is_enhanced=True), peers=("highdicom",)),
    "Enhanced MR, big endian": of_data_sets(uncompressed(ExplicitVRBigEndian, is_enhanced=True), peers=()),
    "Enhanced MR, RLE": Case(enhanced_in(RLELossless), peers=("highdicom",)),
    "Enhanced MR, JPEG-LS": Case(enhanced_in(JPEGLSLossless), peers=("highdicom",)),
    "Enhanced MR, JPEG 2000": Case(enhanced_in(JPEG2000Lossless), peers=("highdicom",)),
    "MR converted by highdicom": of_data_sets(legacy_converted("MR"), peers=("highdicom",)),
    "PET converted by highdicom": of_data_sets(legacy_converted("PT"), peers=("highdicom",)),
    "two echoes": of_data_sets(repeated(EchoTime=[40, 10]), peers=()),
    "magnitude and phase": of_data_sets(
        repeated(ImageType=[["ORIGINAL", "PRIMARY", "P"], ["ORIGINAL", "PRIMARY", "M"]]), peers=()
    ),
    "one missing": Case(without(1), reason=r"1 slice\(s\) missing: gap of 16.00 mm after k=4, 32.0 mm from the first"),
    "two missing": Case(without(2), reason=r"2 slice\(s\) missing|irregular slice spacing"),
    "one position twice": of_data_sets(one_position_twice, reason="15 images at 14 positions and nothing in them"),
    "jittered too much": changed(jittered(0.2), reason=r"irregular slice spacing: a slice stands \d.\d+ mm from its"),
    "two spacings": changed(spaced_twice, reason=r"irregular slice spacing: a slice stands \d+.\d+ mm from its place"),
    "two time frames": of_data_sets(
        repeated(FrameReferenceTime=[0, 1000]),
        reason=r"a dynamic series: 2 stacks of 14, 14 slices that differ in FrameReferenceTime \(0, 1000\)",
    ),
    "diffusion": of_data_sets(repeated(DiffusionBValue=[0.0, 1000.0]), reason=r"diffusion weighted .* \(0, 1000\)"),
    "three planes": changed(three_planes, reason="3 orientations, as in a localizer: 3 stacks of 5, 5, 4 slices"),
    "one slice": of(replace(SPEC, shape=(1, 32, 30)), reason="1 slice, at least 8 are needed"),
    "small field": of(replace(SPEC, spacing_mm=(8.0, 3.0, 2.0)), reason=r"covers 112.0 x 96.0 x 60.0 mm"),
    "no plane": changed(put(ImagePositionPatient=None), reason="ImagePositionPatient holds 0 values"),
    "no frame of reference": changed(put(FrameOfReferenceUID=""), reason="no FrameOfReferenceUID"),
    "cosines that are none": changed(put(ImageOrientationPatient=[1, 0, 0, 0, 1.1, 0]), reason="is not orthonormal"),
}


ACCEPTED = {name: case for name, case in CASES.items() if not case.reason}
REFUSED = {name: case for name, case in CASES.items() if case.reason}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_series_lie_where_they_were_put_and_where_other_readers_see_them(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    paths = case.make(tmp_path)
    volume = load_series(paths).volume
    put_at = Volume(volume.array, case.affine)
    assert distance_mm(match_order(volume, put_at), put_at) < case.tolerance_mm
    for peer in case.peers:
        theirs = READERS[peer](paths)
        ours = match_order(volume, theirs)
        assert distance_mm(ours, theirs) < ON_GRID_MM, peer
        if name != "MONOCHROME1":  # they give the stored values, we turn them round
            np.testing.assert_allclose(ours.array, theirs.array, rtol=1e-5, atol=1e-3, err_msg=peer)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_series_are_told_why(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the builder breaks the rules on purpose
        paths = CASES[name].make(tmp_path)
    with pytest.raises(SeriesRefusedError, match=CASES[name].reason):
        load_series(paths)


def distance_mm(one: Volume, other: Volume) -> float:
    """Return how far the corners of two volumes lie apart at most, voxel by voxel."""
    assert one.shape == other.shape
    return float(np.abs(corners_mm(one.affine, one.shape) - corners_mm(other.affine, other.shape)).max())


def match_order(volume: Volume, other: Volume) -> Volume:
    """Give our volume with its slices in the other reader's order: which end comes first is a convention."""
    if volume.affine[:3, 0] @ other.affine[:3, 0] > 0:
        return volume
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (volume.shape[0] - 1)
    affine[:3, 0] *= -1
    return Volume(volume.array[::-1], affine)


def read_by_simpleitk(paths: Sequence[Path]) -> Volume:
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(paths[0].parent))
    image = sitk.ReadImage(names, sitk.sitkFloat32)
    return Volume(sitk.GetArrayFromImage(image), affine_of(image))


def read_by_highdicom(paths: Sequence[Path]) -> Volume:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if len(paths) == 1:
            volume = highdicom.imread(paths[0]).get_volume(dtype=np.float32)
        else:
            data_sets = [pydicom.dcmread(path) for path in paths]
            volume = highdicom.get_volume_from_series(data_sets, dtype=np.float32)
    return Volume(volume.array, volume.affine)


READERS = {"SimpleITK": read_by_simpleitk, "highdicom": read_by_highdicom}
