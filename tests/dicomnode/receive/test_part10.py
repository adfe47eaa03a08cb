"""The head of a stored file: pydicom reads it, and it proves that every byte is there."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.receive.part10 import PREAMBLE_BYTES, FileMeta, Origin, encode_head, read_whole
from tests.receiving import MR, ROOT, encode, make_data_set

DATA = encode(make_data_set(1))
META = FileMeta(MR, f"{ROOT}.3.1", ExplicitVRLittleEndian, "SCANNER")
ORIGIN = Origin("10.1.2.8", 900.25, 1000.5)


def make_file(meta: FileMeta = META, origin: Origin = ORIGIN) -> bytes:
    return encode_head(meta, origin, len(DATA), sha256(DATA).digest()) + DATA


@pytest.mark.parametrize("calling_ae", ["A", "SCANNER", "AB'; DROP TABLE!"])
@pytest.mark.parametrize("address", ["10.1.2.8", "fd00:1234:5678:9abc:def0:1234:255.255.255.255", ""])
def test_what_a_row_needs_comes_back(calling_ae: str, address: str) -> None:
    meta, origin = replace(META, calling_ae=calling_ae), replace(ORIGIN, address=address)
    whole = read_whole(BytesIO(make_file(meta, origin)))
    assert whole is not None
    assert (whole.calling_ae, whole.origin, whole.transfer_syntax_uid) == (calling_ae, origin, ExplicitVRLittleEndian)
    assert (whole.data, whole.sha256) == (DATA, sha256(DATA).hexdigest())


def test_the_file_is_one_of_part_10() -> None:
    read = dcmread(BytesIO(make_file()))
    assert read.file_meta.MediaStorageSOPInstanceUID == META.sop_instance_uid
    assert read.file_meta.SourceApplicationEntityTitle == "SCANNER"
    assert read.SOPInstanceUID == META.sop_instance_uid


def test_a_file_that_ends_anywhere_too_early_is_not_whole() -> None:
    file = make_file()
    assert [size for size in range(len(file)) if read_whole(BytesIO(file[:size])) is not None] == []


def test_a_changed_byte_before_or_in_the_data_set_is_seen() -> None:
    file = make_file()
    used = [*range(114), *range(PREAMBLE_BYTES, len(file))]  # of the preamble, 14 bytes are not
    changed = (file[:at] + bytes([file[at] ^ 0x20]) + file[at + 1 :] for at in used)
    assert [at for at, one in zip(used, changed, strict=True) if read_whole(BytesIO(one)) is not None] == []


def test_more_bytes_than_were_written_are_not_whole() -> None:
    assert read_whole(BytesIO(make_file() + b"\0")) is None


def test_a_file_of_somebody_else_is_not_whole() -> None:
    assert read_whole(BytesIO(bytes(PREAMBLE_BYTES) + make_file()[PREAMBLE_BYTES:])) is None
