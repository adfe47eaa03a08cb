"""Reads what a series says of itself from its summary, whatever senders put there.

Flow: database/series > [attributes] > pairing/candidates
Never: an error for a value that is missing, malformed or not finite; an identity.
"""

from __future__ import annotations

import math

from dicomnode.database.index import list_image_types
from dicomnode.database.series import SeriesRow


def find_words(series: SeriesRow) -> str:
    """Return what people named the series, `_` as a space so that word bounds are seen."""
    names = (series.description, find_first(series, "ProtocolName"), find_first(series, "SequenceName"))
    return " ".join(str(name) for name in names if name).replace("_", " ")


def find_values(series: SeriesRow, keyword: str) -> tuple[str, ...]:
    """Return the values of an attribute, in capitals; none where it is absent or empty."""
    value = series.summary.get(keyword)
    if value is None or value == "":
        return ()
    parts = value if isinstance(value, list | tuple) else str(value).split("\\")
    return tuple(str(part).strip().upper() for part in parts)


def find_image_types(series: SeriesRow) -> list[tuple[str, ...]]:
    """Return the values of ImageType of each kind of images in the series, in capitals; one kind for most."""
    return [tuple(value.strip().upper() for value in kind.split("\\")) for kind in list_image_types(series.summary)]


def find_first(series: SeriesRow, keyword: str) -> str:
    """Return the first value of an attribute, in capitals; empty where there is none."""
    return next(iter(find_values(series, keyword)), "")


def find_number(series: SeriesRow, keyword: str) -> float | None:
    """Return the first value of an attribute as a number; None where it is none."""
    return _float(find_first(series, keyword))


def count_slices(series: SeriesRow) -> int:
    """Return how many slices have arrived: instances, or the frames of multi-frame ones."""
    frames = find_number(series, "NumberOfFrames")
    return series.instance_count if frames is None else series.instance_count * int(frames)


def count_time_frames(series: SeriesRow) -> int:
    """Return how many time frames a PET says it has (PS3.3 C.8.9.1); 1 where it says nothing."""
    return max(1, int(find_number(series, "NumberOfTimeSlices") or 1))


def find_voxel_mm(series: SeriesRow) -> tuple[float, ...]:
    """Return row spacing, column spacing and slice distance; shorter where one is not known."""
    slice_mm = find_number(series, "SpacingBetweenSlices") or find_number(series, "SliceThickness")
    spacing = [_float(value) for value in find_values(series, "PixelSpacing")]
    return tuple(abs(value) for value in (*spacing, slice_mm) if value)


def find_extent_mm(series: SeriesRow) -> tuple[float, ...]:
    """Return how far the series reaches along columns, rows and slices; empty where that is not known."""
    edges, counts = find_voxel_mm(series), (find_number(series, "Rows"), find_number(series, "Columns"))
    if len(edges) != 3 or not all(counts):
        return ()
    return tuple(edge * (count or 0.0) for edge, count in zip(edges, (*counts, count_slices(series)), strict=True))


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
