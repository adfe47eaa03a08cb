"""Compressed frames are decoded by a worker process under limits, and only numbers come back from it.

Flow: pixels > [decoding] > decode_worker
Never: a decoder run in this process; an object taken from the worker, which a hostile frame may have taken over.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from dicomnode.errors import SeriesRefusedError

# PS3.5 annex A: the compressed transfer syntaxes read, each with the one decoder used for it.
DECODERS = {
    RLELossless: "pydicom",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "gdcm",
    JPEG2000Lossless: "gdcm",
}
CODESTREAMS = DECODERS.keys() - {RLELossless}  # these say their size themselves

WORKER = "dicomnode.volumes.decode_worker"
FRAME_DEADLINE_S = 30.0  # a JPEG 2000 frame of 2048 x 2048 takes 1 s; the first also waits for the worker to start
REPLY_BYTES = 128  # of text, padded with spaces, before the cells of each frame
REPLY_TYPES = {f"{kind}{size}": np.dtype(f"<{kind}{size}") for kind in "iu" for size in (1, 2, 4)}


@dataclass(frozen=True)
class EncodedFrames:
    """Where an encapsulated Pixel Data element stands, and what a decoder must know of its frames (PS3.5 A.4)."""

    path: str
    offset: int  # of the element, in bytes from the start of the file
    frames: int
    transfer_syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    pixel_representation: int
    photometric_interpretation: str
    frame_room_bytes: int  # a longer encoded frame is not decoded


class FrameDecoder:
    """One worker process for the compressed instances of a series, started by the first of them."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()

    def decode(self, encoded: EncodedFrames) -> Iterator[NDArray[np.integer]]:
        """Give the cells of each frame, (rows, columns), as the decoder made them.

        Raises
        ------
        SeriesRefusedError
            If a frame cannot be decoded to the size the header says, or not within the worker's limits.
        """
        worker = self._worker = self._worker or _start_worker()
        requests, replies = worker.stdin, worker.stdout
        if requests is None or replies is None:
            raise TypeError("the worker was started without pipes")
        try:
            requests.write(json.dumps(asdict(encoded)).encode() + b"\n")
            requests.flush()
            for _ in range(encoded.frames):
                deadline = time.monotonic() + FRAME_DEADLINE_S
                words = _read(replies.fileno(), REPLY_BYTES, deadline).decode("ascii", "replace").strip()
                if words not in REPLY_TYPES:
                    raise SeriesRefusedError(words)
                size = encoded.rows * encoded.columns * REPLY_TYPES[words].itemsize
                cells = np.frombuffer(_read(replies.fileno(), size, deadline), REPLY_TYPES[words])
                yield cells.reshape(encoded.rows, encoded.columns)
        except (EOFError, BrokenPipeError) as error:
            raise SeriesRefusedError(f"pixels cannot be decoded ({_say_end(worker)})") from error
        except TimeoutError as error:
            limit = f"more than {FRAME_DEADLINE_S:.0f} s for a slice"
            raise SeriesRefusedError(f"pixels cannot be decoded ({limit})") from error


def _start_worker() -> subprocess.Popen[bytes]:
    """Start the worker; a thread pool of a linear algebra library would take address space its limit counts."""
    return subprocess.Popen(  # noqa: S603  our own module, by this interpreter
        [sys.executable, "-m", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # GDCM quotes what it does not understand
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


def _read(descriptor: int, size: int, deadline: float) -> bytearray:
    """Read exactly `size` bytes, or raise TimeoutError or EOFError."""
    content = bytearray(size)
    view, at = memoryview(content), 0
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while at < size:
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError
        count = os.readv(descriptor, [view[at:]])
        if count == 0:
            raise EOFError
        at += count
    return content


def _say_end(worker: subprocess.Popen[bytes]) -> str:
    """Say how the worker ended: it closes its pipes only by ending."""
    code = worker.wait()
    return f"the decoder ended by signal {-code}" if code < 0 else f"the decoder ended with code {code}"
