"""Headers of stored instances, read without their pixels and without noise.

Flow: series files > [headers] > checks
Never: patient data in a warning or a message; values stay raw until somebody reads them, so a broken character set
hurts nobody who does not ask for text.
"""

from __future__ import annotations

import math
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.config import disable_value_validation
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicomnode.errors import SeriesRefusedError, StorageFailedError
from dicomnode.volumes.elements import UNDEFINED_LENGTH, find_elements

PREAMBLE_BYTES = 132  # with the prefix: PS3.10 7.1
AFTER_FILE_META = 0x00030000
ORDINARY_HEADER_BYTES = 131072  # real MR and PET headers take 3 to 120 KB
MAX_HEADER_BYTES = 64 * 2**20  # our rule: a multi-frame object takes 1 to 10 KB a frame
PIXEL_DATA = 0x7FE00008  # the first of three: PS3.3 C.7.6.24, C.7.6.25, C.7.6.3
US_BYTES = 2
PLAIN_VRS = {"CS", "DS", "UI"}  # ASCII, whatever the character set: PS3.5 6.2
NOT_IN_A_CODE = re.compile(r"[^A-Za-z0-9 _.+\\()/-]")  # nor in a UID's name, a number, or the backslash between them
SHOWN_CHARACTERS = 64
# What pydicom 3.0.2 was seen to raise on malformed data sets; its OSError, of a sequence cut off, has no number.
PARSE_ERRORS = (
    BytesLengthException,
    InvalidDicomError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
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
            header, offset = _read_header(file)
            return Instance(path, header, offset, os.fstat(file.fileno()).st_size)
    except SeriesRefusedError as error:
        raise SeriesRefusedError(f"{path.name}: {error}") from error
    except PARSE_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageFailedError(f"{path.name}: {error.strerror}") from error
        raise SeriesRefusedError(f"{path.name}: no readable DICOM data set ({type(error).__name__})") from error


def _read_header(file: BinaryIO) -> tuple[pydicom.Dataset, int]:
    """Read File Meta, then the data set up to its pixels; return it and where it stops."""
    content = file.read(ORDINARY_HEADER_BYTES)
    if content[PREAMBLE_BYTES - 4 : PREAMBLE_BYTES] != b"DICM":
        raise InvalidDicomError
    meta, start = find_elements(content, PREAMBLE_BYTES, AFTER_FILE_META) or _read_meta(content)
    syntax = UID(read_word(meta, "TransferSyntaxUID"))
    if syntax == DeflatedExplicitVRLittleEndian:
        raise SeriesRefusedError("deflated data sets are not read; send it uncompressed")
    # PS3.5 annex A: whatever else a syntax is, save for these two it is Explicit VR Little Endian.
    is_implicit, is_little = syntax in {"", ImplicitVRLittleEndian}, syntax != ExplicitVRBigEndian
    is_ordinary = is_little and not is_implicit
    found = find_elements(content, start, PIXEL_DATA) if is_ordinary else None
    if found is None:
        # What pydicom makes of a header takes ten times its bytes.
        head = BytesIO(content + file.read(MAX_HEADER_BYTES - len(content)))
        head.seek(start)
        found = read_dataset(head, is_implicit, is_little, stop_when=_is_pixel_data), head.tell()
    header, offset = found
    header.file_meta = FileMetaDataset(meta)
    return header, offset


def _read_meta(content: bytes) -> tuple[pydicom.Dataset, int]:
    head = BytesIO(content)
    head.seek(PREAMBLE_BYTES)
    return read_dataset(head, is_implicit_VR=False, is_little_endian=True, stop_when=_is_after_meta), head.tell()


def _is_after_meta(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) >= AFTER_FILE_META


def _is_pixel_data(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) >= PIXEL_DATA


def find_value(file: BinaryIO, *, is_implicit: bool, is_little: bool) -> tuple[int, int, bytes]:
    """Read the header of the Pixel Data element at the file's position.

    Returns
    -------
    start, size, vr : int, int, bytes
        Where the value begins and how long it is: 0 bytes when it is not there, or has no length of its own (PS3.5
        A.4). An implicit VR is OW (PS3.5 A.1).
    """
    layout = ("<" if is_little else ">") + ("HHI" if is_implicit else "HH2s2xI")  # PS3.5 7.1.2, 7.1.3
    found = file.read(struct.calcsize(layout))
    if len(found) < struct.calcsize(layout):
        return file.tell(), 0, b"OW"
    group, element, *vr, size = struct.unpack(layout, found)
    is_there = (group, element) == (0x7FE0, 0x0010) and size != UNDEFINED_LENGTH
    return file.tell(), size if is_there else 0, vr[0] if vr else b"OW"


def read_numbers(header: pydicom.Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """Read exactly `count` finite numbers from one attribute.

    Raises
    ------
    SeriesRefusedError
        If the attribute is absent, is no list of numbers, holds another count, or a value is not finite.
    """
    try:
        items = _read_items(header, keyword)
        numbers = tuple(map(float, items)) if items != ("",) else ()
    except PARSE_ERRORS as error:
        raise SeriesRefusedError(f"{keyword} holds something else than {count} numbers") from error
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise SeriesRefusedError(f"{keyword} holds {len(numbers)} values, {count} finite numbers are needed")
    return numbers


def read_word(header: pydicom.Dataset, keyword: str) -> str:
    """Read one short value (UI, CS, IS, DS) as text, empty when absent; several values are joined by a backslash."""
    try:
        items = _read_items(header, keyword)
    except PARSE_ERRORS as error:
        raise SeriesRefusedError(f"{keyword} cannot be read ({type(error).__name__})") from error
    return "\\".join(f"{item:g}" if isinstance(item, float) else str(item).strip(" \0") for item in items)


def show_word(word: str) -> str:
    """Make a word fit for a message or a log: one line of a code's characters, as long as a code list may be."""
    return NOT_IN_A_CODE.sub("?", word)[:SHOWN_CHARACTERS] or "absent"


def read_sequence_items(header: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    """Read the items of a sequence, none when absent or empty.

    Raises
    ------
    SeriesRefusedError
        If the sequence cannot be parsed.
    """
    try:
        return list(header.get(keyword) or ())
    except PARSE_ERRORS as error:
        raise SeriesRefusedError(f"{keyword} cannot be read ({type(error).__name__})") from error


def _read_items(header: pydicom.Dataset, keyword: str) -> tuple[Any, ...]:
    """Read the values of one attribute, none when absent."""
    raw: object = header.get_item(_find_tag(keyword))
    if isinstance(raw, RawDataElement) and raw.value and raw.VR in PLAIN_VRS and raw.value.isascii():
        # pydicom takes ten times as long to make its own kind of text or number of it.
        text = raw.value.decode("ascii").strip(" \0")
        items = text.split("\\") if text else ()
        return tuple(map(float, items)) if raw.VR == "DS" else tuple(items)
    if isinstance(raw, RawDataElement) and raw.VR == "US" and raw.value and len(raw.value) == US_BYTES:
        return (int.from_bytes(raw.value, "little" if raw.is_little_endian else "big"),)
    value = header.get(keyword)
    if value is None:
        return ()
    return (value,) if isinstance(value, str | int | float) else tuple(value)


@lru_cache(maxsize=256)
def _find_tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return BaseTag(tag)
