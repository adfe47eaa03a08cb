"""Each frame of a multi-frame object is read as the slice it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, LegacyConvertedEnhancedPETImageStorage

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.series import SeriesVolume, load_series
from tests.dicomnode.enhanced_files import make_enhanced, make_enhanced_series
from tests.dicomnode.series_files import OBLIQUE, Change, SeriesSpec, make_series, stored_values, write_files


def load(folder: Path, *data_sets: pydicom.Dataset) -> SeriesVolume:
    return load_series(write_files(folder, data_sets))


@pytest.mark.parametrize("modality", ["MR", "PT"])
def test_frames_are_placed_and_rescaled_each_by_its_own_groups(tmp_path: Path, modality: str) -> None:
    spec = SeriesSpec(modality=modality, orientation=OBLIQUE, shear_mm=(0.4, 0.0, 0.2))
    single = load_series(write_files(tmp_path / "single", make_series(spec)))
    many = load(tmp_path / "many", make_enhanced_series(spec))
    np.testing.assert_array_equal(many.volume.array, single.volume.array)
    np.testing.assert_allclose(many.volume.affine, single.volume.affine, atol=1e-12)
    assert many.frame_numbers == tuple(range(12, 0, -1))
    assert single.frame_numbers == ()


def test_frames_in_big_endian_are_read_too(tmp_path: Path) -> None:
    many = make_enhanced_series(SeriesSpec())
    many.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    many.PixelData = np.frombuffer(many.PixelData, "<i2").astype(">i2").tobytes()
    series = load(tmp_path, many)
    for k in range(12):
        np.testing.assert_array_equal(series.volume.array[k], stored_values((12, 32, 30), k))


def test_a_frame_s_header_says_what_a_single_slice_would(tmp_path: Path) -> None:
    spec = SeriesSpec(orientation=OBLIQUE)
    series = load(tmp_path, make_enhanced_series(spec))
    for k, header in enumerate(series.headers):
        wanted = make_series(spec)[k]
        for keyword in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "SliceThickness",
            "EchoTime",
        ):
            assert header[keyword].value == wanted[keyword].value, keyword
        assert header.ImageType == ["ORIGINAL", "PRIMARY", "M"]
        assert str(header.PatientName) == "Müller^Käthe"
        assert not {"NumberOfFrames", "PerFrameFunctionalGroupsSequence"} & set(header.dir())
        assert header.SOPInstanceUID == series.headers[0].SOPInstanceUID


def test_a_series_may_be_spread_over_several_objects(tmp_path: Path) -> None:
    slices = make_series(SeriesSpec())
    halves = [make_enhanced(slices[:5]), make_enhanced(slices[5:])]
    series = load(tmp_path, *halves)
    assert series.volume.shape == (12, 32, 30)
    assert series.frame_numbers == (1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 7)


def test_a_pet_in_real_world_units_says_so_in_a_pet_image_s_words(tmp_path: Path) -> None:
    units = pydicom.Dataset()
    units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = "Bq/ml", "UCUM", "Becquerels/milliliter"

    def change(header: pydicom.Dataset, k: int) -> None:
        del header.CorrectedImage
        header.RealWorldValueSlope, header.RealWorldValueIntercept = 2.0 + k, 1.0
        header.MeasurementUnitsCodeSequence = [units]
        header.AttenuationCorrected, header.DecayCorrected, header.ScatterCorrected = "YES", "YES", "NO"

    spec = SeriesSpec(modality="PT", change=change)
    series = load(tmp_path, make_enhanced_series(spec))
    header = series.headers[3]
    assert (header.Units, header.RescaleSlope, header.CorrectedImage) == ("BQML", 5.0, ["DECY", "ATTN"])
    np.testing.assert_allclose(series.volume.array[3], stored_values(spec.shape, 3) * 5.0 + 1.0, rtol=1e-6)


def in_enhanced_words(corrected: str, moment: str) -> Change:
    """Say of dose and decay what an Enhanced PET says: in MBq, and by a moment."""

    def change(header: pydicom.Dataset, _k: int) -> None:
        (isotope,) = header.RadiopharmaceuticalInformationSequence
        isotope.RadionuclideTotalDose = "250.5"
        isotope.RadiopharmaceuticalStartDateTime = "20250301080000+0000"
        header.DecayCorrected, header.DecayCorrectionDateTime = corrected, moment
        header.TimezoneOffsetFromUTC = "+0100"
        del header.DecayCorrection

    return change


@pytest.mark.parametrize(
    ("corrected", "moment", "found"),
    [
        ("NO", "", ("NONE", "090000")),
        ("YES", "20250301080000.00+0000", ("ADMIN", "090000")),
        ("YES", "20250301093015.5", ("START", "093015.500000")),
        ("YES", "20250301093015.5+0100", ("START", "093015.500000")),
        ("YES", "20250301083015.5+0000", ("", "090000")),
        ("YES", "202503", ("", "090000")),
    ],
)
def test_an_enhanced_pet_says_dose_and_decay_in_a_pet_image_s_words(
    tmp_path: Path, corrected: str, moment: str, found: tuple[str, str]
) -> None:
    spec = SeriesSpec(modality="PT", change=in_enhanced_words(corrected, moment))
    for header in load(tmp_path, make_enhanced_series(spec)).headers:
        assert header.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose == 250_500_000
        assert (header.get("DecayCorrection", ""), header.SeriesTime) == found


def test_a_pet_that_was_converted_to_many_frames_keeps_its_dose(tmp_path: Path) -> None:
    many = make_enhanced_series(SeriesSpec(modality="PT"))
    many.SOPClassUID = many.file_meta.MediaStorageSOPClassUID = LegacyConvertedEnhancedPETImageStorage
    header = load(tmp_path, many).headers[0]
    assert header.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose == 250_000_000


def in_time(slices: Sequence[pydicom.Dataset]) -> list[pydicom.Dataset]:
    """Repeat slices at a second time, which only the dimension index tells."""
    frames = []
    for time in (1, 2):
        for number, header in enumerate(slices):
            frame = copy.deepcopy(header)
            frame.StackID, frame.InStackPositionNumber = "1", number + 1
            frame.DimensionIndexValues = [1, number + 1, time]
            frames.append(frame)
    return frames


def test_frames_that_only_a_dimension_tells_apart_are_a_series_of_it(tmp_path: Path) -> None:
    frames = in_time(make_series(SeriesSpec()))
    many = make_enhanced(frames, ("StackID", "InStackPositionNumber", "TemporalPositionTimeOffset"))
    with pytest.raises(
        SeriesRefusedError, match=r"2 stacks of 12, 12 slices that differ in TemporalPositionTimeOffset \(1, 2\)"
    ):
        load(tmp_path, many)


def test_two_stacks_of_one_object_are_split(tmp_path: Path) -> None:
    slices = make_series(SeriesSpec())
    for number, header in enumerate(slices):
        header.StackID = "2" if number < 2 else "1"
    series = load(tmp_path, make_enhanced(slices[1:] + slices[:1]))
    assert series.volume.shape[0] == 10
    assert series.choice == r"2 slice(s) set aside that differ in StackID (1, 2)"


def test_frames_without_a_description_are_refused(tmp_path: Path) -> None:
    many = make_enhanced_series(SeriesSpec())
    many.PerFrameFunctionalGroupsSequence = many.PerFrameFunctionalGroupsSequence[:-1]
    with pytest.raises(SeriesRefusedError, match="12 frames and 11 items in PerFrameFunctionalGroupsSequence"):
        load(tmp_path / "short", many)
    many = make_enhanced_series(SeriesSpec())
    del many.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence
    with pytest.raises(SeriesRefusedError, match="ImagePositionPatient holds 0 values"):
        load(tmp_path / "nowhere", many)


def test_an_object_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    many = make_enhanced_series(SeriesSpec())
    many.PixelData = many.PixelData[:-2]
    with pytest.raises(SeriesRefusedError, match=r"pixels cannot be decoded \(23038 bytes where at least 23040 are"):
        load(tmp_path, many)
