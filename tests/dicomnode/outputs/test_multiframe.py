"""The fused picture as one instance shows what the series shows, frame by frame, where the MR's slices stand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from dicomnode.outputs.objects import make_outputs
from tests.dicomnode.outputs.known_requests import EVERY_OBJECT, MR, PET, make_request
from tests.dicomnode.series_files import OBLIQUE


@pytest.fixture(scope="module")
def made() -> dict[str, list[pydicom.Dataset]]:
    instances: dict[str, list[pydicom.Dataset]] = {}
    oblique = replace(MR, orientation=OBLIQUE, shear_mm=(0.3, 0.0, 0.2), uid="1.2.3.3")
    for kind, instance in make_outputs(make_request(fixed=oblique, settings=EVERY_OBJECT)):
        instances.setdefault(kind, []).append(instance)
    return instances


def test_frames_are_the_images_of_the_series_and_stand_where_they_stand(made: dict[str, list[pydicom.Dataset]]) -> None:
    (multiframe,) = made["multiframe"]
    assert multiframe.NumberOfFrames == len(made["rgb"]) == 12
    assert multiframe.PixelData == b"".join(image.PixelData for image in made["rgb"])
    (shared,) = multiframe.SharedFunctionalGroupsSequence
    for frame, image in zip(multiframe.PerFrameFunctionalGroupsSequence, made["rgb"], strict=True):
        assert frame.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
        assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == image.ImageOrientationPatient
        assert shared.PixelMeasuresSequence[0].PixelSpacing == image.PixelSpacing == multiframe.PixelSpacing
        assert shared.PixelMeasuresSequence[0].SliceThickness == image.SliceThickness
    assert multiframe.PatientOrientation == made["rgb"][0].PatientOrientation


def test_frames_are_told_apart_by_where_they_lie_along_their_normal(made: dict[str, list[pydicom.Dataset]]) -> None:
    (multiframe,) = made["multiframe"]
    assert multiframe.FrameIncrementPointer == 0x00182005
    places_mm = [float(place) for place in multiframe.SliceLocationVector]
    row, column = np.array(OBLIQUE[:3]), np.array(OBLIQUE[3:])
    wanted = [float(np.cross(row, column) @ image.ImagePositionPatient) for image in made["rgb"]]
    np.testing.assert_allclose(places_mm, wanted, atol=1e-9)
    assert np.diff(places_mm) == pytest.approx(8.22, abs=0.01)  # 8 mm and what the shear adds


def test_every_slice_it_shows_is_a_source(made: dict[str, list[pydicom.Dataset]]) -> None:
    (multiframe,) = made["multiframe"]
    sources = [item.ReferencedSOPInstanceUID for item in multiframe.SourceImageSequence]
    assert sources == [f"1.2.3.3.3.{k + 1}" for k in range(12)]
    assert PET.uid not in "".join(sources)
