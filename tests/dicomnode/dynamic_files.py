"""A PET of several time frames, made of the slices that `series_files` makes.

Flow: series_files > [dynamic_files] > tests
Never: code of `volumes/` or `outputs/`, which it is there to test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pydicom
from numpy.typing import NDArray

from tests.dicomnode.series_files import Change, SeriesSpec, make_series, no_change

HALF_LIFE_S = 6586.2  # of F-18, as `series_files` writes it
START = 10 * 3600  # seconds of the day at which the first frame began: SeriesTime


PET = SeriesSpec(modality="PT", shape=(14, 26, 28), spacing_mm=(7.0, 4.0, 4.0), uid="1.2.826.0.1.3680043.8.498.5")


@dataclass(frozen=True)
class DynamicSpec:
    """A dynamic PET: frames of unequal length one after the other, whose values differ in scale and in their place."""

    durations_s: tuple[int, ...] = (60, 120, 300, 600)
    series: SeriesSpec = PET
    change: Change = no_change  # a last word on each slice; it gets the number of the frame, from 0

    def starts_s(self) -> list[int]:
        """Return when each frame begins, from the start of the scan."""
        return [sum(self.durations_s[:number]) for number in range(len(self.durations_s))]


def make_dynamic(spec: DynamicSpec) -> list[list[pydicom.Dataset]]:
    """Make the slices of each frame, in the order of time and of k."""
    return [_make_frame(spec, number) for number in range(len(spec.durations_s))]


def find_factor(start_s: float, duration_s: float) -> float:
    """Return the factor that corrects the mean activity of a frame to the start of the scan."""
    decay = np.log(2) / HALF_LIFE_S
    return float(decay * duration_s / (np.exp(-decay * start_s) - np.exp(-decay * (start_s + duration_s))))


def find_reference_ms(start_s: float, duration_s: float) -> float:
    """Return the moment at which the activity is the frame's mean, from the start of the scan."""
    return float(1000 * HALF_LIFE_S * np.log2(find_factor(start_s, duration_s)))


def find_mean(spec: DynamicSpec) -> NDArray[np.float64]:
    """Return the (k, j, i) mean of the rescaled frames, weighted by their durations."""
    frames = [[_rescale(header) for header in slices] for slices in make_dynamic(spec)]
    return np.average(np.array(frames), axis=0, weights=np.array(spec.durations_s, dtype=float))


def _rescale(header: pydicom.Dataset) -> NDArray[np.float64]:
    stored = np.frombuffer(header.PixelData, "<i2").reshape(header.Rows, header.Columns)
    return stored * float(header.RescaleSlope) + float(header.RescaleIntercept)


def _make_frame(spec: DynamicSpec, number: int) -> list[pydicom.Dataset]:
    start_s, duration_s = spec.starts_s()[number], spec.durations_s[number]
    slices = []
    for k, header in enumerate(make_series(replace(spec.series, change=no_change))):
        spec.series.change(header, k)
        header.SOPInstanceUID = f"{header.SOPInstanceUID}.{number + 1}"
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.SeriesType = ["DYNAMIC", "IMAGE"]
        header.NumberOfTimeSlices = len(spec.durations_s)
        header.SeriesTime = _time(START)
        header.AcquisitionTime = _time(START + start_s)
        header.ActualFrameDuration = 1000 * duration_s
        header.FrameReferenceTime = f"{find_reference_ms(start_s, duration_s):.3f}"
        header.DecayFactor = f"{find_factor(start_s, duration_s):.6f}"
        header.ImageIndex = number * spec.series.shape[0] + k + 1
        header.RescaleSlope = f"{(0.5 + 0.01 * k) * (number + 1):.4f}"
        header.PixelData = np.roll(np.frombuffer(header.PixelData, "<i2"), 3 * number).tobytes()
        spec.change(header, number)
        slices.append(header)
    return slices


def _time(seconds: int) -> str:
    return f"{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"
