"""The modules every output shares: patient, study, series, equipment, SOP common.

Flow: request, references > [modules] > pet|fused|registration_object|blending
Never: pixels, matrices, or anything only one kind of object has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    BlendingSoftcopyPresentationStateStorage,
    ExplicitVRLittleEndian,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    SpatialRegistrationStorage,
)

from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.outputs.references import ACQUISITION_EQUIPMENT, PROCESSING_EQUIPMENT, make_code
from dicomnode.outputs.request import Kind, OutputRequest, software_version
from dicomnode.outputs.sources import copy_or_empty, copy_present, read_clean, read_text
from dicomnode.outputs.uids import make_uid
from dicomnode.volumes.checks import OWN_MANUFACTURER

MANUFACTURER: Final = OWN_MANUFACTURER
MODEL_NAME: Final = "dicomnode-fusion"
MAX_LO = 64  # PS3.5 6.2: characters; ours keep to as many bytes, which is what some readers count
NOT_VERIFIED: Final = "REGISTRATION NOT VERIFIED"
NEW_STUDY: Final = "PET registered to MR"

# PS3.3 C.7.1.1, C.7.2.1: carried over from the study that is joined.
PATIENT_TYPE_2 = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
PATIENT_TYPE_3 = ("IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence")
STUDY_TYPE_2 = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")
STUDY_TYPE_3 = ("StudyDescription", "IssuerOfAccessionNumberSequence")
PATIENT_STUDY = ("PatientAge", "PatientSize", "PatientWeight")  # PS3.3 C.7.2.2


@dataclass(frozen=True)
class SeriesPlan:
    """What sets one output series apart."""

    modality: str
    sop_class_uid: UID
    offset: int  # SeriesNumber above the configured one


# Each kind of object: PS3.3 A.21, A.8.1, A.39.1, A.8.5, A.33.4.
PLANS: Final[Mapping[Kind, SeriesPlan]] = {
    "pt": SeriesPlan("PT", PositronEmissionTomographyImageStorage, 0),
    "rgb": SeriesPlan("OT", SecondaryCaptureImageStorage, 1),
    "reg": SeriesPlan("REG", SpatialRegistrationStorage, 2),
    "multiframe": SeriesPlan("OT", MultiFrameTrueColorSecondaryCaptureImageStorage, 3),
    "blending": SeriesPlan("PR", BlendingSoftcopyPresentationStateStorage, 4),
}


def make_template(request: OutputRequest, kind: Kind) -> pydicom.Dataset:
    """Make what all instances of one output series share.

    Returns
    -------
    Dataset
        Patient, General Study, Patient Study, General Series, General Equipment and the constant part of SOP Common,
        in ISO_IR 192: PS3.3 C.7.1.1, C.7.2.1, C.7.2.2, C.7.3.1, C.7.5.1, C.12.1.
    """
    plan = PLANS[kind]
    template = pydicom.Dataset()
    template.SpecificCharacterSet = "ISO_IR 192"
    template.SOPClassUID = plan.sop_class_uid
    _add_patient_and_study(template, request)
    template.Modality = plan.modality
    template.SeriesInstanceUID = find_series_uid(request, kind)
    template.SeriesNumber = request.settings.series_number + plan.offset
    template.SeriesDescription = _describe_series(request, kind)
    template.BodyPartExamined = read_clean(request.fixed.headers[0], "BodyPartExamined") or "BRAIN"
    template.Manufacturer = MANUFACTURER
    template.ManufacturerModelName = MODEL_NAME
    template.SoftwareVersions = software_version()
    template.InstanceCreationDate, template.InstanceCreationTime = date_and_time(request)
    template.ContributingEquipmentSequence = _contributing_equipment(request)
    return template


def add_frame_of_reference(template: pydicom.Dataset, fixed_header: pydicom.Dataset) -> None:
    """Say that an object lies in the MR's frame of reference (PS3.3 C.7.4.1)."""
    template.FrameOfReferenceUID = fixed_header.FrameOfReferenceUID
    copy_or_empty(fixed_header, template, ("PositionReferenceIndicator",))


def find_series_uid(request: OutputRequest, kind: Kind) -> UID:
    """Return the SeriesInstanceUID that a kind of object has, made or not."""
    return make_uid(request.fingerprint, kind, "series")


