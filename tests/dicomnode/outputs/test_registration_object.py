"""The Spatial Registration object says where PET points lie in the MR, attribute by attribute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from dicomnode.outputs.registration_object import format_matrix, make_registration_object
from dicomnode.volumes.headers import quiet_reading
from registration.transforms import RigidTransform
from tests.dicomnode.outputs.known_requests import MR, PET, QUARTER_TURN, load_spec, make_request


@pytest.fixture(scope="module")
def registration_object() -> pydicom.Dataset:
    with quiet_reading():
        return make_registration_object(make_request(transform=RigidTransform(QUARTER_TURN)))


def read_matrix(item: pydicom.Dataset) -> np.ndarray:
    matrix = item.MatrixRegistrationSequence[0].MatrixSequence[0]
    assert matrix.FrameOfReferenceTransformationMatrixType == "RIGID"
    return np.array(matrix.FrameOfReferenceTransformationMatrix, dtype=float).reshape(4, 4)


def test_matrix_takes_pet_points_to_mr_points(registration_object: pydicom.Dataset) -> None:
    # By hand: the PET point (10, 20, 30) goes to (-20 + 12, 10 - 7, 30 + 30).
    _, moving = registration_object.RegistrationSequence
    np.testing.assert_array_equal(read_matrix(moving) @ (10, 20, 30, 1), (-8, 3, 60, 1))


def test_first_item_is_the_fixed_mr_with_the_literal_identity(registration_object: pydicom.Dataset) -> None:
    fixed, moving = registration_object.RegistrationSequence
    np.testing.assert_array_equal(read_matrix(fixed), np.eye(4))
    assert fixed.FrameOfReferenceUID == registration_object.FrameOfReferenceUID == f"{MR.uid}.4"
    assert moving.FrameOfReferenceUID == f"{PET.uid}.4"
    assert [_type_code(item) for item in (fixed, moving)] == ["125021", "125024"]


def _type_code(item: pydicom.Dataset) -> str:
    (code,) = item.MatrixRegistrationSequence[0].RegistrationTypeCodeSequence
    return str(code.CodeValue)


def test_every_instance_of_both_series_is_referenced_and_the_pet_s_study_is_another(
    registration_object: pydicom.Dataset,
) -> None:
    for item, spec in zip(registration_object.RegistrationSequence, (MR, PET), strict=True):
        uids = [reference.ReferencedSOPInstanceUID for reference in item.ReferencedImageSequence]
        assert uids == [f"{spec.uid}.3.{k + 1}" for k in range(spec.shape[0])]
    (own,) = registration_object.ReferencedSeriesSequence
    assert own.SeriesInstanceUID == f"{MR.uid}.2"
    assert len(own.ReferencedInstanceSequence) == MR.shape[0]
    (study,) = registration_object.StudiesContainingOtherReferencedInstancesSequence
    assert study.StudyInstanceUID == f"{PET.uid}.1"
    assert len(study.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == PET.shape[0]


def _one_elsewhere(header: pydicom.Dataset, k: int) -> None:
    if k == 0:
        header.FrameOfReferenceUID = "1.2.99"


def test_slices_that_were_not_read_are_referenced_too_where_they_stand_in_the_same_frame() -> None:
    whole_body = replace(PET, uid="1.2.10", shape=(60, 26, 28), change=_one_elsewhere)
    with quiet_reading():
        instance = make_registration_object(make_request(moving=whole_body))
    read = [f"1.2.10.3.{k + 1}" for k in range(10, 60)]
    wanted = {*read, *(f"1.2.10.3.{k + 1}" for k in range(1, 10))}
    moving = instance.RegistrationSequence[1].ReferencedImageSequence
    (study,) = instance.StudiesContainingOtherReferencedInstancesSequence
    for references in (moving, study.ReferencedSeriesSequence[0].ReferencedInstanceSequence):
        uids = [reference.ReferencedSOPInstanceUID for reference in references]
        assert uids[:50] == read
        assert sorted(uids) == sorted(wanted)


def test_series_of_the_same_study_are_not_called_another() -> None:
    same_study = replace(PET, uid="1.2.9", change=_into_mr_study)
    with quiet_reading():
        instance = make_registration_object(make_request(moving=same_study))
    assert [item.SeriesInstanceUID for item in instance.ReferencedSeriesSequence] == [f"{MR.uid}.2", "1.2.9.2"]
    assert "StudiesContainingOtherReferencedInstancesSequence" not in instance


def _into_mr_study(header: pydicom.Dataset, _k: int) -> None:
    header.StudyInstanceUID = f"{MR.uid}.1"


def test_names_dates_and_text(registration_object: pydicom.Dataset) -> None:
    assert registration_object.SpecificCharacterSet == "ISO_IR 192"
    assert str(registration_object.PatientName) == "Müller^Käthe"
    assert registration_object.PatientID == "T-1"
    assert registration_object.StudyInstanceUID == f"{MR.uid}.1"
    assert registration_object.Modality == "REG"
    assert registration_object.ContentLabel == "PET_TO_MR_RIGID"
    assert len(registration_object.ContentLabel) <= 16
    assert (registration_object.ContentDate, registration_object.ContentTime) == ("20251009", "085320")
    assert registration_object.BodyPartExamined == "BRAIN"
    assert "ContentCreatorName" not in registration_object


def test_equipment_names_both_scanners_and_us(registration_object: pydicom.Dataset) -> None:
    items = registration_object.ContributingEquipmentSequence
    assert [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in items] == ["109101", "109101", "109102"]
    assert items[-1].Manufacturer == "dicomnode"
    assert items[-1].ContributionDateTime == "20251009085320+0000"


def test_a_scanner_that_does_not_say_its_maker_is_left_out() -> None:
    anonymous = replace(PET, uid="1.2.8", change=_without_manufacturer)
    with quiet_reading():
        instance = make_registration_object(make_request(moving=anonymous))
    assert len(instance.ContributingEquipmentSequence) == 2


def _without_manufacturer(header: pydicom.Dataset, _k: int) -> None:
    header.Manufacturer = ""


def test_decimal_strings_are_short_and_lose_nothing_that_matters() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        matrix = RigidTransform.from_parameters(rng.uniform(-3, 3, 3), rng.uniform(-400, 400, 3), np.zeros(3)).matrix
        words = format_matrix(matrix)
        assert max(map(len, words)) <= 16
        spelt = np.array(words, dtype=float).reshape(4, 4)
        assert np.abs(spelt[:3, :3] - matrix[:3, :3]).max() < 1e-12
        assert np.abs(spelt[:3, 3] - matrix[:3, 3]).max() < 1e-9
        assert np.abs(spelt[:3, :3] @ spelt[:3, :3].T - np.eye(3)).max() < 1e-11


def test_zero_is_spelt_without_a_sign() -> None:
    assert format_matrix(np.array([[-0.0, 1.0]])) == ["0.0", "1.0"]


def test_identity_within_one_frame_is_called_identity() -> None:
    hybrid = load_spec(replace(PET, uid="1.2.7", change=_into_mr_frame))
    request = replace(make_request(transform=RigidTransform.identity()), moving=hybrid)
    with quiet_reading():
        instance = make_registration_object(request)
    assert [_type_code(item) for item in instance.RegistrationSequence] == ["125021", "125021"]


def _into_mr_frame(header: pydicom.Dataset, _k: int) -> None:
    header.FrameOfReferenceUID = f"{MR.uid}.4"
