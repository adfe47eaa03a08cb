"""Stored slices become quantitative numbers.

Flow: series > [pixels] > decoding, Volume
Never: more than one slice in memory beside the volume; a decode in this process, or before its size is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomnode.errors import SeriesRefusedError, StorageFailedError
from dicomnode.volumes.decoding import DECODERS, EncodedFrames, FrameDecoder
from dicomnode.volumes.frames import Frame
from dicomnode.volumes.headers import Instance, find_value, read_numbers, read_word, show_word

NATIVE_SYNTAXES = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian}  # PS3.5 A.1 to A.3
MAX_SLICE_BYTES = 16 * 2**20  # 2048 x 2048 at 32 bits; real MR and PET slices are 0.03 to 2 MiB
MAX_VOLUME_BYTES = 4 * 2**30  # as float32: 1024 slices of 1024 x 1024
MAX_ENCODED_RATIO = 2  # lossless encoders never double a slice (PS3.5 annex G.3: RLE adds one byte in 128)
ENCODED_SLACK_BYTES = 65536  # offset tables and markers


@dataclass(frozen=True)
class PixelLayout:
    """How the cells of one frame lie in its instance: PS3.3 C.7.6.3.1, PS3.5 8."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    is_signed: bool

    @property
    def frame_bytes(self) -> int:
        """Size of one frame as it is stored uncompressed."""
        return self.rows * self.columns * self.allocated // 8


def read_layout(instance: Instance, slices: int) -> PixelLayout:
    """Read how the pixels of an instance lie, and check that they can be decoded within bounds.

    Parameters
    ----------
    instance : Instance
    slices : int
        Of the whole volume.

    Raises
    ------
    SeriesRefusedError
        If the pixels are no greyscale integers, are in an unread transfer syntax, or would take too much memory.
    """
    header, syntax = instance.header, instance.transfer_syntax
    if syntax not in NATIVE_SYNTAXES and syntax not in DECODERS:
        raise SeriesRefusedError(f"transfer syntax {show_word(syntax.name)} is not read")
    photometric = read_word(header, "PhotometricInterpretation")
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or _integer(header, "SamplesPerPixel") != 1:
        raise SeriesRefusedError(f"PhotometricInterpretation {show_word(photometric)}, greyscale is needed")
    if "ModalityLUTSequence" in header:
        raise SeriesRefusedError("values go through a ModalityLUTSequence, a linear rescale is needed")
    rows, columns, allocated = (_integer(header, keyword) for keyword in ("Rows", "Columns", "BitsAllocated"))
    stored, high = _integer(header, "BitsStored"), _integer(header, "HighBit")
    if allocated not in {8, 16, 32} or not 0 < stored <= high + 1 <= allocated:
        raise SeriesRefusedError(f"bits allocated/stored/high {allocated}/{stored}/{high} do not make a pixel")
    layout = PixelLayout(rows, columns, allocated, stored, high, _integer(header, "PixelRepresentation") == 1)
    if not 0 < layout.frame_bytes <= MAX_SLICE_BYTES or rows * columns * 4 * slices > MAX_VOLUME_BYTES:
        raise SeriesRefusedError(
            f"{slices} slices of {rows} x {columns} at {allocated} bits; at most {MAX_SLICE_BYTES} bytes a slice and "
            f"{MAX_VOLUME_BYTES} bytes a volume are read"
        )
    return layout


def fill_volume(frames: Sequence[Frame], layouts: Mapping[Path, PixelLayout], array: NDArray[np.float32]) -> None:
    """Read the slices and write their rescaled values.

    Parameters
    ----------
    frames : sequence of Frame
        In the order of k.
    layouts : mapping of Path to PixelLayout
        As `read_layout` gave them, by the instances' paths.
    array : (k, rows, columns) float32
        Slice k receives stored value x RescaleSlope + RescaleIntercept of this very slice (PET slopes vary by slice).

    Raises
    ------
    SeriesRefusedError
        If pixels cannot be decoded to the size the header says.
    StorageFailedError
        If a file cannot be read.

    Sources
    -------
    PS3.3 C.7.6.3.1 (pixel cell), C.11.1.1.2 (rescale).
    """

    def write(k: int, cells: NDArray[np.integer], layout: PixelLayout) -> None:
        _rescale(cells, frames[k].header, layout, array[k])

    _visit_slices(frames, layouts, write)


def fill_mean(
    time_frames: Sequence[Sequence[Frame]],
    weights: Sequence[float],
    layouts: Mapping[Path, PixelLayout],
    array: NDArray[np.float32],
) -> None:
    """Read the slices of several time frames, one slice at a time, and write the weighted sum of their rescaled values.

    Parameters
    ----------
    time_frames : sequence of sequences of Frame
        Each in the order of k.
    weights : sequence of float
        One for each time frame; a mean where they sum to 1.
    layouts, array
        As in `fill_volume`, which this raises the errors of.
    """
    frames = [frame for one in time_frames for frame in one]
    rescaled = np.empty(array.shape[1:], dtype=np.float32)
    array.fill(0)

    def add(number: int, cells: NDArray[np.integer], layout: PixelLayout) -> None:
        time, k = divmod(number, len(array))
        _rescale(cells, frames[number].header, layout, rescaled)
        np.multiply(rescaled, np.float32(weights[time]), out=rescaled)
        np.add(array[k], rescaled, out=array[k])

    _visit_slices(frames, layouts, add)


