"""What all kinds of objects share: whose study they join, what they are called, and how a doubt is said."""

from __future__ import annotations

from dataclasses import replace

import pydicom
import pytest

from dicomnode.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.outputs.modules import NOT_VERIFIED
from dicomnode.outputs.objects import OutputRequest, make_outputs
from dicomnode.settings import OutputSettings, SeriesNameSettings
from registration.confidence import Verdict
from tests.dicomnode.outputs.known_requests import EVERY_OBJECT, MR, PET, SMALL_MOTION, make_request
from tests.dicomnode.outputs.known_requests import make_registration as registered


def make_first(request: OutputRequest) -> dict[str, pydicom.Dataset]:
    """Return the first instance of each kind."""
    firsts: dict[str, pydicom.Dataset] = {}
    for kind, instance in make_outputs(request):
        firsts.setdefault(kind, instance)
    return firsts


def married(header: pydicom.Dataset, _k: int) -> None:
    header.PatientName, header.StudyDate, header.StudyDescription = "Müller-Meier^Käthe", "20250301", "PET head"


ELSEWHERE = replace(PET, uid="1.2.44", change=married)


def test_files_name_the_implementation_that_associations_name() -> None:
    for instance in make_first(make_request(settings=EVERY_OBJECT)).values():
        assert instance.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
        assert instance.file_meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME


def test_the_study_of_the_mr_is_joined() -> None:
    for instance in make_first(make_request(moving=ELSEWHERE, settings=EVERY_OBJECT)).values():
        assert instance.StudyInstanceUID == f"{MR.uid}.1"
        assert (str(instance.PatientName), instance.StudyDate, instance.StudyID) == ("Müller^Käthe", "20250304", "7")


def test_the_study_of_the_pet_is_joined_under_the_patients_name_there() -> None:
    settings = EVERY_OBJECT.model_copy(update={"study": "pet"})
    firsts = make_first(make_request(moving=ELSEWHERE, settings=settings))
    for kind, instance in firsts.items():
        assert instance.StudyInstanceUID == "1.2.44.1"
        assert str(instance.PatientName) == "Müller-Meier^Käthe"
        assert (instance.StudyDate, instance.StudyDescription) == ("20250301", "PET head")
        assert instance.get("FrameOfReferenceUID") == (None if kind == "blending" else f"{MR.uid}.4")
    (own,) = firsts["reg"].ReferencedSeriesSequence
    assert own.SeriesInstanceUID == "1.2.44.2"
    (other,) = firsts["reg"].StudiesContainingOtherReferencedInstancesSequence
    assert other.StudyInstanceUID == f"{MR.uid}.1"


def test_a_study_of_their_own_is_one_for_all_and_the_same_on_a_second_run() -> None:
    settings = EVERY_OBJECT.model_copy(update={"study": "new"})
    firsts = make_first(make_request(settings=settings))
    (uid,) = {instance.StudyInstanceUID for instance in firsts.values()}
    assert uid not in {f"{MR.uid}.1", f"{PET.uid}.1"}
    assert {i.StudyInstanceUID for i in make_first(make_request(settings=settings)).values()} == {uid}
    for instance in firsts.values():
        assert (instance.StudyDate, instance.StudyTime) == ("20251009", "085320")
        assert instance["StudyID"].is_empty
        assert instance["AccessionNumber"].is_empty
        assert instance.StudyDescription == "PET registered to MR"
        assert instance.PatientID == "T-1"
    assert "ReferencedSeriesSequence" not in firsts["reg"]
    others = firsts["reg"].StudiesContainingOtherReferencedInstancesSequence
    assert [item.StudyInstanceUID for item in others] == [f"{MR.uid}.1", f"{PET.uid}.1"]


def test_series_are_numbered_and_described_as_the_settings_say() -> None:
    names = SeriesNameSettings(pt="{mr} + {pet}", rgb="Fusion", reg="{pet}{pet}{pet}{pet}{pet}{pet}{pet}{pet}")
    firsts = make_first(make_request(settings=OutputSettings(series_number=77, descriptions=names)))
    assert {kind: (i.SeriesNumber, i.SeriesDescription) for kind, i in firsts.items()} == {
        "pt": (77, "T1 äxial + FDG brain"),
        "rgb": (78, "Fusion"),
        "reg": (79, ("FDG brain" * 8)[:64]),
    }


def test_a_description_that_is_too_long_ends_with_a_whole_character() -> None:
    names = SeriesNameSettings(reg="ä" * 31 + "x{pet}")
    firsts = make_first(make_request(settings=OutputSettings(objects=("reg",), descriptions=names)))
    assert firsts["reg"].SeriesDescription == "ä" * 31 + "xF"  # 64 bytes
    names = SeriesNameSettings(reg="ä" * 31 + "xä")
    firsts = make_first(make_request(settings=OutputSettings(objects=("reg",), descriptions=names)))
    assert firsts["reg"].SeriesDescription == "ä" * 31 + "x"


@pytest.mark.parametrize(("verdict", "review"), [("accept", "send"), ("accept", "hold"), ("review", "hold")])
def test_nothing_is_marked_that_was_accepted_or_that_a_person_will_have_looked_at(
    verdict: Verdict, review: str
) -> None:
    settings = EVERY_OBJECT.model_copy(update={"review": review})
    request = replace(make_request(settings=settings), registration=registered(SMALL_MOTION, verdict))
    assert not any(NOT_VERIFIED in str(instance) for instance in make_first(request).values())


def test_what_is_sent_though_in_doubt_says_so_in_series_description_and_derivation() -> None:
    settings = EVERY_OBJECT.model_copy(update={"review": "send"})
    request = replace(make_request(settings=settings), registration=registered(SMALL_MOTION, "review"))
    firsts = make_first(request)
    for kind, instance in firsts.items():
        assert instance.SeriesDescription.startswith("REGISTRATION NOT VERIFIED: PET "), kind
        assert len(instance.SeriesDescription) <= 64
        said = instance.get("DerivationDescription") or instance.ContentDescription
        assert said.startswith("REGISTRATION NOT VERIFIED. PET registered rigidly"), kind
        own = instance.ContributingEquipmentSequence[-1]
        assert own.ContributionDescription.startswith("REGISTRATION NOT VERIFIED. "), kind
    held = make_first(replace(request, settings=EVERY_OBJECT))
    assert not {i.SOPInstanceUID for i in firsts.values()} & {i.SOPInstanceUID for i in held.values()}
