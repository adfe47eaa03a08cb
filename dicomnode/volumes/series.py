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
from dicomnode.volumes.checks import check_headers, check_repeats, read_planes
from dicomnode.volumes.geometry import fit_stack
from dicomnode.volumes.headers import PARSE_ERRORS, Instance, quiet_reading, read_instance, read_word
from dicomnode.volumes.pixels import check_pixels, read_slice
from registration.volume import Volume

log = get_logger()


@dataclass(frozen=True)
class SeriesVolume:
    """A series that became a volume, and the headers it came from."""

    volume: Volume  # rescaled values, float32 (k, j, i), LPS mm
    headers: tuple[pydicom.Dataset, ...]  # one per k, without pixels; text in the instance's own character set
    frame_numbers: tuple[int, ...] = ()  # one per k, from 1, where the slices are frames of multi-frame objects


def load_series(paths: Sequence[Path]) -> SeriesVolume:
    """Read one series of single-frame MR or PET slices.

    Parameters
    ----------
    paths : sequence of Path
        Part-10 files of one series, any order. Identical copies are dropped.

    Returns
    -------
    SeriesVolume
        Slices ordered along their normal, values rescaled slice by slice. An MR stored as MONOCHROME1 is turned
        round within its own range so that bright means signal; a PET keeps its quantity whatever its display.

    Raises
    ------
    SeriesRefusedError
        With the reason and the values that made it.
    StorageFailedError
        If a file cannot be read.
    """
    with quiet_reading():
        instances = _read_instances(paths)
        headers = [instance.header for instance in instances]
        check_headers(headers)
        positions, orientations, spacings_mm = read_planes(headers)
        check_repeats(headers, positions, orientations[0])
        for header in headers:
            shape = check_pixels(header, len(headers))
        stack = fit_stack(positions, orientations.mean(axis=0), spacings_mm.mean(axis=0), shape)
        ordered = [instances[index] for index in stack.order]
        array = np.empty((len(ordered), *shape), dtype=np.float32)
        for k, instance in enumerate(ordered):
            read_slice(instance, array[k])
        if read_word(headers[0], "PhotometricInterpretation") == "MONOCHROME1" and headers[0].Modality == "MR":
            _turn_round(array)
    return SeriesVolume(Volume(array, stack.affine), tuple(instance.header for instance in ordered))


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
