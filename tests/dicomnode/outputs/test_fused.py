"""The fused series is for display, stands where the MR stands, and says what its colours mean."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from dicomnode.outputs.fused import find_patient_orientation
from dicomnode.outputs.objects import make_outputs
from registration.fusion import find_windows, fuse
from registration.resample import resample
from tests.dicomnode.outputs.known_requests import MR, make_request
from tests.dicomnode.series_files import AXIAL, CORONAL, OBLIQUE, SAGITTAL


@pytest.fixture(scope="module")
def images() -> list[pydicom.Dataset]:
    return [instance for kind, instance in make_outputs(make_request()) if kind == "rgb"]


def test_pixels_are_those_of_the_fusion(images: list[pydicom.Dataset]) -> None:
    request = make_request()
    moving_on_fixed = resample(request.moving.volume, request.fixed.volume, request.fixed_from_moving)
    windows = find_windows(request.fixed.volume.array, moving_on_fixed)
    wanted = fuse(request.fixed.volume.array, moving_on_fixed, windows, opacity=0.5, colour_map="inferno")
    for image, colours in zip(images, wanted, strict=True):
        assert image.PixelData == colours.tobytes()
        assert (image.SamplesPerPixel, image.PlanarConfiguration, image.PhotometricInterpretation) == (3, 0, "RGB")
        assert (image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation) == (8, 8, 7, 0)


def test_each_image_stands_on_its_mr_slice(images: list[pydicom.Dataset]) -> None:
    for image, source in zip(images, make_request().fixed.headers, strict=True):
        assert image.ImagePositionPatient == source.ImagePositionPatient
        assert image.ImageOrientationPatient == source.ImageOrientationPatient
        assert image.PixelSpacing == source.PixelSpacing
        assert image.SliceThickness == source.SliceThickness
        assert image.FrameOfReferenceUID == f"{MR.uid}.4"
        first = image.SourceImageSequence[0]
        assert first.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert first.SpatialLocationsPreserved == "YES"


def test_image_says_that_it_is_for_display(images: list[pydicom.Dataset]) -> None:
    image = images[3]
    assert image.Modality == "OT"
    assert list(image.ImageType) == ["DERIVED", "SECONDARY", "FUSED"]
    assert image.ConversionType == "WSD"
    assert image.BurnedInAnnotation == "NO"
    assert image.DerivationDescription.endswith("; for display only")
    assert image.ColorSpace == "SRGB"
    assert 500 < len(image.ICCProfile) <= 1200
    assert list(image.PatientOrientation) == ["L", "P"]
    assert image.SeriesDescription == "PET FDG brain fused on T1 äxial"


@pytest.mark.parametrize(
    ("orientation", "letters"),
    [
        (AXIAL, ["L", "P"]),
        (SAGITTAL, ["P", "F"]),
        (CORONAL, ["L", "F"]),
        ((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0), ["R", "A"]),
        (OBLIQUE, ["LP", "PRH"]),
        ((0.9999, 0.00001, 0.0, 0.0, 0.6, -0.8), ["L", "FP"]),
    ],
)
def test_patient_orientation_names_the_largest_component_first(
    orientation: tuple[float, ...], letters: list[str]
) -> None:
    assert find_patient_orientation(orientation) == letters


def test_odd_number_of_bytes_is_padded() -> None:
    odd = make_request(fixed=type(MR)(shape=(12, 33, 31)))
    image = next(instance for kind, instance in make_outputs(odd) if kind == "rgb")
    assert len(image.PixelData) == 33 * 31 * 3 + 1
    assert np.frombuffer(image.PixelData, np.uint8)[-1] == 0
