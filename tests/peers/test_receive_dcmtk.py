"""DCMTK's programs as senders: every transfer syntax they know, bit for bit, and what they say of a refusal."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.conftest import find_peer_program
from tests.peers_programs import LOOPBACK, PEER_ENVIRONMENT, StoreScp, data_set_bytes, send_with_dcmtk
from tests.receiving import MR, PT, ROOT, make_data_set
from tests.storage_scp import RunningScp

COUNT = 5
# The transfer syntax: DCMTK's program and options that make it, and storescu's option that offers it.
SYNTAXES: dict[str, tuple[list[str], str]] = {
    ExplicitVRLittleEndian: (["dcmconv", "+te"], "-xe"),
    ImplicitVRLittleEndian: (["dcmconv", "+ti"], "-xi"),
    ExplicitVRBigEndian: (["dcmconv", "+tb"], "-xb"),
    JPEGLosslessSV1: (["dcmcjpeg", "+e1"], "-xs"),
    JPEGLSLossless: (["dcmcjpls", "+el"], "-xt"),
    RLELossless: (["dcmcrle"], "-xr"),
}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningScp]:
    with RunningScp(tmp_path / "root") as running:
        yield running


def write(path: Path, data_set: Dataset, transfer_syntax_uid: str = ExplicitVRLittleEndian) -> Path:
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    data_set.save_as(path, enforce_file_format=True)
    return path


def make_files(folder: Path, sop_class_uid: str = MR, count: int = COUNT) -> list[Path]:
    folder.mkdir()
    return [
        write(folder / f"{number}.dcm", make_data_set(number, sop_class_uid=sop_class_uid, size=64))
        for number in range(count)
    ]


def convert(path: Path, command: list[str]) -> Path:
    converted = path.with_suffix(".converted")
    program = find_peer_program(command[0])
    subprocess.run([program, *command[1:], path, converted], check=True, capture_output=True)
    path.unlink()
    return converted


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("sop_class_uid", [MR, PT])
def test_storescu_sends_every_syntax_bit_for_bit(
    node: RunningScp, tmp_path: Path, syntax: str, sop_class_uid: str
) -> None:
    command, offer = SYNTAXES[syntax]
    files = [convert(path, command) for path in make_files(tmp_path / "files", sop_class_uid)]
    sent = send_with_dcmtk(files, node.port, called="DICOMNODE", calling="SCANNER", options=[offer])
    assert sent.all_stored, sent.output
    assert_stored(node, files, syntax)


def assert_stored(node: RunningScp, files: list[Path], syntax: str) -> None:
    wanted = {str(dcmread(path).SOPInstanceUID): data_set_bytes(path.read_bytes()) for path in files}
    assert {dcmread(path).file_meta.TransferSyntaxUID for path in files} == {syntax}
    stored = node.stored()
    assert {uid: one.data_set for uid, one in stored.items()} == wanted
    assert {one.transfer_syntax_uid for one in stored.values()} == {syntax}
    assert {dcmread(one.path).file_meta.TransferSyntaxUID for one in stored.values()} == {syntax}


def test_storescu_sends_jpeg_2000_bit_for_bit(node: RunningScp, tmp_path: Path) -> None:
    # DCMTK has no JPEG 2000 codec, but carries its bytes.
    data_set = make_data_set(1, PixelData=encapsulate([b"\xff\x4f\xff\x51" + bytes(range(100))]))
    data_set["PixelData"].is_undefined_length = True
    data_set["PixelData"].VR = "OB"
    file = write(tmp_path / "one.dcm", data_set, JPEG2000Lossless)
    sent = send_with_dcmtk([file], node.port, called="DICOMNODE", calling="SCANNER", options=["-xv"])
    assert sent.all_stored, sent.output
    assert_stored(node, [file], JPEG2000Lossless)


@pytest.mark.parametrize("options", [["-x="], ["-R"], ["-pdu", "4096"], ["--repeat", "3"]], ids=" ".join)
def test_storescu_with_its_options(node: RunningScp, tmp_path: Path, options: list[str]) -> None:
    files = make_files(tmp_path / "files")
    sent = send_with_dcmtk(files, node.port, called="DICOMNODE", calling="SCANNER", options=options)
    assert sent.all_stored, sent.output
    assert_stored(node, files, ExplicitVRLittleEndian)


def test_dcmsend_sends_bit_for_bit(node: RunningScp, tmp_path: Path) -> None:
    files = make_files(tmp_path / "files") + [convert(path, ["dcmcrle"]) for path in make_files(tmp_path / "rle", PT)]
    for path in files[COUNT:]:
        replace_uids(path)
    command: list[str | Path] = [find_peer_program("dcmsend"), "-v", "-aet", "SCANNER", "-aec", "DICOMNODE", "-dn"]
    done = subprocess.run(
        [*command, LOOPBACK, str(node.port), *files],
        env=PEER_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stored = node.stored()
    wanted = {str(dcmread(path).SOPInstanceUID): path for path in files}
    assert {uid: one.data_set for uid, one in stored.items()} == {
        uid: data_set_bytes(path.read_bytes()) for uid, path in wanted.items()
    }
    assert {one.transfer_syntax_uid for one in stored.values()} == {ExplicitVRLittleEndian, RLELossless}


def replace_uids(path: Path) -> None:
    data_set = dcmread(path)
    data_set.SOPInstanceUID = data_set.SOPInstanceUID.replace(f"{ROOT}.3.", f"{ROOT}.33.")
    data_set.SeriesInstanceUID, data_set.StudyInstanceUID = f"{ROOT}.33", f"{ROOT}.22"
    data_set.save_as(path)


def test_several_storescu_at_once(node: RunningScp, tmp_path: Path) -> None:
    files = make_files(tmp_path / "files", count=24)
    command: list[str | Path] = [
        find_peer_program("storescu"),
        "-R",
        "-aet",
        "SCANNER",
        "-aec",
        "DICOMNODE",
        LOOPBACK,
        str(node.port),
    ]
    senders = [subprocess.Popen([*command, *files[start::4]], env=PEER_ENVIRONMENT) for start in range(4)]
    assert [sender.wait(60) for sender in senders] == [0] * 4
    assert_stored(node, files, ExplicitVRLittleEndian)


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [
        ("SCANNER", "OTHER", "Called AE Title Not Recognized"),
        ("NOBODY", "DICOMNODE", "Calling AE Title Not Recognized"),
        ("MODALITY7", "DICOMNODE", "Calling AE Title Not Recognized"),
        ("A;rm -rf '", "DICOMNODE", "Calling AE Title Not Recognized"),
    ],
)
def test_echoscu_is_told_why(node: RunningScp, calling: str, called: str, reason: str) -> None:
    done = echo(node, calling, called)
    assert done.returncode != 0
    assert "Result: Rejected Permanent, Source: Service User" in done.stderr
    assert f"Reason: {reason}" in done.stderr


def test_echoscu_is_answered(node: RunningScp) -> None:
    assert echo(node, "SCANNER", "DICOMNODE").returncode == 0
    assert echo(node, "VIEWER", "DICOMNODE").returncode == 0


def echo(node: RunningScp, calling: str, called: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [
        find_peer_program("echoscu"),
        "-v",
        "-aet",
        calling,
        "-aec",
        called,
        LOOPBACK,
        str(node.port),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_storescu_is_told_that_it_may_not_store(node: RunningScp, tmp_path: Path) -> None:
    files = make_files(tmp_path / "files", count=1)
    sent = send_with_dcmtk(files, node.port, called="DICOMNODE", calling="VIEWER")
    assert sent.returncode != 0
    assert "0x124" in sent.output
    assert node.files() == []


def test_storescu_cannot_send_a_ct(node: RunningScp, tmp_path: Path) -> None:
    files = make_files(tmp_path / "files", "1.2.840.10008.5.1.4.1.1.2", count=1)
    sent = send_with_dcmtk(files, node.port, called="DICOMNODE", calling="SCANNER")
    assert sent.returncode != 0
    assert "No Acceptable Presentation Contexts" in sent.output
    assert node.files() == []


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "offer", "syntax"),
    [
        ("pt_dicom/1.dcm", "-xe", ExplicitVRLittleEndian),
        ("odd_dicom/emri_small.dcm", "-xe", ExplicitVRLittleEndian),
        ("odd_dicom/emri_small_big_endian.dcm", "-xb", ExplicitVRBigEndian),
        ("odd_dicom/emri_small_RLE.dcm", "-xr", RLELossless),
        ("odd_dicom/emri_small_jpeg_2k_lossless.dcm", "-xv", JPEG2000Lossless),
        ("odd_dicom/emri_small_jpeg_ls_lossless.dcm", "-xt", JPEGLSLossless),
        ("odd_dicom/MR2_J2KR.dcm", "-xv", JPEG2000Lossless),
    ],
)
def test_real_instances_are_stored_as_a_bit_preserving_peer_gets_them(
    node: RunningScp, shared_data: Path, tmp_path: Path, name: str, offer: str, syntax: str
) -> None:
    with StoreScp(tmp_path / "peer") as peer:
        for port, called in ((peer.port, peer.ae_title), (node.port, "DICOMNODE")):
            sent = send_with_dcmtk([shared_data / name], port, called=called, calling="SCANNER", options=[offer])
            assert sent.all_stored, sent.output
        (file,) = peer.files()
        (stored,) = node.stored().values()
    assert stored.data_set == data_set_bytes(file.read_bytes())
    assert stored.transfer_syntax_uid == syntax
