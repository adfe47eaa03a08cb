"""Stored slices of one series become one volume in patient coordinates, or are refused with the reason.

Flow: jobs|cli > [series] > registration
Never: the database, the network, a guess: what cannot be placed or measured is refused and said why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from dicomnode.errors import SeriesRefusedError
from dicomnode.logs import get_logger
from dicomnode.setting_values import DynamicPet
from dicomnode.volumes.checks import check_coverage, check_headers, check_slices
from dicomnode.volumes.frames import Frame, split_frames
from dicomnode.volumes.geometry import SliceStack, crop_to_head, fit_stack
from dicomnode.volumes.headers import PARSE_ERRORS, Instance, quiet_reading, read_instance, read_word
from dicomnode.volumes.mean_header import make_mean_header
from dicomnode.volumes.pixels import PixelLayout, fill_mean, fill_volume, read_layout
from dicomnode.volumes.stacks import Stack, choose_stack, split_stacks
from dicomnode.volumes.time_frames import TimeFrame, describe_mean, find_time_frames, order_time_frames
from registration.volume import Volume, spacing_of

log = get_logger()


@dataclass(frozen=True)
class SourceImages:
    """The stored images of one volume, a slice each."""

    headers: tuple[pydicom.Dataset, ...]  # one per k, without pixels; text in the instance's own character set
    frame_numbers: tuple[int, ...] = ()  # one per k, from 1, where the slices are frames of multi-frame objects


@dataclass(frozen=True)
class TimeMean:
    """The time frames that a volume is the mean of."""

    words: str  # how a person is told
    time_frames: tuple[SourceImages, ...]  # at least two, in the order of time


@dataclass(frozen=True)
class SeriesVolume:
    """A series that became a volume, and the headers it came from."""

    volume: Volume  # rescaled values, float32 (k, j, i), LPS mm
    headers: tuple[pydicom.Dataset, ...]  # one per k, as in `SourceImages`; of a mean, as `make_mean_header` makes them
    frame_numbers: tuple[int, ...] = ()  # as in `SourceImages`; none of a mean
    choice: str = ""  # by which rule these slices were chosen, where the series holds others too
    set_aside: tuple[pydicom.Dataset, ...] = ()  # headers of the instances not read, where they share the frame
    mean: TimeMean | None = None  # where the values are a mean over time

    @property
    def sources(self) -> tuple[SourceImages, ...]:
        """All stored images that went into the volume."""
        return self.mean.time_frames if self.mean else (SourceImages(self.headers, self.frame_numbers),)

    @property
    def source_headers(self) -> list[pydicom.Dataset]:
        """The headers of all stored images that went into the volume."""
        return [header for images in self.sources for header in images.headers]


def load_series(paths: Sequence[Path], dynamic_pet: DynamicPet = "refuse") -> SeriesVolume:
    """Read one series of MR or PET images, single-frame or multi-frame.

    Parameters
    ----------
    paths : sequence of Path
        Part-10 files of one series, any order. Identical copies are dropped.
    dynamic_pet : "refuse" or "mean"
        What becomes of a PET of several time frames: `pairing.dynamic_pet` of the settings.

    Returns
    -------
    SeriesVolume
        Slices ordered along their normal, values rescaled slice by slice. An MR stored as MONOCHROME1 is turned
        round within its own range so that bright means signal; a PET keeps its quantity whatever its display.
        Of several stacks (echoes, magnitude and phase) the one that `stacks.RULES` choose; of a PET of the whole
        body the head; of the time frames of a PET, where that is asked for, the mean weighted by their durations.

    Raises
    ------
    SeriesRefusedError
        With the reason and the values that made it.
    StorageFailedError
        If a file cannot be read.
    """
    with quiet_reading():
        instances = _read_instances(paths)
        check_headers([instance.header for instance in instances])
        frames = [frame for instance in instances for frame in split_frames(instance)]
        stacks = split_stacks(frames)
        is_mean_wanted = dynamic_pet == "mean" and read_word(frames[0].header, "Modality") == "PT"
        if is_mean_wanted and (alike := find_time_frames(stacks)):
            return _load_mean(instances, order_time_frames(alike))
        return _load_stack(instances, *choose_stack(stacks))


def _load_stack(instances: Sequence[Instance], stack: Stack, choice: str) -> SeriesVolume:
    layouts = _read_layouts(stack.frames, len(stack.frames))
    placed, choice = _place(stack, layouts, choice)
    ordered = [stack.frames[index] for index in placed.order]
    check_slices([frame.header for frame in ordered])
    array = _make_array(placed, layouts)
    fill_volume(ordered, layouts, array)
    first = ordered[0].header
    if read_word(first, "PhotometricInterpretation") == "MONOCHROME1" and read_word(first, "Modality") == "MR":
        _turn_round(array)
    _log_choice(first, choice)
    images, set_aside = _describe_images(ordered), _find_set_aside(instances, ordered)
    return SeriesVolume(Volume(array, placed.affine), images.headers, images.frame_numbers, choice, set_aside)


def _load_mean(instances: Sequence[Instance], time_frames: Sequence[TimeFrame]) -> SeriesVolume:
    words, stack = describe_mean(time_frames), time_frames[0].stack
    layouts = _read_layouts([frame for one in time_frames for frame in one.stack.frames], len(stack.frames))
    placed, choice = _place(stack, layouts, words)
    ordered = [[one.stack.frames[index] for index in placed.order] for one in time_frames]
    used = [frame for slices in ordered for frame in slices]
    check_slices([frame.header for frame in used])
    array = _make_array(placed, layouts)
    durations_ms = [one.duration_ms for one in time_frames]
    fill_mean(ordered, [duration_ms / sum(durations_ms) for duration_ms in durations_ms], layouts, array)
    _log_choice(used[0].header, choice)
    mean = TimeMean(words, tuple(map(_describe_images, ordered)))
    by_slice = zip(*(images.headers for images in mean.time_frames), strict=True)
    headers = tuple(make_mean_header(headers, durations_ms) for headers in by_slice)
    set_aside = _find_set_aside(instances, used)
    return SeriesVolume(Volume(array, placed.affine), headers, (), choice, set_aside, mean)


def _read_layouts(frames: Iterable[Frame], slices: int) -> dict[Path, PixelLayout]:
    """Read how the pixels of each instance lie; `slices` are those of the volume."""
    used = {frame.instance.path: frame.instance for frame in frames}
    return {path: read_layout(instance, slices) for path, instance in used.items()}


def _make_array(placed: SliceStack, layouts: Mapping[Path, PixelLayout]) -> NDArray[np.float32]:
    layout = next(iter(layouts.values()))
    return np.empty((len(placed.order), layout.rows, layout.columns), dtype=np.float32)


def _describe_images(ordered: Sequence[Frame]) -> SourceImages:
    numbers = tuple(frame.number + 1 for frame in ordered if frame.is_of_many)
    return SourceImages(tuple(frame.header for frame in ordered), numbers)


def _log_choice(header: pydicom.Dataset, choice: str) -> None:
    if choice:
        log.info("volumes.chosen", series_uid=read_word(header, "SeriesInstanceUID"), by=choice)


def find_series(folder: Path) -> dict[str, list[Path]]:
    """Group the DICOM files below a folder by SeriesInstanceUID.

    Parameters
    ----------
    folder : Path
        Searched with all its subfolders; hidden files too.

    Returns
    -------
    dict
        SeriesInstanceUID -> paths, both sorted. Files that are no DICOM instances of a series are left out, and
        their number is logged.
    """
    series: dict[str, list[Path]] = {}
    skipped = 0
    with quiet_reading():
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            try:
                series_uid = read_word(read_instance(path).header, "SeriesInstanceUID")
            except SeriesRefusedError:
                series_uid = ""
            if series_uid:
                series.setdefault(series_uid, []).append(path)
            else:
                skipped += 1
    if skipped:
        log.info("volumes.skipped", files=skipped)
    return dict(sorted(series.items()))


def _place(stack: Stack, layouts: Mapping[Path, PixelLayout], choice: str) -> tuple[SliceStack, str]:
    """Fit the slices of a stack of this modality; return where they stand, and the choice with what was left out."""
    layout = next(iter(layouts.values()))
    shape = (layout.rows, layout.columns)
    try:
        placed = fit_stack(stack.positions, stack.orientation, stack.spacing_mm, shape)
        edges_mm = spacing_of(placed.affine) * (len(placed.order), *shape)
        if read_word(stack.frames[0].header, "Modality") == "PT":
            cropped = crop_to_head(placed)
        else:
            check_coverage(edges_mm.tolist())
            cropped = placed
    except SeriesRefusedError as error:
        raise SeriesRefusedError(f"{error} ({choice})" if choice else str(error)) from error
    if len(cropped.order) < len(placed.order):
        words = f"cropped to the head: the upper {len(cropped.order)} of {len(placed.order)} slices"
        choice = f"{choice}; {words}" if choice else words
    return cropped, choice


def _find_set_aside(instances: Sequence[Instance], ordered: Sequence[Frame]) -> tuple[pydicom.Dataset, ...]:
    """Return the headers of the instances that no slice was taken of, but which stand in the slices' frame."""
    read = {frame.instance.path for frame in ordered}
    frame_uid = read_word(ordered[0].header, "FrameOfReferenceUID")
    others = (instance.header for instance in instances if instance.path not in read)
    return tuple(header for header in others if read_word(header, "FrameOfReferenceUID") == frame_uid)


