"""Stored pixels become quantitative values, in every transfer syntax that is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from dicomnode.errors import SeriesRefusedError
from dicomnode.volumes.series import load_series
from tests.dicomnode.compressed_files import GDCM_SYNTAXES, compress
from tests.dicomnode.series_files import Change, SeriesSpec, make_series, stored_values, write_files, write_series


def expected_stored(spec: SeriesSpec) -> np.ndarray:
    return np.stack([stored_values(spec.shape, k) for k in range(spec.shape[0])]).astype(np.float64)


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path: Path) -> None:
    spec = SeriesSpec(modality="PT")
    array = load_series(write_series(tmp_path, spec)).volume.array
    slopes = np.round(0.5 + 0.01 * np.arange(12), 4)[:, None, None]
    np.testing.assert_allclose(array, expected_stored(spec) * slopes, rtol=1e-6)
    assert array.dtype == np.float32


def test_intercept_is_added_after_the_slope(tmp_path: Path) -> None:
    def change(header: pydicom.Dataset, k: int) -> None:
        header.RescaleSlope, header.RescaleIntercept = 2, -10 - k

    spec = SeriesSpec(change=change)
    array = load_series(write_series(tmp_path, spec)).volume.array
    np.testing.assert_array_equal(array, expected_stored(spec) * 2 - 10 - np.arange(12)[:, None, None])


def set_pixels(bits: tuple[int, int, int], signed: int, cells: np.ndarray) -> Change:
    """Store the same cells in every slice, with bits allocated, stored and high as given."""

    def change(header: pydicom.Dataset, _k: int) -> None:
        header.BitsAllocated, header.BitsStored, header.HighBit = bits
        header.PixelRepresentation = signed
        header.PixelData = cells.tobytes()
        header["PixelData"].VR = "OW"

    return change


RAMP = np.arange(32 * 30).reshape(32, 30)


@pytest.mark.parametrize(
    ("bits", "signed", "cells", "expected"),
    [
        ((8, 8, 7), 0, (RAMP % 256).astype("u1"), RAMP % 256),
        ((16, 16, 15), 0, (RAMP + 60000).astype("<u2"), RAMP + 60000),
        ((16, 16, 15), 1, (RAMP - 500).astype("<i2"), RAMP - 500),
        ((32, 32, 31), 1, (RAMP - 500).astype("<i4"), RAMP - 500),
        # 12 bits with an overlay in the four above: masked away, the sign taken from bit 11.
        ((16, 12, 11), 0, (RAMP | 0xA000).astype("<u2"), RAMP),
        ((16, 12, 11), 1, (((RAMP - 500) & 0x0FFF) | 0x5000).astype("<u2"), RAMP - 500),
        # 10 bits that end at bit 13, rubbish on both sides.
        ((16, 10, 13), 0, ((RAMP << 4) | 0xC00F).astype("<u2"), RAMP),
    ],
    ids=["u8", "u16", "i16", "i32", "u12 overlay", "i12 overlay", "u10 high bit 13"],
)
def test_pixel_cells_are_cut_and_signed(
    tmp_path: Path, bits: tuple[int, int, int], signed: int, cells: np.ndarray, expected: np.ndarray
) -> None:
    spec = SeriesSpec(change=set_pixels(bits, signed, cells))
    array = load_series(write_series(tmp_path, spec)).volume.array
    np.testing.assert_array_equal(array[5], expected)


def test_monochrome1_mr_is_turned_round_and_pet_keeps_its_quantity(tmp_path: Path) -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        header.PhotometricInterpretation = "MONOCHROME1"

    spec = SeriesSpec(change=change)
    stored = expected_stored(spec)
    mr = load_series(write_series(tmp_path / "mr", spec)).volume.array
    np.testing.assert_array_equal(mr, stored.max() + stored.min() - stored)
    pet = load_series(write_series(tmp_path / "pet", SeriesSpec(modality="PT", change=change))).volume.array
    assert pet[-1].argmax() == stored[-1].argmax()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda uid: uid.name)
def test_uncompressed_syntaxes_give_the_same_values(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    spec = SeriesSpec()
    slices = make_series(spec)
    for header in slices:
        header.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            header.PixelData = np.frombuffer(header.PixelData, "<i2").astype(">i2").tobytes()
            header["PixelData"].VR = "OW"
    array = load_series(write_files(tmp_path, slices)).volume.array
    np.testing.assert_array_equal(array, expected_stored(spec))


@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_eight_bits_in_big_endian_words_are_put_in_order(tmp_path: Path, vr: str) -> None:
    slices = make_series(SeriesSpec(change=set_pixels((8, 8, 7), 0, (RAMP % 256).astype("u1"))))
    for header in slices:
        header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        header["PixelData"].VR = vr
    paths = write_files(tmp_path, slices)
    series = load_series(paths)
    np.testing.assert_array_equal(series.volume.array[0], pydicom.dcmread(paths[0]).pixel_array)
    assert (series.volume.array[0] == RAMP % 256).all() == (vr == "OB")


@pytest.mark.parametrize("syntax", GDCM_SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("signed", [0, 1], ids=["unsigned", "signed"])
def test_lossless_syntaxes_give_the_same_values(tmp_path: Path, syntax: pydicom.uid.UID, signed: int) -> None:
    cells = (RAMP * 4 - 500 * signed).astype("<i2" if signed else "<u2")
    paths = write_series(tmp_path, SeriesSpec(change=set_pixels((16, 16, 15), signed, cells)))
    for path in paths:
        compress(path, GDCM_SYNTAXES[syntax])
        assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    array = load_series(paths).volume.array
    np.testing.assert_array_equal(array, np.broadcast_to(cells, array.shape))


def test_lossy_syntax_is_refused_by_name(tmp_path: Path) -> None:
    slices = make_series(SeriesSpec())
    for header in slices:
        header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        header["PixelData"].VR = "OB"
    with pytest.raises(SeriesRefusedError, match=r"transfer syntax JPEG Baseline \(Process 1\) is not read"):
        load_series(write_files(tmp_path, slices))


@pytest.mark.parametrize("syntax", GDCM_SYNTAXES, ids=lambda uid: uid.name)
def test_truncated_slice_is_refused_with_its_file(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    paths = write_series(tmp_path, SeriesSpec(change=set_pixels((16, 16, 15), 0, RAMP.astype("<u2"))))
    for path in paths:
        compress(path, GDCM_SYNTAXES[syntax])
    broken = pydicom.dcmread(paths[6])
    (frame,) = pydicom.encaps.generate_frames(broken.PixelData, number_of_frames=1)
    broken.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) * 9 // 10]])
    broken.save_as(paths[6])
    with pytest.raises(SeriesRefusedError, match=r"0006.dcm: pixels cannot be decoded"):
        load_series(paths)


@pytest.mark.parametrize("syntax", [syntax for syntax in GDCM_SYNTAXES if syntax != RLELossless], ids=lambda u: u.name)
def test_codestream_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    paths = write_series(tmp_path, SeriesSpec(change=set_pixels((16, 16, 15), 0, RAMP.astype("<u2"))))
    for path in paths:
        compress(path, GDCM_SYNTAXES[syntax])
        header = pydicom.dcmread(path)
        header.Rows, header.Columns = 30, 32  # what the codestream holds is 32 x 30
        header.save_as(path)
    with pytest.raises(SeriesRefusedError, match=r"0000.dcm: a codestream of 32 x 30, the header says 30 x 32"):
        load_series(paths)


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    def change(header: pydicom.Dataset, _k: int) -> None:
        header.RescaleSlope = "1e38"

    with pytest.raises(SeriesRefusedError, match=r"0000.dcm: values beyond float32 with RescaleSlope 1e\+38"):
        load_series(write_series(tmp_path, SeriesSpec(change=change)))


def test_more_encoded_bytes_than_a_slice_can_need_are_not_decoded(tmp_path: Path) -> None:
    slices = make_series(SeriesSpec())
    for header in slices:
        header.file_meta.TransferSyntaxUID = RLELossless
        header.PixelData = pydicom.encaps.encapsulate([bytes(200_000)])
        header["PixelData"].VR = "OB"
    with pytest.raises(SeriesRefusedError, match=r"0000.dcm: 200\d+ bytes for 1 slice\(s\) of 1920 bytes"):
        load_series(write_files(tmp_path, slices))
