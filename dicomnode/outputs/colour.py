"""A small sRGB profile, so that a viewer knows what our colours mean without 61 KB in every instance.

Flow: [colour] > fused
Never: a file; the profile is built from the numbers of its standards, always to the same bytes.
"""

from __future__ import annotations

import struct
from functools import cache

D50 = (0.9642, 1.0, 0.8249)  # ICC.1:2001-04, annex A: the profile connection space's illuminant
# IEC 61966-2-1 primaries, adapted from D65 to D50 by the Bradford matrix: X, Y, Z of red, green and blue.
PRIMARIES = {
    b"rXYZ": (0.4360747, 0.2225045, 0.0139322),
    b"gXYZ": (0.3850649, 0.7168786, 0.0971045),
    b"bXYZ": (0.1430804, 0.0606169, 0.7141733),
}
CURVE_POINTS = 256  # one for each 8-bit value, so exact for ours
HEADER_BYTES = 128
VERSION_2_1 = 0x02100000
MADE = (2026, 1, 1, 0, 0, 0)


@cache
def make_srgb_profile() -> bytes:
    """Return a display profile of version 2.1 with matrix and curves (ICC.1:2001-04, 6.3.1.2), under 1.2 KB."""
    curve = _curve()
    tags = [
        (b"desc", _description("sRGB")),
        (b"cprt", b"text\0\0\0\0No copyright, use freely\0"),
        (b"wtpt", _xyz(D50)),
        *((name, _xyz(value)) for name, value in PRIMARIES.items()),
        (b"rTRC", curve),
        (b"gTRC", curve),
        (b"bTRC", curve),
    ]
    table, data, places = b"", b"", dict[bytes, int]()
    start = HEADER_BYTES + 4 + 12 * len(tags)
    for name, content in tags:
        if content not in places:
            places[content] = start + len(data)
            data += content + b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", places[content], len(content))
    body = struct.pack(">I", len(tags)) + table + data
    return _header(HEADER_BYTES + len(body)) + body


def _header(size: int) -> bytes:
    """Build the header of ICC.1:2001-04, 6.1."""
    return b"".join(
        (
            struct.pack(">I4sI", size, b"\0\0\0\0", VERSION_2_1),
            b"mntrRGB XYZ ",
            struct.pack(">6H", *MADE),
            b"acsp",
            bytes(28),  # platform, flags, device and its attributes, perceptual intent
            _fixed(D50),
            bytes(48),
        )
    )


def _curve() -> bytes:
    """Tabulate the transfer function of IEC 61966-2-1, from 8-bit value to linear light."""
    values = []
    for number in range(CURVE_POINTS):
        value = number / (CURVE_POINTS - 1)
        linear = value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        values.append(round(linear * 65535))
    return struct.pack(f">4s4xI{CURVE_POINTS}H", b"curv", CURVE_POINTS, *values)


def _description(text: str) -> bytes:
    """Build a textDescriptionType (6.5.17): ASCII, and empty Unicode and script forms."""
    ascii_text = text.encode() + b"\0"
    return struct.pack(">4s4xI", b"desc", len(ascii_text)) + ascii_text + bytes(4 + 4 + 2 + 1 + 67)


def _xyz(value: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(value)


def _fixed(value: tuple[float, float, float]) -> bytes:
    """Spell three numbers as s15Fixed16 (5.3.3)."""
    return struct.pack(">3i", *(round(number * 65536) for number in value))
