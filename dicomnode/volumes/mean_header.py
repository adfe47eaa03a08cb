"""The header of a mean over time: what its images agree in, and the times and factors of all of them together.

Flow: series > [mean_header] > outputs
Never: a word that is true of one image alone; an instance's UID, but where one instance holds all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.tag import BaseTag
from pydicom.valuerep import format_number_as_ds

from dicomnode.volumes.headers import PARSE_ERRORS, read_numbers, read_sequence_items, read_word

OF_THE_START = ("AcquisitionDate", "AcquisitionTime")  # when counting began: PS3.3 C.7.10.1, C.8.9.4
OF_ONE_TIME = ("NumberOfTimeSlices",)  # the same in all images, and none of a mean

Numbers = NDArray[np.float64]


def make_mean_header(headers: Sequence[pydicom.Dataset], durations_ms: Sequence[float]) -> pydicom.Dataset:
    """Make the header that one image over the whole time would have.

    Parameters
    ----------
    headers : sequence of data sets
        Of the images at one position, in the order of time.
    durations_ms : sequence of float
        Of each, more than 0.

    Returns
    -------
    Dataset
        ActualFrameDuration is the sum. FrameReferenceTime and DecayFactor are those of one frame over the whole time
        whose activity changes by decay alone: with the decay constant c, exp(-c t) and 1/DecayFactor are averaged.
        Either is absent where an image lacks it.

    Sources
    -------
    PS3.3 C.8.9.4: DecayFactor scales an image to the moment that decay is corrected to, FrameReferenceTime is when
    its values occurred.
    """
    first = headers[0]
    merged = pydicom.Dataset()
    for tag in list(first.keys()):
        _copy_common(headers, tag, merged)
    merged.file_meta = first.file_meta
    for keyword in OF_ONE_TIME:
        merged.pop(keyword, None)
    for keyword in OF_THE_START:
        if keyword in first:
            merged[keyword] = first[keyword]
    weights = np.array(durations_ms) / sum(durations_ms)
    merged.ActualFrameDuration = round(sum(durations_ms))
    times_ms, factors = _read_all(headers, "FrameReferenceTime"), _read_all(headers, "DecayFactor")
    for keyword in ("FrameReferenceTime", "DecayFactor"):
        merged.pop(keyword, None)
    if times_ms is not None:
        merged.FrameReferenceTime = format_number_as_ds(
            round(_mean_time_ms(times_ms, weights, _decay_per_ms(first)), 3)
        )
    if factors is not None and (factors > 0).all():
        merged.DecayFactor = format_number_as_ds(round(float(1 / (weights @ (1 / factors))), 9))
    return merged


def _copy_common(headers: Sequence[pydicom.Dataset], tag: BaseTag, merged: pydicom.Dataset) -> None:
    """Copy an element that all headers hold alike, byte by byte where nobody has read it yet."""
    items = [header.get_item(tag) for header in headers]
    if any(item is None or item.value != items[0].value for item in items):
        return
    try:
        merged[tag] = headers[0][tag]
    except PARSE_ERRORS:
        return  # nobody could read it of one image either


def _read_all(headers: Sequence[pydicom.Dataset], keyword: str) -> Numbers | None:
    if not all(read_word(header, keyword) for header in headers):
        return None
    return np.array([read_numbers(header, keyword, 1)[0] for header in headers])


def _decay_per_ms(header: pydicom.Dataset) -> float:
    """Read the decay constant of what was injected; 0 where it is not known."""
    for item in read_sequence_items(header, "RadiopharmaceuticalInformationSequence")[:1]:
        if read_word(item, "RadionuclideHalfLife"):
            half_life_s = read_numbers(item, "RadionuclideHalfLife", 1)[0]
            return math.log(2) / (1000 * half_life_s) if half_life_s > 0 else 0.0
    return 0.0


def _mean_time_ms(times_ms: Numbers, weights: Numbers, decay_per_ms: float) -> float:
    """Return the moment whose decay is the mean of the decays; the mean moment where there is no decay."""
    if decay_per_ms == 0:
        return float(weights @ times_ms)
    start_ms = float(times_ms.min())
    return start_ms - math.log(float(weights @ np.exp(-decay_per_ms * (times_ms - start_ms)))) / decay_per_ms
