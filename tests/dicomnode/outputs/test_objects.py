"""All objects of one registration, in order, whole, and the same each time."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicomnode.errors import SeriesRefusedError, StorageFailedError
from dicomnode.outputs.objects import make_outputs, write_outputs
from dicomnode.settings import OutputSettings
from dicomnode.volumes.series import load_series
from registration.transforms import RigidTransform
from tests.dicomnode.outputs.known_requests import (
    EVERY_OBJECT,
    MR,
    PET,
    SMALL_MOTION,
    load_spec,
    make_request,
)


def test_kinds_come_in_the_order_they_should_be_sent() -> None:
    kinds = [kind for kind, _ in make_outputs(make_request())]
    assert kinds == ["pt"] * 12 + ["rgb"] * 12 + ["reg"]
    kinds = [kind for kind, _ in make_outputs(make_request(settings=EVERY_OBJECT))]
    assert kinds == ["pt"] * 12 + ["rgb"] * 12 + ["multiframe", "reg", "blending"]


def test_what_nobody_asked_for_is_not_made() -> None:
    kinds = [kind for kind, _ in make_outputs(make_request(settings=OutputSettings(objects=("reg",))))]
    assert kinds == ["reg"]


def test_written_files_are_what_their_rows_say(tmp_path: Path) -> None:
    files = write_outputs(make_request(), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(file.path.name for file in files)
    assert files[0].path.name == "pt-0001.dcm"
    assert files[-1].path.name == "reg-0001.dcm"
    for file in files:
        content = file.path.read_bytes()
        dataset = pydicom.dcmread(file.path)
        assert file.size_bytes == len(content)
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert file.sop_instance_uid == dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        assert file.sop_class_uid == dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID
        assert file.series_uid == dataset.SeriesInstanceUID
        assert file.transfer_syntax_uid == dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert len({file.sop_instance_uid for file in files}) == len(files)
    assert Counter(file.series_uid for file in files).most_common() == [
        (files[0].series_uid, 12),
        (files[12].series_uid, 12),
        (files[24].series_uid, 1),
    ]


def test_second_run_writes_the_same_bytes(tmp_path: Path) -> None:
    once = write_outputs(make_request(settings=EVERY_OBJECT), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = write_outputs(make_request(settings=EVERY_OBJECT), tmp_path)
    assert again == once
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_file_order_of_the_sources_changes_nothing(tmp_path: Path) -> None:
    request = make_request()
    turned = replace(request, registration=replace(request.registration, metrics={"extra": 1.0}))
    assert [f.sha256 for f in write_outputs(request, tmp_path / "a")] == [
        f.sha256 for f in write_outputs(turned, tmp_path / "b")
    ]


def test_moment_of_making_changes_content_but_not_uids(tmp_path: Path) -> None:
    one = write_outputs(make_request(), tmp_path / "a")
    later = write_outputs(replace(make_request(), created_at=1_770_000_000.0), tmp_path / "b")
    assert [f.sop_instance_uid for f in one] == [f.sop_instance_uid for f in later]
    assert [f.sha256 for f in one] != [f.sha256 for f in later]


def test_interrupted_run_leaves_whole_files_only(tmp_path: Path) -> None:
    for number, (kind, _) in enumerate(make_outputs(make_request())):
        if number == 3:
            break
        assert kind == "pt"
    (tmp_path / "pt-0002.dcm").mkdir()  # the second file cannot take its name
    with pytest.raises(StorageFailedError, match="outputs could not be written"):
        write_outputs(make_request(), tmp_path)
    assert pydicom.dcmread(tmp_path / "pt-0001.dcm").InstanceNumber == 1
    assert not (tmp_path / "pt-0003.dcm").exists()


def test_our_outputs_share_the_mr_s_patient_study_and_frame() -> None:
    for kind, instance in make_outputs(make_request(settings=EVERY_OBJECT)):
        assert str(instance.PatientName) == "Müller^Käthe"
        assert instance.StudyInstanceUID == f"{MR.uid}.1"
        assert instance.get("FrameOfReferenceUID") == (None if kind == "blending" else f"{MR.uid}.4")
        assert instance.SeriesNumber == 9001 + ["pt", "rgb", "reg", "multiframe", "blending"].index(kind)
        assert not any(element.tag.is_private for element in instance)


def test_all_decimal_and_integer_strings_fit_their_representation(tmp_path: Path) -> None:
    for file in write_outputs(make_request(settings=EVERY_OBJECT), tmp_path):
        for element in pydicom.dcmread(file.path).iterall():
            if element.VR in {"DS", "IS"}:
                values = element.value if element.VM > 1 else [element.value]
                limit = 16 if element.VR == "DS" else 12
                assert all(len(str(v)) <= limit for v in values if v not in {None, ""}), element.tag


def test_one_frame_with_a_correction_gets_no_registration_object() -> None:
    hybrid = load_spec(replace(PET, uid="1.2.6", change=_into_mr_frame))
    corrected = replace(make_request(transform=SMALL_MOTION), moving=hybrid)
    assert "reg" not in {kind for kind, _ in make_outputs(corrected)}
    confirmed = replace(make_request(transform=RigidTransform.identity()), moving=hybrid)
    assert [kind for kind, _ in make_outputs(confirmed)][-1] == "reg"


def _into_mr_frame(header: pydicom.Dataset, _k: int) -> None:
    header.FrameOfReferenceUID = f"{MR.uid}.4"


def test_no_output_is_taken_as_input(tmp_path: Path) -> None:
    files = write_outputs(make_request(settings=EVERY_OBJECT), tmp_path)
    reasons = {
        "pt": "an output of this software",
        "rgb": "modality OT",
        "multiframe": "modality OT",
        "reg": "modality REG",
        "blending": "modality PR",
    }
    for kind, reason in reasons.items():
        with pytest.raises(SeriesRefusedError, match=reason):
            load_series([file.path for file in files if file.kind == kind])


def test_volumes_are_left_as_they_were() -> None:
    request = make_request()
    before = request.fixed.volume.array.tobytes(), request.moving.volume.array.tobytes()
    headers = [header.SOPInstanceUID for header in request.moving.headers]
    list(make_outputs(request))
    assert (request.fixed.volume.array.tobytes(), request.moving.volume.array.tobytes()) == before
    assert [header.SOPInstanceUID for header in request.moving.headers] == headers
    assert not np.shares_memory(request.fixed.volume.array, request.moving.volume.array)
