"""One stored slice becomes quantitative numbers.

Flow: series > [pixels] > Volume
Never: more than one slice in memory beside the volume; a decoder under the GPL; a decode before its size is known.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomnode.errors import SeriesRefusedError, StorageFailedError
from dicomnode.volumes.codestream import read_codestream_size
from dicomnode.volumes.headers import PARSE_ERRORS, Instance, read_numbers, read_word

# PS3.5 annex A: the transfer syntaxes read, each with the one decoder used for it ("" = none is needed).
DECODERS = {
    ImplicitVRLittleEndian: "",
    ExplicitVRLittleEndian: "",
    ExplicitVRBigEndian: "",
    RLELossless: "pydicom",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "gdcm",
    JPEG2000Lossless: "gdcm",
}
DECODER_OPTIONS = {
    "rows": "Rows",
    "columns": "Columns",
    "samples_per_pixel": "SamplesPerPixel",
    "bits_allocated": "BitsAllocated",
    "bits_stored": "BitsStored",
    "pixel_representation": "PixelRepresentation",
}
CODESTREAMS = {JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless}  # these say their size themselves
MAX_SLICE_BYTES = 16 * 2**20  # 2048 x 2048 at 32 bits; real MR and PET slices are 0.03 to 2 MiB
MAX_VOLUME_BYTES = 4 * 2**30  # as float32: 1024 slices of 1024 x 1024
MAX_ENCODED_RATIO = 2  # lossless encoders never double a slice (PS3.5 annex G.3: RLE adds one byte in 128)
ENCODED_SLACK_BYTES = 65536  # offset tables and markers


def check_pixels(header: pydicom.Dataset, slices: int) -> tuple[int, int]:
    """Return (rows, columns) of a slice whose pixels can be decoded within bounds.

    Raises
    ------
    SeriesRefusedError
        If the pixels are no greyscale integers, are in an unread transfer syntax, or would take too much memory.
    """
    syntax = UID(str(header.file_meta.get("TransferSyntaxUID", "")))
    if syntax not in DECODERS:
        raise SeriesRefusedError(f"transfer syntax {syntax.name or 'absent'} is not read")
    photometric = read_word(header, "PhotometricInterpretation")
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or _integer(header, "SamplesPerPixel") != 1:
        raise SeriesRefusedError(f"PhotometricInterpretation {photometric or 'absent'}, greyscale is needed")
    if "ModalityLUTSequence" in header:
        raise SeriesRefusedError("values go through a ModalityLUTSequence, a linear rescale is needed")
    rows, columns, allocated = (_integer(header, keyword) for keyword in ("Rows", "Columns", "BitsAllocated"))
    stored, high = _integer(header, "BitsStored"), _integer(header, "HighBit")
    if allocated not in {8, 16, 32} or not 0 < stored <= high + 1 <= allocated:
        raise SeriesRefusedError(f"bits allocated/stored/high {allocated}/{stored}/{high} do not make a pixel")
    slice_bytes, volume_bytes = rows * columns * allocated // 8, rows * columns * 4 * slices
    if not 0 < slice_bytes <= MAX_SLICE_BYTES or volume_bytes > MAX_VOLUME_BYTES:
        raise SeriesRefusedError(
            f"{slices} slices of {rows} x {columns} at {allocated} bits; at most {MAX_SLICE_BYTES} bytes a slice and "
            f"{MAX_VOLUME_BYTES} bytes a volume are read"
        )
    return rows, columns


def read_slice(instance: Instance, out: NDArray[np.float32]) -> None:
    """Decode one slice and write its rescaled values into `out`.

    Parameters
    ----------
    instance : Instance
        As `check_pixels` accepted its header.
    out : (rows, columns) float32
        Receives stored value x RescaleSlope + RescaleIntercept of this very slice (PET slopes vary by slice).

    Raises
    ------
    SeriesRefusedError
        If the pixels cannot be decoded to the size the header says.
    StorageFailedError
        If the file cannot be read.

    Sources
    -------
    PS3.3 C.7.6.3.1 (pixel cell), C.11.1.1.2 (rescale).
    """
    path, header = instance.path, instance.header
    slope, intercept = _number(header, "RescaleSlope", 1.0), _number(header, "RescaleIntercept", 0.0)
    try:
        stored = _decode(instance)
    except OSError as error:
        raise StorageFailedError(f"{path.name}: {error.strerror or error}") from error
    except (RuntimeError, MemoryError, *PARSE_ERRORS) as error:  # RuntimeError: pydicom, every decoder failed
        raise SeriesRefusedError(f"{path.name}: pixels cannot be decoded ({type(error).__name__})") from error
    if stored.shape != out.shape:
        raise SeriesRefusedError(f"{path.name}: decoded to {stored.shape}, the header says {out.shape}")
    out[...] = _pixel_cells(stored, header)
    with np.errstate(over="ignore", invalid="ignore"):
        if slope != 1:
            out *= np.float32(slope)
        if intercept != 0:
            out += np.float32(intercept)
    if not math.isfinite(float(out.max())) or not math.isfinite(float(out.min())):
        raise SeriesRefusedError(f"{path.name}: values beyond float32 with RescaleSlope {slope:g}")


def _decode(instance: Instance) -> NDArray[np.integer]:
    """Return the stored cells of one slice, bits as they stand."""
    header = instance.header
    syntax = UID(str(header.file_meta.TransferSyntaxUID))
    options: dict[str, Any] = {name: _integer(header, keyword) for name, keyword in DECODER_OPTIONS.items()}
    encoded, options["pixel_vr"] = instance.read_pixel_data()
    slice_bytes = options["rows"] * options["columns"] * options["bits_allocated"] // 8
    if len(encoded) > MAX_ENCODED_RATIO * slice_bytes + ENCODED_SLACK_BYTES:
        raise SeriesRefusedError(f"{instance.path.name}: {len(encoded)} bytes for a slice of {slice_bytes} bytes")
    if syntax in CODESTREAMS:
        _check_codestream(instance.path.name, encoded, options["rows"], options["columns"])
    options |= {
        "pixel_keyword": "PixelData",
        "photometric_interpretation": read_word(header, "PhotometricInterpretation"),
        "number_of_frames": 1,
        "view_only": True,
        "correct_unused_bits": False,  # pydicom's own correction takes no heed of HighBit
    }
    array: NDArray[np.integer] = get_decoder(syntax).as_array(
        encoded, raw=True, decoding_plugin=DECODERS[syntax], **options
    )[0]
    return array


def _check_codestream(name: str, encoded: bytes, rows: int, columns: int) -> None:
    """Refuse a codestream of another size than the header's before memory is taken for it."""
    size = read_codestream_size(next(generate_frames(encoded, number_of_frames=1)))
    if size != (rows, columns):
        found = "no size" if size is None else f"{size[0]} x {size[1]}"
        raise SeriesRefusedError(f"{name}: a codestream of {found}, the header says {rows} x {columns}")