def _read_instances(paths: Sequence[Path]) -> list[Instance]:
    """Read every header once, drop identical copies, and sort by SOP Instance UID so that file order means nothing."""
    instances: dict[str, Instance] = {}
    for path in paths:
        instance = read_instance(path)
        sop_uid = read_word(instance.header, "SOPInstanceUID")
        if not sop_uid:
            raise SeriesRefusedError(f"{path.name}: no SOPInstanceUID")
        if sop_uid not in instances:
            instances[sop_uid] = instance
        elif not _is_same_content(path, instances[sop_uid].path):
            raise SeriesRefusedError(f"{path.name}: a second file has the same SOPInstanceUID and other content")
    if not instances:
        raise SeriesRefusedError("0 slices: no file was given")
    return [instances[uid] for uid in sorted(instances)]


def _is_same_content(one: Path, other: Path) -> bool:
    if one.read_bytes() == other.read_bytes():
        return True
    try:
        return bool(pydicom.dcmread(one) == pydicom.dcmread(other))
    except PARSE_ERRORS:
        return False


def _turn_round(array: NDArray[np.float32]) -> None:
    """Mirror the values within their range, in place (PS3.3 C.7.6.3.1.2: MONOCHROME1 shows its minimum white)."""
    ends = array.max() + array.min()
    np.subtract(ends, array, out=array)
