"""The process that decodes compressed frames: it limits itself, then reads requests until its parent ends.

Flow: decoding > [decode_worker]
Never: a network, a database, a setting; memory or processor time beyond its limits, whatever a frame asks for.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from dicomnode.volumes.codestream import read_codestream_size
from dicomnode.volumes.decoding import CODESTREAMS, DECODERS, REPLY_BYTES, EncodedFrames
from dicomnode.volumes.headers import PARSE_ERRORS

MEMORY_BYTES = 2**30  # of address space above what the libraries take: sixty-four of the largest slices
PROCESSOR_S = 600  # a series that takes longer has no end
DECODER_OPTIONS = (
    "rows",
    "columns",
    "bits_allocated",
    "bits_stored",
    "pixel_representation",
    "photometric_interpretation",
)
ELEMENT_HEADER_BYTES = 12  # tag, VR, two reserved, length: PS3.5 7.1.2


def main() -> None:
    """Answer each request of standard input with its frames on standard output."""
    limit_resources()
    warnings.simplefilter("ignore")
    for line in sys.stdin.buffer:
        encoded = EncodedFrames(**json.loads(line))
        for frame in decode_frames(encoded):
            if isinstance(frame, str):
                sys.stdout.buffer.write(_pad(frame))
            else:
                sys.stdout.buffer.write(_pad(f"{frame.dtype.kind}{frame.dtype.itemsize}"))
                sys.stdout.buffer.write(frame.astype(frame.dtype.newbyteorder("<"), copy=False).tobytes())
            sys.stdout.buffer.flush()


def limit_resources() -> None:
    """Cap memory, processor time and core files of this process for good."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + MEMORY_BYTES
    limits = ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, PROCESSOR_S), (resource.RLIMIT_CORE, 0))
    for what, limit in limits:
        resource.setrlimit(what, (limit, limit))


def decode_frames(encoded: EncodedFrames) -> Iterator[NDArray[np.integer] | str]:
    """Give the cells of each frame; words instead, and nothing more, for one that cannot be decoded.

    Parameters
    ----------
    encoded : EncodedFrames

    Returns
    -------
    iterator of (rows, columns) arrays of integers, or str
    """
    count = 0
    try:
        with Path(encoded.path).open("rb") as file:
            file.seek(encoded.offset + ELEMENT_HEADER_BYTES)
            for frame in generate_frames(file, number_of_frames=encoded.frames):
                yield _decode(frame, encoded)
                count += 1
                if count == encoded.frames:
                    return
        yield f"pixels cannot be decoded ({count} of {encoded.frames} frames are there)"
    except (OSError, RuntimeError, MemoryError, *PARSE_ERRORS) as error:  # RuntimeError: pydicom, every decoder failed
        yield f"pixels cannot be decoded ({type(error).__name__})"


def _decode(frame: bytes, encoded: EncodedFrames) -> NDArray[np.integer] | str:
    """Decode one frame, unless it is longer, or says it is larger, than the header allows."""
    if len(frame) > encoded.frame_room_bytes:
        return f"{len(frame)} encoded bytes for a slice of {encoded.rows} x {encoded.columns}"
    syntax = UID(encoded.transfer_syntax)
    if syntax in CODESTREAMS:
        size = read_codestream_size(frame)
        if size != (encoded.rows, encoded.columns):
            found = "no size" if size is None else f"{size[0]} x {size[1]}"
            return f"a codestream of {found}, the header says {encoded.rows} x {encoded.columns}"
    options: dict[str, Any] = {
        **{name: getattr(encoded, name) for name in DECODER_OPTIONS},
        "pixel_keyword": "PixelData",
        "pixel_vr": "OB",
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "correct_unused_bits": False,  # pydicom's own correction takes no heed of HighBit
    }
    array, _ = get_decoder(syntax).as_array(encapsulate([frame]), raw=True, decoding_plugin=DECODERS[syntax], **options)
    if array.shape != (encoded.rows, encoded.columns):
        return f"decoded to {array.shape}, the header says {encoded.rows} x {encoded.columns}"
    return array


def _pad(words: str) -> bytes:
    return words.encode("ascii", "replace")[:REPLY_BYTES].ljust(REPLY_BYTES)


if __name__ == "__main__":
    main()
