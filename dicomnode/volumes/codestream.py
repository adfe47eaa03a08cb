"""How large a compressed image says it is, read from its first bytes.

Flow: pixels > [codestream]
Never: a decoder; the size must be known before one is let loose on it.
"""

from __future__ import annotations

import struct

JPEG_START = b"\xff\xd8"
JPEG_2000_START = b"\xff\x4f\xff\x51"  # SOC, SIZ: ISO/IEC 15444-1 A.4.1, A.5.1
# Start of frame, every kind: ITU-T T.81 table B.1 (C4, C8 and CC mean other things), ITU-T T.87 C.2.2 (F7: JPEG-LS).
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
FILL = 0xFF


def read_codestream_size(encoded: bytes) -> tuple[int, int] | None:
    """Read (rows, columns) of a JPEG, JPEG-LS or JPEG 2000 codestream; None when it does not say.

    Sources
    -------
    ITU-T T.81 B.2.2 (frame header); ISO/IEC 15444-1 A.5.1 (SIZ).
    """
    try:
        if encoded.startswith(JPEG_2000_START):
            right, bottom, left, top = struct.unpack_from(">4I", encoded, 8)
            return bottom - top, right - left
        if encoded.startswith(JPEG_START):
            return _read_frame_header(encoded)
    except struct.error:
        return None
    return None


def _read_frame_header(encoded: bytes) -> tuple[int, int] | None:
    """Walk from marker to marker until the frame header."""
    position = len(JPEG_START)
    while position < len(encoded) and encoded[position] == FILL:
        marker = encoded[position + 1] if position + 1 < len(encoded) else 0
        if marker == FILL:
            position += 1
            continue
        if marker in START_OF_FRAME:
            rows, columns = struct.unpack_from(">2H", encoded, position + 5)
            return rows, columns
        position += 2 + struct.unpack_from(">H", encoded, position + 2)[0]
    return None
