"""A dynamic PET becomes the mean of its frames where that is asked for and means something, or is told why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.series import SeriesVolume, load_series
from tests.dicomnode.dynamic_files import DynamicSpec, find_factor, find_mean, find_reference_ms, make_dynamic
from tests.dicomnode.enhanced_files import make_enhanced
from tests.dicomnode.series_files import CORONAL, SeriesSpec, make_series, write_files

SPEC = DynamicSpec()
TOTAL_S = sum(SPEC.durations_s)
Frames = list[list[pydicom.Dataset]]


def put_words(header: pydicom.Dataset, words: Mapping[str, object]) -> None:
    for keyword, value in words.items():
        setattr(header, keyword, value)


def load(folder: Path, frames: Frames) -> SeriesVolume:
    return load_series(write_files(folder, [header for slices in frames for header in slices]), "mean")


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> SeriesVolume:
    return load(tmp_path_factory.mktemp("mean"), make_dynamic(SPEC))


def test_values_are_the_mean_of_the_rescaled_frames_weighted_by_duration(mean: SeriesVolume) -> None:
    wanted = find_mean(SPEC)
    np.testing.assert_allclose(mean.volume.array, wanted, atol=1e-6 * wanted.max())
    np.testing.assert_allclose(mean.volume.affine, SPEC.series.affine(), atol=1e-9)


def test_the_choice_says_what_the_values_are(mean: SeriesVolume) -> None:
    assert mean.choice == "the duration-weighted mean of 4 time frames over 1080 s"


def test_every_image_that_went_in_is_a_source(mean: SeriesVolume) -> None:
    assert [len(images.headers) for images in mean.sources] == [14] * 4
    for number, images in enumerate(mean.sources, 1):
        for k, header in enumerate(images.headers):
            assert header.SOPInstanceUID == f"{SPEC.series.uid}.3.{k + 1}.{number}"
    assert mean.set_aside == ()


def test_the_header_is_that_of_one_frame_over_the_whole_time(mean: SeriesVolume) -> None:
    for header in mean.headers:
        assert header.ActualFrameDuration == 1000 * TOTAL_S
        assert float(header.DecayFactor) == pytest.approx(find_factor(0, TOTAL_S), rel=1e-6)
        assert float(header.FrameReferenceTime) == pytest.approx(find_reference_ms(0, TOTAL_S), abs=1)
        assert header.AcquisitionTime == "100000"
        assert str(header.PatientName) == "Müller^Käthe"
        assert header.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose == 250000000
        one_image_alone = {"SOPInstanceUID", "ImageIndex", "RescaleSlope", "NumberOfTimeSlices"}
        assert not one_image_alone & set(header.dir())


def test_without_a_half_life_the_reference_is_the_mean_moment(tmp_path: Path) -> None:
    def change(header: pydicom.Dataset, _number: int) -> None:
        del header.RadiopharmaceuticalInformationSequence[0].RadionuclideHalfLife

    header = load(tmp_path, make_dynamic(replace(SPEC, change=change))).headers[0]
    references = [find_reference_ms(*when) for when in zip(SPEC.starts_s(), SPEC.durations_s, strict=True)]
    assert float(header.FrameReferenceTime) == pytest.approx(np.average(references, weights=SPEC.durations_s), abs=0.01)


def test_a_factor_that_one_frame_lacks_is_said_of_none(tmp_path: Path) -> None:
    frames = make_dynamic(SPEC)
    for header in frames[2]:
        del header.DecayFactor
    assert "DecayFactor" not in load(tmp_path, frames).headers[0]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    slices = [header for frame in make_dynamic(SPEC) for header in frame]
    return write_files(tmp_path_factory.mktemp("mixed"), slices)


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(order=st.permutations(range(4 * 14)))
def test_any_order_of_files_gives_the_same_mean(mixed: list[Path], order: Sequence[int]) -> None:
    straight, turned = load_series(mixed, "mean"), load_series([mixed[place] for place in order], "mean")
    assert turned.volume.array.tobytes() == straight.volume.array.tobytes()
    assert [header.DecayFactor for header in turned.headers] == [header.DecayFactor for header in straight.headers]


def test_slices_of_a_frame_may_be_named_in_any_order(tmp_path: Path, mean: SeriesVolume) -> None:
    frames = make_dynamic(SPEC)
    for k, header in enumerate(frames[1]):
        header.SOPInstanceUID = f"1.2.3.{100 + (5 * k) % 14}"
    np.testing.assert_array_equal(load(tmp_path, frames).volume.array, mean.volume.array)


def test_at_most_the_volume_and_one_slice_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed: list[Path]
) -> None:
    made: list[int] = []
    empty = np.empty

    def count(shape: tuple[int, ...], *args: object, **kwargs: object) -> object:
        made.append(int(np.prod(shape)))
        return empty(shape, *args, **kwargs)  # type: ignore[call-overload]  # passed through

    monkeypatch.setattr(np, "empty", count)
    load_series(mixed, "mean")
    assert sorted(size for size in made if size >= 26 * 28) == [26 * 28, 14 * 26 * 28]


def test_by_default_it_is_refused(mixed: list[Path]) -> None:
    with pytest.raises(SeriesRefusedError, match="a dynamic series: 4 stacks of 14, 14, 14, 14 slices that differ in"):
        load_series(mixed)


def test_a_pet_of_one_frame_is_read_as_ever(tmp_path: Path) -> None:
    paths = write_files(tmp_path, make_series(SPEC.series))
    one, other = load_series(paths), load_series(paths, "mean")
    assert one.volume.array.tobytes() == other.volume.array.tobytes()
    assert (other.choice, other.mean) == ("", None)


def test_stray_slices_of_another_plane_are_set_aside(tmp_path: Path, mean: SeriesVolume) -> None:
    stray = make_series(replace(SPEC.series, shape=(3, 26, 28), orientation=CORONAL))
    for header in stray:
        header.SOPInstanceUID += ".9"
    found = load(tmp_path, [*make_dynamic(SPEC), stray])
    np.testing.assert_array_equal(found.volume.array, mean.volume.array)
    assert len(found.set_aside) == 3


def test_a_body_is_cropped_to_the_head_in_every_frame(tmp_path: Path) -> None:
    series = replace(SPEC.series, shape=(60, 26, 28), spacing_mm=(8.0, 4.0, 4.0))
    body = DynamicSpec(durations_s=(60, 120), series=series)
    found = load(tmp_path, make_dynamic(body))
    np.testing.assert_allclose(found.volume.array, find_mean(body)[16:], rtol=1e-5, atol=1e-2)
    assert found.choice.endswith("over 180 s; cropped to the head: the upper 44 of 60 slices")
    assert len(found.set_aside) == 2 * 16


def make_enhanced_dynamic(dimension: str) -> pydicom.Dataset:
    """Make one multi-frame object whose frames say their times as an Enhanced PET does."""
    slices = []
    for number, frame in enumerate(make_dynamic(SPEC), 1):
        for k, header in enumerate(frame, 1):
            put_words(header, {"DimensionIndexValues": [1, k, number], "StackID": "1", "InStackPositionNumber": k})
            header.FrameAcquisitionDuration = float(header.ActualFrameDuration)
            header.FrameReferenceDateTime = f"20250301{header.AcquisitionTime}.500000"
            for keyword in (
                "ActualFrameDuration",
                "FrameReferenceTime",
                "DecayFactor",
                "AcquisitionTime",
                "ImageIndex",
            ):
                delattr(header, keyword)
            if dimension == "TemporalPositionIndex":
                header.TemporalPositionIdentifier = number
            slices.append(header)
    many = make_enhanced(slices[::-1], ("StackID", "InStackPositionNumber", dimension))
    for groups, header in zip(many.PerFrameFunctionalGroupsSequence, slices[::-1], strict=True):
        content = groups.FrameContentSequence[0]
        content.FrameAcquisitionDuration = header.FrameAcquisitionDuration
        content.FrameReferenceDateTime = header.FrameReferenceDateTime
    many.DecayCorrected, many.DecayCorrectionDateTime = "YES", "20250301100000"
    del many.SeriesType, many.NumberOfTimeSlices, many.DecayCorrection
    return many


@pytest.mark.parametrize("dimension", ["TemporalPositionIndex", "TemporalPositionTimeOffset"])
def test_the_time_frames_of_an_enhanced_object_have_their_mean(
    tmp_path: Path, mean: SeriesVolume, dimension: str
) -> None:
    found = load_series(write_files(tmp_path, [make_enhanced_dynamic(dimension)]), "mean")
    np.testing.assert_allclose(found.volume.array, mean.volume.array, rtol=1e-6)
    assert found.choice == mean.choice
    assert [images.frame_numbers[0] for images in found.sources] == [56, 42, 28, 14]
    assert found.headers[0].ActualFrameDuration == 1000 * TOTAL_S


def say(frame: int, **words: object) -> Callable[[Frames], None]:
    """Change words of one frame, or of all (-1); None takes them away."""

    def change(frames: Frames) -> None:
        for header in [one for slices in frames for one in slices] if frame < 0 else frames[frame]:
            put_words(header, words)
            for keyword in [keyword for keyword, value in words.items() if value is None]:
                delattr(header, keyword)

    return change


def say_of_one_slice(**words: object) -> Callable[[Frames], None]:
    return lambda frames: put_words(frames[1][5], words)


def drop(frame: int, *places: int) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frames[frame] = [header for k, header in enumerate(frames[frame]) if k not in places]

    return change


def move_one_slice(frames: Frames) -> None:
    frames[1][5].ImagePositionPatient[0] += 0.5


def add_sum(frames: Frames) -> None:
    total = make_dynamic(replace(SPEC, durations_s=(TOTAL_S,)))[0]
    for header in total:
        header.SOPInstanceUID += ".9"
        header.NumberOfTimeSlices = 4
    frames.append(total)


def give_one_frame_another_dose(frames: Frames) -> None:
    for header in frames[3]:
        header.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose = "300000000"


REFUSED: dict[str, tuple[Callable[[Frames], object], str]] = {
    "a slice missing": (drop(2, 6), "time frame 3 of 4 has 13 slices, another 14; a mean needs all slices of each"),
    "most of a frame missing": (drop(2, *range(3, 14)), "time frame 3 of 4 has 3 slices, another 14"),
    "a slice of every frame missing": (
        lambda frames: [drop(number, 6)(frames) for number in range(4)],
        "1 slice(s) missing: gap of 14.00 mm after k=5",
    ),
    "a frame missing": (lambda frames: frames.pop(1), "3 time frames where NumberOfTimeSlices is 4; all are needed"),
    "a slice elsewhere": (
        move_one_slice,
        "time frame 2 of 4 has a slice 0.50 mm from where the first frame has its own",
    ),
    "no duration": (
        say(1, ActualFrameDuration=None),
        "time frame 2 of 4: ActualFrameDuration is absent, one duration in ms is needed for a mean",
    ),
    "no duration of one slice": (
        say_of_one_slice(ActualFrameDuration=None),
        "time frame 2 of 4: ActualFrameDuration is absent, 120000, one duration in ms is needed",
    ),
    "a duration of 0": (
        say(3, ActualFrameDuration=0),
        "time frame 4 of 4: ActualFrameDuration is 0 ms, more than 0 is",
    ),
    "not corrected for decay": (
        say(-1, DecayCorrection="NONE"),
        "DecayCorrection NONE in a series of time frames, one of START, ADMIN is needed: frames are on one reference",
    ),
    "nothing said of decay": (say(-1, DecayCorrection=None), "DecayCorrection absent in a series of time frames"),
    "one frame corrected to another event": (say(1, DecayCorrection="ADMIN"), "2 different values of DecayCorrection"),
    "one frame in another unit": (say(1, Units="GML"), "2 different values of Units (BQML, GML), one is needed"),
    "counts": (
        say(-1, Units="CNTS"),
        "Units CNTS in a series of time frames, one of BQML, GML, CM2ML, CPS, PROPCPS is",
    ),
    "one frame not corrected for attenuation": (
        say(0, CorrectedImage=["DECY", "SCAT"]),
        r"time frames with 2 values of CorrectedImage (DECY\ATTN\SCAT, DECY\SCAT), a mean needs one",
    ),
    "one frame with a start of its own": (
        say(2, SeriesTime="100500"),
        "time frames with 2 values of SeriesTime, a mean needs one",
    ),
    "one frame with another dose": (
        give_one_frame_another_dose,
        "time frames with different values in RadiopharmaceuticalInformationSequence, a mean needs one",
    ),
    "the sum beside its frames": (
        add_sum,
        "time frames 3 and 4 of 5 overlap: their reference times are 205.28 s apart, and the shorter was counted for",
    ),
    "no time": (
        lambda frames: [say(-1, FrameReferenceTime=None)(frames)],
        "time frames without FrameReferenceTime; by it they are seen not to overlap before a mean is made",
    ),
    "gated": (
        say(-1, SeriesType=["GATED", "IMAGE"]),
        "a gated series of 4 gates: nothing says how long each was counted, which a mean would go by",
    ),
    "gates by their trigger": (
        lambda frames: [say(number, TriggerTime=100 * number)(frames) for number in range(4)],
        "a gated series of 4 gates",
    ),
    "two kinds of images": (
        say(0, ImageType=["DERIVED", "PRIMARY"]),
        r"stacks of 14, 14, 14, 14 slices that differ in ImageType (DERIVED\PRIMARY, ORIGINAL\PRIMARY)",
    ),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_mean_that_would_mean_nothing_is_refused_by_name(
    tmp_path: Path, change: Callable[[Frames], object], reason: str
) -> None:
    frames = make_dynamic(SPEC)
    change(frames)
    with pytest.raises(SeriesRefusedError, match=re.escape(reason)) as caught:
        load(tmp_path, frames)
    assert "1005" not in str(caught.value)  # no time of day


def test_an_mr_of_several_times_is_refused_whatever_is_asked(tmp_path: Path) -> None:
    slices = []
    for time in (1, 2):
        for header in make_series(SeriesSpec()):
            header.SOPInstanceUID += f".{time}"
            header.TemporalPositionIdentifier = time
            slices.append(header)
    with pytest.raises(SeriesRefusedError, match="a time series, as functional or dynamic imaging makes"):
        load(tmp_path, [slices])