def _visit_slices(
    frames: Sequence[Frame],
    layouts: Mapping[Path, PixelLayout],
    take: Callable[[int, NDArray[np.integer], PixelLayout], None],
) -> None:
    """Read the cells of each frame, instance by instance, and hand them over with the frame's place in `frames`."""
    places: dict[Path, dict[int, int]] = {}  # by instance: the place of each frame's number
    for place, frame in enumerate(frames):
        places.setdefault(frame.instance.path, {})[frame.number] = place
    with FrameDecoder() as decoder:
        for path, place_of_number in places.items():
            instance, layout = frames[next(iter(place_of_number.values()))].instance, layouts[path]
            try:
                for number, stored in _read_frames(instance, layout, place_of_number, decoder):
                    take(place_of_number[number], _pixel_cells(stored, layout), layout)
            except OSError as error:
                raise StorageFailedError(f"{path.name}: {error.strerror or error}") from error
            except SeriesRefusedError as error:
                raise SeriesRefusedError(f"{path.name}: {error}") from error


def _read_frames(
    instance: Instance, layout: PixelLayout, numbers: Collection[int], decoder: FrameDecoder
) -> Iterator[tuple[int, NDArray[np.integer]]]:
    """Give the stored cells of the asked frames, one at a time, bits as they stand."""
    if instance.transfer_syntax in NATIVE_SYNTAXES:
        return _read_native(instance, layout, numbers)
    decoded = enumerate(decoder.decode(_describe(instance, layout)))
    return ((number, cells) for number, cells in decoded if number in numbers)


def _read_native(
    instance: Instance, layout: PixelLayout, numbers: Collection[int]
) -> Iterator[tuple[int, NDArray[np.integer]]]:
    """Give frames that are stored as they are (PS3.5 A.1 to A.3)."""
    is_implicit, is_little = map(bool, instance.header.original_encoding)
    dtype = np.dtype(f"{'<' if is_little else '>'}{'i' if layout.is_signed else 'u'}{layout.allocated // 8}")
    with instance.path.open("rb") as file:
        file.seek(instance.pixel_offset)
        start, size, vr = find_value(file, is_implicit=is_implicit, is_little=is_little)
        for number in numbers:
            end = (number + 1) * layout.frame_bytes
            file.seek(start + end - layout.frame_bytes)
            cells = np.fromfile(file, dtype, layout.rows * layout.columns) if end <= size else np.empty(0, dtype)
            if len(cells) < layout.rows * layout.columns:
                raise SeriesRefusedError(f"pixels cannot be decoded ({size} bytes where at least {end} are needed)")
            if dtype.itemsize == 1 and vr == b"OW" and not is_little:
                cells = cells.view("u2").byteswap().view(dtype)  # two cells make one word: PS3.5 annex D
            yield number, cells.reshape(layout.rows, layout.columns)


def _describe(instance: Instance, layout: PixelLayout) -> EncodedFrames:
    """Say what the decoder needs to know, unless the frames take more room than any encoder needs."""
    frames = int(read_word(instance.header, "NumberOfFrames") or 1)
    room_bytes = MAX_ENCODED_RATIO * layout.frame_bytes + ENCODED_SLACK_BYTES
    encoded_bytes = instance.size_bytes - instance.pixel_offset
    if encoded_bytes > room_bytes * frames:
        raise SeriesRefusedError(f"{encoded_bytes} bytes for {frames} slice(s) of {layout.frame_bytes} bytes")
    return EncodedFrames(
        path=str(instance.path),
        offset=instance.pixel_offset,
        frames=frames,
        transfer_syntax=instance.transfer_syntax,
        rows=layout.rows,
        columns=layout.columns,
        bits_allocated=layout.allocated,
        bits_stored=layout.stored,
        pixel_representation=int(layout.is_signed),
        photometric_interpretation=read_word(instance.header, "PhotometricInterpretation"),
        frame_room_bytes=room_bytes,
    )


def _pixel_cells(stored: NDArray[np.integer], layout: PixelLayout) -> NDArray[np.integer]:
    """Cut the stored bits out of each cell (overlays may fill the rest) and give them their sign."""
    width = stored.dtype.itemsize * 8
    if layout.stored >= width:  # a codestream may be narrower than the header says
        return stored
    native = stored if stored.dtype.isnative else stored.astype(stored.dtype.newbyteorder("="))
    cells = native.view(np.dtype(f"{'i' if layout.is_signed else 'u'}{native.dtype.itemsize}"))
    # Shifting up drops what stands above the high bit; shifting down drops what stands below and spreads the sign.
    return (cells << (width - 1 - layout.high)) >> (width - layout.stored)


def _rescale(
    cells: NDArray[np.integer], header: pydicom.Dataset, layout: PixelLayout, out: NDArray[np.float32]
) -> None:
    slope, intercept = _number(header, "RescaleSlope", 1.0), _number(header, "RescaleIntercept", 0.0)
    if slope == 0 and cells.any():
        raise SeriesRefusedError("RescaleSlope 0 makes one value of all that is stored, another is needed")
    if abs(slope) * 2.0**layout.stored + abs(intercept) > np.finfo(np.float32).max:
        raise SeriesRefusedError(f"values beyond float32 with RescaleSlope {slope:g}, RescaleIntercept {intercept:g}")
    out[...] = cells
    if slope != 1:
        out *= np.float32(slope)
    if intercept != 0:
        out += np.float32(intercept)


def _number(header: pydicom.Dataset, keyword: str, default: float) -> float:
    return read_numbers(header, keyword, 1)[0] if read_word(header, keyword) else default


def _integer(header: pydicom.Dataset, keyword: str) -> int:
    number = read_numbers(header, keyword, 1)[0]
    if number != math.floor(number) or number < 0:
        raise SeriesRefusedError(f"{keyword} is {number}, a whole number is needed")
    return int(number)
