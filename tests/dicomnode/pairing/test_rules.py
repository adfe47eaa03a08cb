"""Which MR and PET of one patient belong together: a table of situations, and laws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.database.series import IdentifiedSeries
from dicomnode.pairing.rules import PatientDecision, decide_patient
from dicomnode.settings import PairingSettings
from tests.values import JANE, mr, pet, study

SETTINGS = PairingSettings(window_days=90, is_single_issuer=False)
LONG_AFTER = 1e6


@dataclass(frozen=True)
class Situation:
    """What was received, and what is to be paired: fixed and moving number, and whether a person must look."""

    name: str
    series: Sequence[IdentifiedSeries]
    pairs: Sequence[tuple[str, str]] = ()
    held: str = ""
    lost: str = ""  # a reason that some series must show
    settings: PairingSettings = SETTINGS


def _named(decision: PatientDecision) -> list[tuple[str, str]]:
    return sorted((pair.fixed.series_uid[-1], pair.moving.series_uid[-1]) for pair in decision.pairs)


ELSEWHERE, NOWHERE = replace(JANE, issuer="ELSEWHERE"), replace(JANE, issuer="")
SITUATIONS = [
    Situation("one MR and one PET", [mr(), pet()], [("1", "1")]),
    Situation("an MR alone", [mr()], lost="no PET of this patient"),
    Situation("a PET alone", [pet()], lost="no MR of this patient"),
    Situation("the same ID of another issuer", [mr(patient=ELSEWHERE), pet()], lost="IssuerOfPatientID differs"),
    Situation("an issuer on one side only", [mr(patient=NOWHERE), pet()], lost="IssuerOfPatientID on one side only"),
    Situation(
        "an issuer on one side only at a single-issuer site",
        [mr(patient=NOWHERE), pet()],
        [("1", "1")],
        settings=PairingSettings(is_single_issuer=True),
    ),
    Situation(
        "a placeholder ID on both",
        [mr(patient=replace(JANE, patient_id="UNKNOWN")), pet(patient=replace(JANE, patient_id="UNKNOWN"))],
        lost="PatientID is empty or a placeholder",
    ),
    Situation("another birth date", [mr(patient=replace(JANE, birth_date="19800102")), pet()], [("1", "1")], "Birth"),
    Situation("another sex", [mr(patient=replace(JANE, sex="M")), pet()], [("1", "1")], "PatientSex"),
    Situation("another name, same birth date", [mr(patient=replace(JANE, name="Roe^Rita")), pet()], [("1", "1")]),
    Situation(
        "another name, no birth date",
        [mr(patient=replace(JANE, name="Roe^Rita", birth_date="")), pet()],
        [("1", "1")],
        "PatientName differs",
    ),
    Situation(
        "two people under one ID: the consistent prior, not today's other person",
        [mr(1, patient=replace(JANE, sex="M")), mr(2, **study(8, "20260201")), pet()],
        [("2", "1")],
        lost="no conflict of identity",
    ),
    Situation("90 days apart", [mr(**study(8, "20251201")), pet()], [("1", "1")]),
    Situation("91 days apart", [mr(**study(8, "20251130")), pet()], lost="91 days from the PET, at most 90 allowed"),
    Situation("the MR after the PET", [mr(**study(8, "20260310")), pet()], [("1", "1")]),
    Situation("no study date", [mr(**study(8, "")), pet()], [("1", "1")], "a StudyDate is missing"),
    Situation("no study date in one study", [mr(**study(8, "")), pet(**study(8, ""))], [("1", "1")]),
    Situation(
        "the nearest of two priors",
        [mr(1, **study(8, "20260101")), mr(2, **study(9, "20260220")), pet()],
        [("2", "1")],
        lost="another series was preferred: nearest day",
    ),
    Situation(
        "the same day before a better prior",
        [mr(1, **study(8, "20260228")), mr(2, description="t2", summary={"MRAcquisitionType": "2D"}), pet()],
        [("2", "1")],
    ),
    Situation(
        "an older prior before a newer localizer",
        [mr(1, **study(8, "20260201")), mr(2, description="localizer"), pet()],
        [("1", "1")],
        lost="its description names a localizer",
    ),
    Situation(
        "the same accession number breaks a tie of days",
        [mr(1, **study(8, accession="A1")), mr(2, **study(9, accession="A2")), pet(**study(7, accession="A2"))],
        [("2", "1")],
        lost="same accession number",
    ),
    Situation(
        "the same study breaks a tie of days",
        [mr(1, **study(8, accession="A1")), mr(2, **study(9)), pet(**study(9))],
        [("2", "1")],
        lost="same study",
    ),
    Situation(
        "the nearest hour breaks a tie of equal series",
        [mr(1, **study(8, time="080000")), mr(2, **study(9, time="120000")), pet()],
        [("2", "1")],
        lost="nearest in time",
    ),
    Situation(
        "the T1 of a study with a FLAIR",
        [mr(1, description="t2_flair_sag"), mr(2), pet()],
        [("2", "1")],
        lost="T1 weighting",
    ),
    Situation("equal series: the lowest UID", [mr(2), mr(1), pet()], [("1", "1")], lost="lowest SeriesInstanceUID"),
    Situation(
        "the corrected PET of a study",
        [mr(), pet(1, summary={"CorrectedImage": ["DECY"]}), pet(2)],
        [("1", "2")],
        lost="another series was preferred: attenuation corrected",
    ),
    Situation(
        "the uncorrected PET where there is nothing else",
        [mr(), pet(summary={"CorrectedImage": ["DECY"]})],
        [("1", "1")],
    ),
    Situation(
        "a MIP of the PET besides", [mr(), pet(1, summary={"ImageType": ["DERIVED", "MIP"]}), pet(2)], [("1", "2")]
    ),
    Situation("a gated PET only", [mr(), pet(summary={"SeriesType": ["GATED", "IMAGE"]})], lost="gated"),
    Situation(
        "two PET studies, each with its nearest MR",
        [mr(1, **study(8, "20260101")), mr(2), pet(1, **study(7, "20260102")), pet(2)],
        [("1", "1"), ("2", "2")],
    ),
    Situation("one MR for two PET studies", [mr(), pet(1), pet(2, **study(7, "20260302"))], [("1", "1"), ("1", "2")]),
    Situation("fewer slices than the PET counts", [mr(), pet(instance_count=80)], [("1", "1")], "80 arrived"),
    Situation("more slices than the PET counts", [mr(), pet(instance_count=90)], [("1", "1")]),
    Situation("a CT", [mr(), pet(modality="CT")], lost="modality CT, MR or PT needed"),
    Situation("a series of one slice", [mr(), pet(instance_count=1)], lost="1 slices, at least 8 needed"),
    Situation(
        "a series refused at reception",
        [mr(state="refused", reason="its instances name more than one patient"), pet()],
        lost="no MR of this patient",
    ),
]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_situation(situation: Situation) -> None:
    decision = decide_patient(situation.series, LONG_AFTER, situation.settings)

    assert _named(decision) == sorted(situation.pairs)
    assert {pair.state for pair in decision.pairs} <= ({"held"} if situation.held else {"ready"})
    assert all(situation.held in pair.reason for pair in decision.pairs)
    reasons = [one.reason for one in decision.series if one.state in ("unpaired", "refused")]
    assert not situation.lost or any(situation.lost in reason for reason in reasons), reasons


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
@given(order=st.randoms())
def test_the_order_of_arrival_changes_nothing(situation: Situation, order: Random) -> None:
    shuffled = list(situation.series)
    order.shuffle(shuffled)
    later = [replace(one, row=replace(one.row, first_received_at=float(n))) for n, one in enumerate(shuffled)]

    assert _plain(decide_patient(later, LONG_AFTER, situation.settings)) == _plain(
        decide_patient(situation.series, LONG_AFTER, situation.settings)
    )


def _plain(decision: PatientDecision) -> object:
    return (
        sorted((p.fixed.id, p.moving.id, p.state, p.reason, str(p.explanation)) for p in decision.pairs),
        sorted((s.series.id, s.state, s.reason) for s in decision.series),
    )


def test_nothing_is_paired_while_a_candidate_is_still_received() -> None:
    group = [mr(1, **study(8, "20260201")), mr(2, state="receiving"), pet()]

    decision = decide_patient(group, LONG_AFTER, SETTINGS)

    assert decision.pairs == ()
    assert {one.state for one in decision.series} == {"complete"}


def test_a_localizer_that_is_still_received_holds_nothing_up() -> None:
    group = [mr(1), mr(2, state="receiving", description="localizer"), pet()]

    assert len(decide_patient(group, LONG_AFTER, SETTINGS).pairs) == 1


@pytest.mark.parametrize(("now", "pairs"), [(159.9, 0), (160.0, 1)])
def test_a_study_with_several_candidates_is_given_its_quiet_period(now: float, pairs: int) -> None:
    group = [mr(1), mr(2, description="t2", last_received_at=100.0), pet()]

    assert len(decide_patient(group, now, SETTINGS).pairs) == pairs


def test_a_single_candidate_waits_for_nothing() -> None:
    group = [mr(last_received_at=100.0), pet(last_received_at=100.0)]

    assert len(decide_patient(group, 100.0, SETTINGS).pairs) == 1


def test_the_explanation_names_every_candidate_and_no_identity() -> None:
    group = [
        mr(1),
        mr(2, description="t2"),
        mr(3, description="localizer"),
        mr(4, **study(9, "20250101")),
        pet(1),
        pet(2, description="NAC"),
    ]

    [pair] = decide_patient(group, LONG_AFTER, SETTINGS).pairs

    assert [(one["series_uid"][-1], one["outcome"], one["rule"]) for one in pair.explanation["fixed"]] == [
        ("1", "won", "best by every rule"),
        ("2", "lost", "T1 weighting"),
        ("4", "lost", "424 days from the PET, at most 90 allowed"),
        ("3", "refused", "its description names a localizer"),
    ]
    assert [(one["series_uid"][-1], one["outcome"], one["rule"]) for one in pair.explanation["moving"]] == [
        ("1", "won", "best by every rule"),
        ("2", "lost", "attenuation corrected"),
    ]
    assert pair.explanation["days_apart"] == 0
    assert not any(value in str(pair) for value in ("Doe", "4711", "19700102"))


def test_a_shared_frame_of_reference_is_noted() -> None:
    shared, separate = (
        decide_patient([mr(), pet(frame_of_reference_uid=frame)], LONG_AFTER, SETTINGS).pairs[0].explanation
        for frame in ("1.2.9.1", "1.2.9.2")
    )

    assert (shared["same_frame_of_reference"], separate["same_frame_of_reference"]) == (True, False)


def test_a_warning_is_kept_with_the_pair() -> None:
    [pair] = decide_patient([mr(patient=replace(JANE, name="Roe^Rita")), pet()], LONG_AFTER, SETTINGS).pairs

    assert pair.explanation["warnings"] == ["PatientName differs between the MR and the PET"]
