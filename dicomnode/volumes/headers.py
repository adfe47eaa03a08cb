"""Headers of stored instances, read without their pixels and without noise.

Flow: series files > [headers] > checks
Never: patient data in a warning or a message; values stay raw until somebody reads them, so a broken character set
hurts nobody who does not ask for text.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from dicomnode.errors import SeriesRefusedError, StorageFailedError

# What pydicom 3.0.2 was seen to raise on malformed data sets, besides OSError.
PARSE_ERRORS = (
    InvalidDicomError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


@contextmanager
def quiet_reading() -> Iterator[None]:
    """Keep pydicom from warning about, and quoting, values that break the standard's rules."""
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Instance:
    """A stored instance whose header has been read."""

    path: Path
    header: pydicom.Dataset  # up to the pixels
    pixel_offset: int  # of the element after the header, in bytes from the start of the file

    def read_pixel_data(self) -> tuple[bytes, str]:
        """Read Pixel Data as stored, and its value representation; empty when there is none."""
        syntax = UID(self.header.file_meta.TransferSyntaxUID)
        with self.path.open("rb") as file:
            file.seek(self.pixel_offset)
            rest = read_dataset(file, syntax.is_implicit_VR, syntax.is_little_endian)
        element = rest.get("PixelData") and rest["PixelData"]
        return (element.value, element.VR) if element else (b"", "OW")


def read_instance(path: Path) -> Instance:
    """Read a Part-10 file up to its pixels.

    Raises
    ------
    SeriesRefusedError
        If the file is no DICOM Part-10 file, is deflated (inflating is unbounded), or cannot be parsed.
    StorageFailedError
        If the file cannot be opened or read.
    """
    try:
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise SeriesRefusedError(f"{path.name}: deflated data sets are not read; send it uncompressed")
        with path.open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True)
            return Instance(path, header, file.tell())
    except OSError as error:
        raise StorageFailedError(f"{path.name}: {error.strerror or error}") from error
    except PARSE_ERRORS as error:
        raise SeriesRefusedError(f"{path.name}: no readable DICOM data set ({type(error).__name__})") from error


def read_numbers(header: pydicom.Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """Read exactly `count` finite numbers from one attribute.

    Raises
    ------
    SeriesRefusedError
        If the attribute is absent, is no list of numbers, holds another count, or a value is not finite.
    """
    try:
        value = header.get(keyword)
        items = () if value is None or value == "" else (value,) if isinstance(value, int | float) else tuple(value)
        numbers = tuple(float(item) for item in items)
    except PARSE_ERRORS as error:
        raise SeriesRefusedError(f"{keyword} holds something else than {count} numbers") from error
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise SeriesRefusedError(f"{keyword} holds {len(numbers)} values, {count} finite numbers are needed")
    return numbers


def read_word(header: pydicom.Dataset, keyword: str) -> str:
    """Read one short value (UI, CS, IS, DS) as text, empty when absent; several values are joined by a backslash."""
    try:
        value = header.get(keyword)
    except PARSE_ERRORS as error:
        raise SeriesRefusedError(f"{keyword} cannot be read ({type(error).__name__})") from error
    if value is None:
        return ""
    items = (value,) if isinstance(value, str | int | float) else tuple(value)
    return "\\".join(f"{item:g}" if isinstance(item, float) else str(item).strip(" \0") for item in items)
