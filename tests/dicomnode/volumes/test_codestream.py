"""A compressed image says its size before it is decoded."""

from __future__ import annotations

import pytest

from dicomnode.volumes.codestream import read_codestream_size

COMMENT = b"\xff\xfe\x00\x06abcd"
FRAME = b"\x00\x0b\x10\x00\x20\x00\x1e\x01\x01\x11\x00"  # length 11, 16 bits, 32 rows, 30 columns, one component


@pytest.mark.parametrize(
    ("encoded", "size"),
    [
        (b"\xff\xd8\xff\xc3" + FRAME, (32, 30)),  # lossless
        (b"\xff\xd8\xff\xf7" + FRAME, (32, 30)),  # JPEG-LS
        (b"\xff\xd8" + COMMENT + b"\xff\xff\xff\xc3" + FRAME, (32, 30)),  # a comment and fill bytes before
        (b"\xff\xd8\xff\xc4\x00\x04\x00\x00\xff\xc3" + FRAME, (32, 30)),  # C4 is a Huffman table
        (b"\xff\x4f\xff\x51\x00\x29\x00\x00" + bytes([0, 0, 0, 40, 0, 0, 0, 52, 0, 0, 0, 10, 0, 0, 0, 20]), (32, 30)),
        (b"\xff\xd8\xff\xc3\x00", None),
        (b"\xff\xd8\xff\xda\x00\x02data", None),
        (b"\xff\xd8\xff", None),
        (b"\xff\x4f\xff\x51\x00", None),
        (b"", None),
        (b"RLE?", None),
    ],
)
def test_size_is_read_from_the_first_bytes(encoded: bytes, size: tuple[int, int] | None) -> None:
    assert read_codestream_size(encoded) == size
