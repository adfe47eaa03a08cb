"""Headers of stored instances, read without their pixels and without noise.

Flow: series files > [headers] > checks
Never: patient data in a warning or a message; values stay raw until somebody reads them, so a broken character set
hurts nobody who does not ask for text.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomnode.errors import SeriesRefusedError, StorageFailedError

FILE_META_GROUP = 0x0002
UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = {0x7FE00008, 0x7FE00009, 0x7FE00010}  # PS3.3 C.7.6.3, C.7.6.24, C.7.6.25: integers, floats, doubles

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
    header: pydicom.Dataset  # up to the pixels, with `file_meta`
    pixel_offset: int  # of the element after the header, in bytes from the start of the file
    size_bytes: int  # of the file

    @property
    def transfer_syntax(self) -> UID:
        """How the data set is encoded; empty when the file does not say."""
        return UID(read_word(self.header.file_meta, "TransferSyntaxUID"))


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
        with path.open("rb") as file:
            read_preamble(file, force=False)
            header, offset = _read_header(file, path.name)
            return Instance(path, header, offset, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise StorageFailedError(f"{path.name}: {error.strerror or error}") from error
    except PARSE_ERRORS as error:
        raise SeriesRefusedError(f"{path.name}: no readable DICOM data set ({type(error).__name__})") from error


def _read_header(file: BinaryIO, name: str) -> tuple[pydicom.Dataset, int]:
    """Read File Meta, then the data set up to its pixels; return it and where it stops."""
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_is_after_meta)
    syntax = UID(read_word(meta, "TransferSyntaxUID"))
    if syntax == DeflatedExplicitVRLittleEndian:
        raise SeriesRefusedError(f"{name}: deflated data sets are not read; send it uncompressed")
    # PS3.5 annex A: whatever else a syntax is, save for these two it is Explicit VR Little Endian.
    is_implicit, is_little = syntax in {"", ImplicitVRLittleEndian}, syntax != ExplicitVRBigEndian
    header = read_dataset(file, is_implicit, is_little, stop_when=_is_pixel_data)
    header.file_meta = FileMetaDataset(meta)
    return header, file.tell()


def _is_after_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag >> 16 != FILE_META_GROUP


def _is_pixel_data(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag in PIXEL_DATA


def find_value(file: BinaryIO, *, is_implicit: bool, is_little: bool) -> tuple[int, int]:
    """Read the header of the Pixel Data element at the file's position; return where its value starts, and its bytes.

    A value that is not there, or has no length of its own (PS3.5 A.4), has 0 bytes.
    """
    layout = ("<" if is_little else ">") + ("HHI" if is_implicit else "HH4xI")  # PS3.5 7.1.2, 7.1.3
    found = file.read(struct.calcsize(layout))
    if len(found) < struct.calcsize(layout):
        return file.tell(), 0
    group, element, size = struct.unpack(layout, found)
    is_there = (group, element) == (0x7FE0, 0x0010) and size != UNDEFINED_LENGTH
    return file.tell(), size if is_there else 0


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
