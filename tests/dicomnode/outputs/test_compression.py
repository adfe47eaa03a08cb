"""Compressed copies lie beside what they are copies of, are the same instance, and lose nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from dicomnode.errors import StorageFailedError
from dicomnode.outputs.compression import find_copy_path, write_copies
from dicomnode.outputs.objects import OutputFile, write_outputs
from dicomnode.setting_values import Compression
from tests.dicomnode.outputs.known_requests import EVERY_OBJECT, MR, make_request


@pytest.fixture
def files(tmp_path: Path) -> list[OutputFile]:
    return write_outputs(make_request(settings=EVERY_OBJECT), tmp_path)


def copy_all(files: list[OutputFile], wanted: Compression) -> None:
    write_copies([(file.kind, file.path) for file in files], wanted)


def drop_bits(image: pydicom.Dataset) -> None:
    """Declare fewer bits than the values have: the codec keeps those alone."""
    image.BitsStored, image.HighBit = 8, 7


def cut_pixels(image: pydicom.Dataset) -> None:
    image.PixelData = image.PixelData[:100]


@pytest.mark.parametrize(
    ("wanted", "syntax", "kinds"),
    [
        ("jpeg-ls", "1.2.840.10008.1.2.4.80", {"pt", "rgb", "multiframe"}),
        ("jpeg-2000", "1.2.840.10008.1.2.4.90", {"pt"}),
        ("none", "", set()),
    ],
)
def test_a_copy_is_the_same_instance_in_another_syntax(
    files: list[OutputFile], wanted: Compression, syntax: str, kinds: set[str]
) -> None:
    copy_all(files, wanted)
    for file in files:
        path = find_copy_path(file.path, wanted)
        assert path.is_file() == (file.kind in kinds)
        if file.kind in kinds:
            image, copy = pydicom.dcmread(file.path), pydicom.dcmread(path)
            assert copy.file_meta.TransferSyntaxUID == syntax
            assert path.stat().st_size < file.path.stat().st_size
            assert (copy.pixel_array == image.pixel_array).all()
            del copy.PixelData, image.PixelData
            assert copy == image
    assert not list(files[0].path.parent.glob("*.part"))


def test_a_second_run_makes_the_same_bytes(files: list[OutputFile]) -> None:
    copy_all(files, "jpeg-ls")
    once = {path.name: path.read_bytes() for path in files[0].path.parent.iterdir()}
    copy_all(files, "jpeg-ls")
    assert {path.name: path.read_bytes() for path in files[0].path.parent.iterdir()} == once


def test_an_odd_number_of_bytes_is_compressed_too(tmp_path: Path) -> None:
    odd = write_outputs(make_request(fixed=replace(MR, shape=(12, 33, 31), uid="1.2.91")), tmp_path)
    copy_all(odd, "jpeg-ls")
    assert len(list(tmp_path.glob("rgb-*.jpeg-ls.dcm"))) == 12


@pytest.mark.parametrize("spoil", [drop_bits, cut_pixels])
def test_a_copy_that_does_not_give_the_pixels_back_is_not_kept(
    files: list[OutputFile], capsys: pytest.CaptureFixture[str], spoil: Callable[[pydicom.Dataset], None]
) -> None:
    image = pydicom.dcmread(files[6].path)
    spoil(image)
    image.save_as(files[6].path)
    copy_all(files[5:8], "jpeg-ls")
    assert [find_copy_path(file.path, "jpeg-ls").is_file() for file in files[5:8]] == [True, False, True]
    assert "outputs.not_compressed" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_said(files: list[OutputFile]) -> None:
    find_copy_path(files[0].path, "jpeg-ls").mkdir()
    with pytest.raises(StorageFailedError, match="compressed copies could not be written"):
        copy_all(files, "jpeg-ls")
