"""A series is split into stacks; rules choose one of them, or the refusal says what kind of series it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.frames import Frame
from dicomnode.volumes.headers import Instance
from dicomnode.volumes.series import load_series
from dicomnode.volumes.stacks import choose_stack, split_stacks
from tests.dicomnode.series_files import CORONAL, SeriesSpec, make_series, stored_values, write_files

Words = Mapping[str, object]
SLICES = 10


def put_words(header: pydicom.Dataset, words: Words) -> None:
    for keyword, value in words.items():
        setattr(header, keyword, value)


def make_repeated(words: Sequence[Words | Callable[[int], Words]], spec: SeriesSpec | None = None) -> list[Frame]:
    """Make each slice once for each of `words`, which it is given; a function gets k."""
    frames = []
    spec = spec or SeriesSpec(shape=(SLICES, 32, 30))
    for number, chosen in enumerate(words):
        for k, header in enumerate(make_series(spec)):
            put_words(header, chosen(k) if callable(chosen) else chosen)
            header.SOPInstanceUID = f"{header.SOPInstanceUID}.{number}"
            frames.append(Frame(Instance(Path(f"{number}-{k}"), header, 0, 0), 0, header))
    return frames


TIMES: dict[str, tuple[list[Words | Callable[[int], Words]], str]] = {
    "functional": (
        [{"TemporalPositionIdentifier": time} for time in range(1, 7)],
        r"a time series, as functional or dynamic imaging makes: 6 stacks of 10, 10, 10, 10, ... slices that differ in "
        r"TemporalPositionIdentifier \(1, 2, 3, 4, ...\); one is needed, and no rule chooses",
    ),
    "dynamic pet": (
        [{"FrameReferenceTime": 1000}, {"FrameReferenceTime": 3000}],
        r"a dynamic series: 2 stacks of 10, 10 slices that differ in FrameReferenceTime \(1000, 3000\)",
    ),
    "diffusion": (
        [
            {"DiffusionBValue": 0.0},
            *({"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": [1.0, 0.0, n / 10]} for n in range(3)),
        ],
        r"diffusion weighted \(DWI\): 4 stacks of 10, 10, 10, 10 slices that differ in DiffusionBValue \(0, 1000\) and",
    ),
    "two acquisitions, each slice at a time of its own": (
        [
            lambda k: {"TriggerTime": 10 * k, "AcquisitionNumber": 1},
            lambda k: {"TriggerTime": 10 * k + 5, "AcquisitionNumber": 2},
        ],
        r"several acquisitions: 2 stacks of 10, 10 slices that differ in AcquisitionNumber \(1, 2\)",
    ),
    "two acquisitions, two slices at a time": (
        [
            lambda k: {"TriggerTime": 10 * (k // 2), "AcquisitionNumber": 1},
            lambda k: {"TriggerTime": 10 * (k // 2) + 5, "AcquisitionNumber": 2},
        ],
        r"several acquisitions: 2 stacks of 10, 10 slices that differ in AcquisitionNumber \(1, 2\)",
    ),
    "times of day are not shown": (
        [{"AcquisitionTime": "101112"}, {"AcquisitionTime": "101213"}],
        r"several acquisitions: 2 stacks of 10, 10 slices that differ in AcquisitionTime; one",
    ),
    "nothing tells": ([{}, {}], r"20 images at 10 positions and nothing in them that tells which belong together"),
    "two frames of reference": (
        [{"FrameOfReferenceUID": "1.9"}, {"FrameOfReferenceUID": "1.8"}],
        r"^2 stacks of 10, 10 slices that differ in FrameOfReferenceUID; one",
    ),
    "two kinds": (
        [{"ImageType": ["ORIGINAL", "PRIMARY", "W"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "F"]}],
        r"2 stacks of 10, 10 slices that differ in ImageType \(ORIGINAL\\PRIMARY\\W, ORIGINAL\\PRIMARY\\F\); one",
    ),
}


@pytest.mark.parametrize(("words", "reason"), TIMES.values(), ids=TIMES)
def test_what_no_rule_chooses_is_refused_as_the_kind_of_series_it_is(
    words: list[Words | Callable[[int], Words]], reason: str
) -> None:
    with pytest.raises(SeriesRefusedError, match=reason):
        choose_stack(split_stacks(make_repeated(words)))


PHASE = {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}
CHOICES: dict[str, tuple[list[Words], int, str]] = {
    "first echo": (
        [{"EchoTime": 90}, {"EchoTime": 12}, {"EchoTime": 50}],
        1,
        "the first echo, of EchoTime (90, 12, 50)",
    ),
    "magnitude": ([PHASE, {}], 1, r"the magnitude, of ImageType (ORIGINAL\PRIMARY\P, ORIGINAL\PRIMARY\M)"),
    "magnitude of the first echo": (
        [PHASE | {"EchoTime": 3}, PHASE | {"EchoTime": 9}, {"EchoTime": 9}, {"EchoTime": 3}],
        3,
        r"the magnitude, of EchoTime (3, 9) and ImageType; the first echo, of EchoTime (3, 9)",
    ),
    "enhanced magnitude": (
        [{"ComplexImageComponent": "PHASE"}, {"ComplexImageComponent": "MAGNITUDE"}],
        1,
        "the magnitude, of ComplexImageComponent (PHASE, MAGNITUDE)",
    ),
    "only phase": ([PHASE], 0, ""),
}


@pytest.mark.parametrize(("words", "chosen", "choice"), CHOICES.values(), ids=CHOICES)
def test_rules_choose_one_stack_and_say_by_what(words: list[Words], chosen: int, choice: str) -> None:
    frames = make_repeated(words)
    stack, said = choose_stack(split_stacks(frames))
    assert list(stack.frames) == frames[chosen * SLICES : (chosen + 1) * SLICES]
    assert said == choice


def test_a_few_slices_of_another_plane_are_set_aside() -> None:
    frames = make_repeated([{}]) + make_repeated([{}], SeriesSpec(shape=(3, 32, 30), orientation=CORONAL))
    stack, said = choose_stack(split_stacks(frames))
    assert list(stack.frames) == frames[:SLICES]
    assert said == (r"3 slice(s) set aside that differ in ImageOrientationPatient (1\0\0\0\1\0, 1\0\0\0\0\-1)")


def test_the_spelling_of_a_header_makes_no_stack_of_its_own() -> None:
    turn: list[Callable[[int], Words]] = [
        lambda k: {"ImageOrientationPatient": [1, 1e-4 * k, 0, 0, 1, 0], "PixelSpacing": [3 + 1e-4 * k, 3.5]}
    ]
    (stack,) = split_stacks(make_repeated(turn))
    assert len(stack.frames) == SLICES
    np.testing.assert_allclose(stack.spacing_mm, (3.00045, 3.5))


@pytest.fixture(scope="module")
def two_echoes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    frames = make_repeated([{"EchoTime": 40, "RescaleSlope": 7}, {"EchoTime": 10, "RescaleSlope": 2}])
    return write_files(tmp_path_factory.mktemp("echoes"), [frame.header for frame in frames])


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(order=st.permutations(range(2 * SLICES)))
def test_any_order_of_files_gives_the_same_stack(two_echoes: list[Path], order: list[int]) -> None:
    straight, mixed = load_series(two_echoes), load_series([two_echoes[index] for index in order])
    assert mixed.volume.array.tobytes() == straight.volume.array.tobytes()
    assert mixed.volume.affine.tobytes() == straight.volume.affine.tobytes()
    assert mixed.choice == straight.choice == "the first echo, of EchoTime (40, 10)"


def test_the_first_echo_of_a_stored_series_becomes_the_volume(two_echoes: list[Path]) -> None:
    series = load_series(two_echoes)
    assert {header.EchoTime for header in series.headers} == {10}
    for k in range(SLICES):
        np.testing.assert_array_equal(series.volume.array[k], 2 * stored_values((SLICES, 32, 30), k))