def find_instance_uid(request: OutputRequest, kind: Kind, number: int) -> UID:
    """Return the SOPInstanceUID that instance `number` (from 1) of a kind of object has, made or not."""
    return make_uid(request.fingerprint, kind, "instance", str(number))


def make_instance(request: OutputRequest, kind: Kind, template: pydicom.Dataset, number: int) -> pydicom.Dataset:
    """Start instance `number` (from 1) of a series: the template, its own UID and number, and file meta."""
    instance = pydicom.Dataset()
    instance.update(template)
    instance.SOPInstanceUID = find_instance_uid(request, kind, number)
    instance.InstanceNumber = number
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = PLANS[kind].sop_class_uid
    meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    instance.file_meta = meta
    return instance


def date_and_time(request: OutputRequest) -> tuple[str, str]:
    """Return the moment of making as DA and TM, in UTC."""
    return request.created.strftime("%Y%m%d"), request.created.strftime("%H%M%S")


def refer_to_output(request: OutputRequest, kind: Kind, number: int) -> pydicom.Dataset:
    """Make the item that points at instance `number` (from 1) of what we make ourselves."""
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = PLANS[kind].sop_class_uid
    item.ReferencedSOPInstanceUID = find_instance_uid(request, kind, number)
    return item


def describe(request: OutputRequest) -> str:
    """Say in words how the moving series came to lie on the fixed one, and first if nobody has looked at a doubt."""
    registration = request.registration
    of = f"; the PET is {request.moving.mean.words}" if request.moving.mean else ""
    mark = f"{NOT_VERIFIED}. " if request.is_unverified else ""
    return (
        f"{mark}PET registered rigidly to MR by CNN-SIFT features ({registration.verdict}, confidence "
        f"{registration.confidence:.3f}, model {registration.model_sha256[:12]}{of})"
    )


def _add_patient_and_study(template: pydicom.Dataset, request: OutputRequest) -> None:
    """Join the study that the settings name, under the name its patient has there, or begin one."""
    choice = request.settings.study
    source = (request.moving if choice == "pet" else request.fixed).headers[0]
    copy_or_empty(source, template, (*PATIENT_TYPE_2, *STUDY_TYPE_2))
    copy_present(source, template, (*PATIENT_TYPE_3, *PATIENT_STUDY))
    if choice != "new":
        template.StudyInstanceUID = source.StudyInstanceUID
        copy_present(source, template, STUDY_TYPE_3)
        return
    template.StudyInstanceUID = make_uid(request.fingerprint, "study")
    template.StudyDate, template.StudyTime = date_and_time(request)
    template.StudyID = template.AccessionNumber = None  # nobody has ordered it
    template.StudyDescription = NEW_STUDY


def _describe_series(request: OutputRequest, kind: Kind) -> str:
    """Return a series' description with the sources' put in, and before it if nobody has looked at a doubt."""
    pattern: str = getattr(request.settings.descriptions, kind)
    names = {
        "pet": read_text(request.moving.headers[0], "SeriesDescription") or "series",
        "mr": read_text(request.fixed.headers[0], "SeriesDescription") or "MR",
    }
    words = re.sub(r"{(pet|mr)}", lambda found: names[found[1]], pattern)
    marked = f"{NOT_VERIFIED}: {words}" if request.is_unverified else words
    return marked.encode()[:MAX_LO].decode(errors="ignore").rstrip()


def _contributing_equipment(request: OutputRequest) -> list[pydicom.Dataset]:
    """List both scanners, where they say who made them, and ourselves (PS3.3 C.12.1, type 1 Manufacturer)."""
    items = []
    for header in (request.fixed.headers[0], request.moving.headers[0]):
        item = pydicom.Dataset()
        item.PurposeOfReferenceCodeSequence = [make_code(ACQUISITION_EQUIPMENT)]
        copy_present(header, item, ("Manufacturer", "ManufacturerModelName", "SoftwareVersions"))
        if "Manufacturer" in item:
            items.append(item)
    own = pydicom.Dataset()
    own.PurposeOfReferenceCodeSequence = [make_code(PROCESSING_EQUIPMENT)]
    own.Manufacturer = MANUFACTURER
    own.ManufacturerModelName = MODEL_NAME
    own.SoftwareVersions = software_version()
    own.ContributionDateTime = request.created.strftime("%Y%m%d%H%M%S") + "+0000"
    own.ContributionDescription = describe(request)
    return [*items, own]
