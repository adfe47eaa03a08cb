"""Stored slices of one series become one volume in patient coordinates, or are refused with the reason.

Flow: jobs|cli > [series] > registration
Never: the database, the network, a guess: what cannot be placed or measured is refused and said why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from dicomnode.errors import SeriesRefusedError
from dicomnode.logs import get_logger
from dicomnode.volumes.checks import check_coverage, check_headers, check_slices
from dicomnode.volumes.frames import Frame, split_frames
from dicomnode.volumes.geometry import SliceStack, crop_to_head, fit_stack
from dicomnode.volumes.headers import PARSE_ERRORS, Instance, quiet_reading, read_instance, read_word
from dicomnode.volumes.pixels import fill_volume, read_layout
from dicomnode.volumes.stacks import Stack, choose_stack, split_stacks
from registration.volume import Volume, spacing_of

log = get_logger()


@dataclass(frozen=True)
class SeriesVolume:
    """A series that became a volume, and the headers it came from."""

    volume: Volume  # rescaled values, float32 (k, j, i), LPS mm
    headers: tuple[pydicom.Dataset, ...]  # one per k, without pixels; text in the instance's own character set
    frame_numbers: tuple[int, ...] = ()  # one per k, from 1, where the slices are frames of multi-frame objects
    choice: str = ""  # by which rule these slices were chosen, where the series holds others too
    set_aside: tuple[pydicom.Dataset, ...] = ()  # headers of the instances not read, where they share the frame


def load_series(paths: Sequence[Path]) -> SeriesVolume:
    """Read one series of MR or PET images, single-frame or multi-frame.

    Parameters
    ----------
    paths : sequence of Path
        Part-10 files of one series, any order. Identical copies are dropped.

    Returns
    -------
    SeriesVolume
        Slices ordered along their normal, values rescaled slice by slice. An MR stored as MONOCHROME1 is turned
        round within its own range so that bright means signal; a PET keeps its quantity whatever its display.
        Of several stacks (echoes, magnitude and phase) the one that `stacks.RULES` choose; of a PET of the whole
        body the head.

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
        stack, choice = choose_stack(split_stacks(frames))
        instances_used = {frame.instance.path: frame.instance for frame in stack.frames}
        layouts = {path: read_layout(instance, len(stack.frames)) for path, instance in instances_used.items()}
        layout = next(iter(layouts.values()))
        placed, choice = _place(stack, (layout.rows, layout.columns), choice)
        ordered = [stack.frames[index] for index in placed.order]
        check_slices([frame.header for frame in ordered])
        first = ordered[0].header
        array = np.empty((len(ordered), layout.rows, layout.columns), dtype=np.float32)
        volume = Volume(array, placed.affine)
        fill_volume(ordered, layouts, array)
        if read_word(first, "PhotometricInterpretation") == "MONOCHROME1" and read_word(first, "Modality") == "MR":
            _turn_round(array)
        if choice:
            log.info("volumes.chosen", series_uid=read_word(first, "SeriesInstanceUID"), by=choice)
        set_aside = _find_set_aside(instances, ordered)
    numbers = tuple(frame.number + 1 for frame in ordered if frame.is_of_many)
    return SeriesVolume(volume, tuple(frame.header for frame in ordered), numbers, choice, set_aside)


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


def _place(stack: Stack, shape: tuple[int, int], choice: str) -> tuple[SliceStack, str]:
    """Fit the slices of a stack of this modality; return where they stand, and the choice with what was left out."""
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