def _pixel_cells(stored: NDArray[np.integer], header: pydicom.Dataset) -> NDArray[np.integer]:
    """Cut the stored bits out of each cell (overlays may fill the rest) and give them their sign."""
    bits, high, width = _integer(header, "BitsStored"), _integer(header, "HighBit"), stored.dtype.itemsize * 8
    if bits >= width:  # a codestream may be narrower than the header says
        return stored
    is_signed = _integer(header, "PixelRepresentation") == 1
    dtype = np.dtype(f"{'i' if is_signed else 'u'}{stored.dtype.itemsize}")
    # Shifting up drops what stands above the high bit; shifting down drops what stands below and spreads the sign.
    cells = stored.view(dtype) if stored.dtype.isnative else stored.astype(stored.dtype.newbyteorder("=")).view(dtype)
    return (cells << (width - 1 - high)) >> (width - bits)


def _number(header: pydicom.Dataset, keyword: str, default: float) -> float:
    return read_numbers(header, keyword, 1)[0] if read_word(header, keyword) else default


def _integer(header: pydicom.Dataset, keyword: str) -> int:
    number = read_numbers(header, keyword, 1)[0]
    if number != math.floor(number) or number < 0:
        raise SeriesRefusedError(f"{keyword} is {number}, a whole number is needed")
    return int(number)
