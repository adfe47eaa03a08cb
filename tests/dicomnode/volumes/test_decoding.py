"""Compressed frames are decoded by a process that cannot harm this one, whatever they hold."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes import decode_worker, decoding
from dicomnode.volumes.decoding import EncodedFrames, FrameDecoder
from tests.dicomnode.compressed_files import GDCM_SYNTAXES, compress
from tests.dicomnode.enhanced_files import make_enhanced, make_enhanced_series
from tests.dicomnode.series_files import SeriesSpec, make_series, stored_values, write_files
from tests.waiting import wait_until

SPEC = SeriesSpec(shape=(12, 32, 30))


def describe(path: Path, **changes: object) -> EncodedFrames:
    header = pydicom.dcmread(path)
    facts = {
        "path": str(path),
        "offset": path.read_bytes().rindex(b"\xe0\x7f\x10\x00OB"),
        "frames": int(header.get("NumberOfFrames", 1)),
        "transfer_syntax": str(header.file_meta.TransferSyntaxUID),
        "rows": header.Rows,
        "columns": header.Columns,
        "bits_allocated": 16,
        "bits_stored": 16,
        "pixel_representation": 1,
        "photometric_interpretation": "MONOCHROME2",
        "frame_room_bytes": 100000,
    }
    return EncodedFrames(**{**facts, **changes})


@pytest.fixture
def enhanced(tmp_path: Path) -> Path:
    (path,) = write_files(tmp_path, [make_enhanced(make_series(SPEC))])
    compress(path, GDCM_SYNTAXES[JPEGLSLossless])
    return path


@pytest.fixture
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder() as decoder:
        yield decoder


def test_one_worker_decodes_all_frames_of_all_files_and_ends_with_its_series(enhanced: Path) -> None:
    with FrameDecoder() as decoder:
        for _ in range(2):
            for k, cells in enumerate(decoder.decode(describe(enhanced))):
                np.testing.assert_array_equal(cells, stored_values(SPEC.shape, k))
            (worker,) = psutil.Process().children()
        assert "dicomnode.volumes.decode_worker" in worker.cmdline()
    assert not worker.is_running()


@pytest.mark.timeout(30)
def test_a_worker_that_hangs_is_not_waited_for(enhanced: Path) -> None:
    with FrameDecoder() as decoder:
        next(decoder.decode(describe(enhanced)))
        (worker,) = psutil.Process().children()
        worker.suspend()
    assert not worker.is_running()


PARENT = """
import sys
from dicomnode.volumes.decoding import EncodedFrames, FrameDecoder
with FrameDecoder() as decoder:
    next(decoder.decode(EncodedFrames(**eval(sys.argv[1]))))
    print("decoding", flush=True)
    sys.stdin.read()
"""


def test_a_worker_ends_with_a_parent_that_is_killed(enhanced: Path) -> None:
    facts = repr(asdict(describe(enhanced)))
    command = [sys.executable, "-c", PARENT, facts]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "decoding\n"
        (worker,) = psutil.Process(parent.pid).children()
        parent.kill()
    wait_until(lambda: not worker.is_running(), 10, "the worker's end")


def test_no_worker_is_started_for_what_is_not_compressed() -> None:
    with FrameDecoder():
        assert psutil.Process().children() == []


def test_a_worker_that_dies_is_named_by_its_signal(enhanced: Path, decoder: FrameDecoder) -> None:
    next(decoder.decode(describe(enhanced)))
    (worker,) = psutil.Process().children()
    worker.kill()
    with pytest.raises(SeriesRefusedError, match=r"pixels cannot be decoded \(the decoder ended by signal 9\)"):
        list(decoder.decode(describe(enhanced, frames=24)))


def test_a_frame_that_takes_too_long_is_given_up(
    enhanced: Path, decoder: FrameDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "FRAME_DEADLINE_S", 0.0)
    with pytest.raises(SeriesRefusedError, match=r"pixels cannot be decoded \(more than 0 s for a slice\)"):
        next(decoder.decode(describe(enhanced)))


# Each asks the limited process for more than it may have, and says how that ended.
EXCESSES = {
    "memory": ("bytearray(2 * MEMORY_BYTES)", "MemoryError"),
    "processor": ("print(resource.getrlimit(resource.RLIMIT_CPU))", f"({decode_worker.PROCESSOR_S}, "),
    "core": ("print(resource.getrlimit(resource.RLIMIT_CORE))", "(0, 0)"),
}


@pytest.mark.parametrize(("excess", "outcome"), EXCESSES.values(), ids=EXCESSES)
def test_the_worker_has_limits_it_cannot_lift(excess: str, outcome: str) -> None:
    code = f"import resource\nfrom dicomnode.volumes.decode_worker import *\nlimit_resources()\n{excess}"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert outcome in done.stdout + done.stderr


def test_a_frame_that_unpacks_to_more_than_memory_is_refused(tmp_path: Path, decoder: FrameDecoder) -> None:
    (path,) = write_files(tmp_path, [make_enhanced_series(SPEC)])
    bomb = pydicom.dcmread(path)
    # One segment of 4 MB whose every two bytes stand for 128 of them.
    segment = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56) + b"\x81\x00" * (2 * 2**20)
    bomb.PixelData = encapsulate([segment])
    bomb["PixelData"].VR = "OB"
    bomb.NumberOfFrames = 1
    bomb.file_meta.TransferSyntaxUID = RLELossless
    bomb.save_as(path)
    with pytest.raises(SeriesRefusedError, match=r"encoded bytes for a slice of 32 x 30"):
        next(decoder.decode(describe(path)))
    with pytest.raises(SeriesRefusedError, match=r"pixels cannot be decoded"):
        next(decoder.decode(describe(path, frame_room_bytes=2**30)))


def test_fewer_frames_than_the_header_says_are_refused(enhanced: Path, decoder: FrameDecoder) -> None:
    short = pydicom.dcmread(enhanced)
    short.PixelData = encapsulate(list(generate_frames(short.PixelData, number_of_frames=12))[:11])
    short.save_as(enhanced)
    with pytest.raises(SeriesRefusedError, match=r"pixels cannot be decoded"):
        list(decoder.decode(describe(enhanced)))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless], ids=lambda uid: uid.name)
def test_damaged_frames_never_harm_this_process(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    (path,) = write_files(tmp_path, [make_enhanced_series(SeriesSpec(shape=(1, 32, 30)))])
    compress(path, GDCM_SYNTAXES[syntax])
    whole = pydicom.dcmread(path)
    (frame,) = generate_frames(whole.PixelData, number_of_frames=1)
    draw = random.Random(20261126)  # noqa: S311  damage, not a secret
    with ExitStack() as running:
        decoder = running.enter_context(FrameDecoder())
        for _ in range(40):
            damaged = bytearray(frame)
            for _ in range(draw.randint(1, 8)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            whole.PixelData = encapsulate([bytes(damaged)])
            whole.save_as(path)
            try:
                (cells,) = decoder.decode(describe(path))
                assert cells.shape == (32, 30)
            except SeriesRefusedError as error:
                if "ended" in str(error):  # it took the worker with it, and only that
                    decoder = running.enter_context(FrameDecoder())
