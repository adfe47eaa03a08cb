"""The SHA-256 of a file, or of the data set in it: to tell whether it still holds what was written.

Flow: jobs, send, housekeeping, backup > [digests] > the file system
Never: more than a piece of a file in memory; a verdict (who asks knows what the digest should be).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PIECE_BYTES = 1 << 20
Beat = Callable[[], object]  # called after each piece, by who must show that it goes on
_PREFIX_END = 132  # PS3.10 7.1: preamble and prefix
_GROUP_LENGTH_BYTES = 12  # of (0002,0000) itself: always explicit little endian, four bytes of value


def digest_file(path: Path, beat: Beat = lambda: None) -> str:
    """Return the SHA-256 of a whole file, in hexadecimal; raises OSError."""
    with path.open("rb", buffering=0) as file:
        return _digest_rest(file, beat)


def digest_data_set(path: Path, beat: Beat = lambda: None) -> str:
    """Return the SHA-256 of what follows the File Meta of a Part-10 file, in hexadecimal; raises OSError.

    A file without a File Meta is digested from where it would end: the answer is another than of any data set.
    """
    with path.open("rb", buffering=0) as file:
        seek_data_set(file)
        return _digest_rest(file, beat)


def seek_data_set(file: BinaryIO) -> bytes:
    """Go from the start of a Part-10 file to its data set; return the preamble and prefix that stand before."""
    head = file.read(_PREFIX_END + _GROUP_LENGTH_BYTES)
    file.seek(len(head) + int.from_bytes(head[_PREFIX_END + 8 :], "little"))
    return head[:_PREFIX_END]


def _digest_rest(file: BinaryIO, beat: Beat) -> str:
    digest = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
        beat()
    return digest.hexdigest()
