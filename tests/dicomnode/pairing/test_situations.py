"""Which MR and PET of one patient belong together: a table of situations, each with what is decided and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.database.index import MIXED_PATIENTS
from dicomnode.database.series import IdentifiedSeries, SeriesRow
from dicomnode.pairing.rules import PatientDecision, decide_patient
from dicomnode.settings import ChoiceSettings, PairingSettings
from tests.values import JANE, mr, pet, study

LONG_AFTER = 1e6


@dataclass(frozen=True)
class Situation:
    """What was received, and every decision that follows: pairs, and why each other series is in none."""

    name: str
    series: Sequence[IdentifiedSeries]
    decisions: Sequence[str]
    settings: PairingSettings = field(default_factory=PairingSettings)
    requests: Mapping[int, int] = field(default_factory=dict)

    def decide(self, series: Sequence[IdentifiedSeries]) -> PatientDecision:
        return decide_patient(series, LONG_AFTER, self.settings, self.requests)


ELSEWHERE, NOWHERE = replace(JANE, issuer="ELSEWHERE"), replace(JANE, issuer="")
UNKNOWN, ZEROS = replace(JANE, patient_id="UNKNOWN"), replace(JANE, patient_id="0000")
TWIN = replace(JANE, patient_id="4712", name="Doe^Joan")
MAN, OLDER = replace(JANE, sex="M"), replace(JANE, birth_date="19600102")
NAMELESS_DATE = replace(JANE, name="Roe^Rita", birth_date="")
MARRIED = replace(JANE, name="Roe^Jane")
HYBRID: dict[str, Any] = {**study(9), "frame_of_reference_uid": "1.2.9.9"}
FLAIR: dict[str, Any] = {"description": "t2_flair_sag"}
SHORT_OF_SOURCE: dict[str, Any] = {"source_count": 192}
SITES_CHOICE = ChoiceSettings(calling_ae="MR1", modality="MR", description="flair", take="first")
NEVER_MPRAGE = ChoiceSettings(modality="MR", description="mprage", take="never")

SITUATIONS = [
    # who it is
    Situation("one MR and one PET", [mr(), pet()], ["MR1 + PET1 ready, 0 days apart"]),
    Situation("an MR alone", [mr()], ["MR1 unpaired: no PET of this patient"]),
    Situation("a PET alone", [pet()], ["PET1 unpaired: no MR of this patient"]),
    Situation(
        "the same ID of another issuer",
        [mr(patient=ELSEWHERE), pet()],
        [
            "MR1 unpaired: no PET fits: IssuerOfPatientID differs",
            "PET1 unpaired: no MR fits: IssuerOfPatientID differs",
        ],
    ),
    Situation(
        "an issuer on one side only",
        [mr(patient=NOWHERE), pet()],
        [
            "MR1 unpaired: no PET fits: IssuerOfPatientID on one side only, pairing.is_single_issuer is false",
            "PET1 unpaired: no MR fits: IssuerOfPatientID on one side only, pairing.is_single_issuer is false",
        ],
    ),
    Situation(
        "an issuer on one side only, at a site with one",
        [mr(patient=NOWHERE), pet()],
        ["MR1 + PET1 ready, 0 days apart"],
        settings=PairingSettings(is_single_issuer=True),
    ),
    Situation(
        "an issuer on neither side", [mr(patient=NOWHERE), pet(patient=NOWHERE)], ["MR1 + PET1 ready, 0 days apart"]
    ),
    Situation(
        "an ID with spaces around it",
        [mr(patient=replace(JANE, patient_id=" 4711 ")), pet()],
        ["MR1 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "a placeholder ID on both",
        [mr(patient=UNKNOWN), pet(patient=UNKNOWN)],
        [
            "MR1 unpaired: no PET fits: PatientID is empty or a placeholder",
            "PET1 unpaired: no MR fits: PatientID is empty or a placeholder",
        ],
    ),
    Situation(
        "an ID of zeros on both",
        [mr(patient=ZEROS), pet(patient=ZEROS)],
        [
            "MR1 unpaired: no PET fits: PatientID is empty or a placeholder",
            "PET1 unpaired: no MR fits: PatientID is empty or a placeholder",
        ],
    ),
    Situation(
        "twins of a name and birth date, with IDs of their own",
        [mr(patient=TWIN), pet()],
        ["MR1 unpaired: no PET fits: PatientID differs", "PET1 unpaired: no MR fits: PatientID differs"],
    ),
    Situation(
        "twins under one ID, whose given names alone differ",
        [mr(patient=replace(TWIN, patient_id="4711")), pet()],
        ["MR1 + PET1 held: PatientName differs in the given name alone, as twins' names do"],
    ),
    Situation(
        "another sex", [mr(patient=MAN), pet()], ["MR1 + PET1 held: PatientSex differs between the MR and the PET"]
    ),
    Situation(
        "another birth date",
        [mr(patient=OLDER), pet()],
        ["MR1 + PET1 held: PatientBirthDate differs between the MR and the PET"],
    ),
    Situation(
        "another sex and birth date",
        [mr(patient=replace(MAN, birth_date="19600102")), pet()],
        [
            "MR1 + PET1 held: PatientBirthDate differs between the MR and the PET; "
            "PatientSex differs between the MR and the PET"
        ],
    ),
    Situation("another name, the same birth date", [mr(patient=MARRIED), pet()], ["MR1 + PET1 ready, 0 days apart"]),
    Situation(
        "another name, no birth date",
        [mr(patient=NAMELESS_DATE), pet()],
        ["MR1 + PET1 held: PatientName differs and a PatientBirthDate is missing"],
    ),
    Situation(
        "another name, a birth date that forms fill in",
        [mr(patient=replace(MARRIED, birth_date="19000101")), pet(patient=replace(JANE, birth_date="19000101"))],
        ["MR1 + PET1 held: PatientName differs and a PatientBirthDate is missing"],
    ),
    Situation(
        "a birth date, and one that forms fill in",
        [mr(patient=replace(JANE, birth_date="19000101")), pet()],
        ["MR1 + PET1 held: PatientBirthDate differs between the MR and the PET"],
    ),
    Situation(
        "no birth date and no sex on one side",
        [mr(patient=replace(JANE, birth_date="", sex="")), pet()],
        ["MR1 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "two people under one ID: the consistent prior, not today's other person",
        [mr(1, patient=MAN), mr(2, **study(8, "20260201")), pet()],
        ["MR1 unpaired: another series was preferred: no conflict of identity", "MR2 + PET1 ready, 28 days apart"],
    ),
    # how far apart
    Situation("90 days apart", [mr(**study(8, "20251201")), pet()], ["MR1 + PET1 ready, 90 days apart"]),
    Situation(
        "91 days apart",
        [mr(**study(8, "20251130")), pet()],
        [
            "MR1 unpaired: no PET fits: 91 days from the PET, at most 90 allowed",
            "PET1 unpaired: no MR fits: 91 days from the PET, at most 90 allowed",
        ],
    ),
    Situation(
        "the day before, where only the same day is allowed",
        [mr(**study(8, "20260228")), pet()],
        [
            "MR1 unpaired: no PET fits: 1 day from the PET, at most 0 allowed",
            "PET1 unpaired: no MR fits: 1 day from the PET, at most 0 allowed",
        ],
        settings=PairingSettings(window_days=0),
    ),
    Situation("the MR after the PET", [mr(**study(8, "20260310")), pet()], ["MR1 + PET1 ready, 9 days apart"]),
    Situation(
        "no study date",
        [mr(**study(8, "")), pet()],
        ["MR1 + PET1 held: a StudyDate is missing: the days between MR and PET are not known"],
    ),
    Situation(
        "no study date in one study", [mr(**study(8, "")), pet(**study(8, ""))], ["MR1 + PET1 ready, days not known"]
    ),
    Situation(
        "the nearest of two priors",
        [mr(1, **study(8, "20260101")), mr(2, **study(9, "20260220")), pet()],
        ["MR1 unpaired: another series was preferred: nearest day", "MR2 + PET1 ready, 9 days apart"],
    ),
    Situation(
        "the same day before a better prior",
        [mr(1, **study(8, "20260228")), mr(2, description="t2", summary={"MRAcquisitionType": "2D"}), pet()],
        ["MR1 unpaired: another series was preferred: nearest day", "MR2 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "a head some days before today's spine",
        [mr(1, **study(8, "20260228")), mr(2, summary={"BodyPartExamined": "LSPINE"}), pet()],
        ["MR1 + PET1 ready, 1 day apart", "MR2 unpaired: another series was preferred: no other part of the body"],
    ),
    Situation(
        "an MR under the name of the last patient's body part",
        [mr(summary={"BodyPartExamined": "knee"}), pet()],
        ["MR1 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "a map of attenuation, called a PET",
        [mr(), pet(summary={"CountsSource": "TRANSMISSION"})],
        [
            "MR1 unpaired: no PET of this patient",
            "PET1 refused: a map of attenuation, CountsSource TRANSMISSION",
        ],
    ),
    Situation(
        "an older prior before a newer localizer",
        [mr(1, **study(8, "20260201")), mr(2, description="localizer"), pet()],
        ["MR1 + PET1 ready, 28 days apart", "MR2 refused: its description names a localizer"],
    ),
    Situation(
        "the same accession number breaks a tie of days",
        [mr(1, **study(8, accession="A1")), mr(2, **study(9, accession="A2")), pet(**study(7, accession="A2"))],
        ["MR1 unpaired: another series was preferred: same accession number", "MR2 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "the same study breaks a tie of days",
        [mr(1, **study(8, accession="A1")), mr(2, **study(9)), pet(**study(9))],
        ["MR1 unpaired: another series was preferred: same study", "MR2 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "the nearest hour breaks a tie of equal series",
        [mr(1, **study(8, time="080000")), mr(2, **study(9, time="120000")), pet()],
        ["MR1 unpaired: another series was preferred: nearest in time", "MR2 + PET1 ready, 0 days apart"],
    ),
    # a hybrid scanner
    Situation("a hybrid scanner's MR and PET", [mr(**HYBRID), pet(**HYBRID)], ["MR1 + PET1 ready, 0 days apart"]),
    Situation(
        "a hybrid scanner's MR before another scanner's of the day",
        [mr(1), mr(2, **HYBRID), pet(**HYBRID)],
        ["MR1 unpaired: another series was preferred: same frame of reference", "MR2 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "a hybrid scanner's T2 before another scanner's T1",
        [mr(1), mr(2, **HYBRID, **FLAIR), pet(**HYBRID)],
        ["MR1 unpaired: another series was preferred: same frame of reference", "MR2 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "the best of a hybrid scanner's MRs",
        [mr(1, **HYBRID, **FLAIR), mr(2, **HYBRID), pet(**HYBRID)],
        ["MR1 unpaired: another series was preferred: T1 weighting", "MR2 + PET1 ready, 0 days apart"],
    ),
    # which MR
    Situation(
        "the T1 of a study with a FLAIR",
        [mr(1, **FLAIR), mr(2), pet()],
        ["MR1 unpaired: another series was preferred: T1 weighting", "MR2 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "before contrast rather than after",
        [mr(1, summary={"ContrastBolusAgent": "Gd"}), mr(2), pet()],
        ["MR1 unpaired: another series was preferred: no contrast agent", "MR2 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "after contrast where there is nothing else",
        [mr(summary={"ContrastBolusAgent": "Gd"}), pet()],
        ["MR1 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "the whole head rather than a slab",
        [mr(1, summary={"Rows": 256, "Columns": 120}), mr(2), pet()],
        ["MR1 unpaired: another series was preferred: whole head", "MR2 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "diffusion, phase and an MPR besides",
        [
            mr(1, description="ep2d_diff"),
            mr(2, summary={"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
            mr(3, summary={"ImageType": ["DERIVED", "SECONDARY", "MPR"]}),
            mr(4),
            pet(),
        ],
        [
            "MR1 refused: its description names diffusion, perfusion or functional imaging",
            "MR2 refused: a phase image, ImageType P",
            "MR3 refused: a reformat, ImageType MPR",
            "MR4 + PET1 ready, 0 days apart",
        ],
    ),
    Situation(
        "equal series: the lowest UID",
        [mr(2), mr(1), pet()],
        ["MR1 + PET1 ready, 0 days apart", "MR2 unpaired: another series was preferred: lowest SeriesInstanceUID"],
    ),
    Situation(
        "what the site takes first",
        [mr(1, **FLAIR), mr(2), pet()],
        ["MR1 + PET1 ready, 0 days apart", "MR2 unpaired: another series was preferred: chosen by pairing.choices"],
        settings=PairingSettings(choices=(SITES_CHOICE,)),
    ),
    Situation(
        "what the site takes first, from another sender",
        [mr(1, **FLAIR, calling_ae="MR2"), mr(2), pet()],
        ["MR1 unpaired: another series was preferred: T1 weighting", "MR2 + PET1 ready, 0 days apart"],
        settings=PairingSettings(choices=(SITES_CHOICE,)),
    ),
    Situation(
        "what the site takes first, though a rule refuses it",
        [mr(1, description="flair epi"), mr(2), pet()],
        ["MR1 + PET1 ready, 0 days apart", "MR2 unpaired: another series was preferred: chosen by pairing.choices"],
        settings=PairingSettings(choices=(SITES_CHOICE,)),
    ),
    Situation(
        "what the site never takes",
        [mr(1), mr(2, **FLAIR), pet()],
        ["MR1 refused: pairing.choices: never 'mprage'", "MR2 + PET1 ready, 0 days apart"],
        settings=PairingSettings(choices=(NEVER_MPRAGE,)),
    ),
    # which PET
    Situation(
        "the corrected PET of a study",
        [mr(), pet(1, summary={"CorrectedImage": ["DECY"]}), pet(2)],
        ["MR1 + PET2 ready, 0 days apart", "PET1 unpaired: another series was preferred: attenuation corrected"],
    ),
    Situation(
        "the uncorrected PET where there is nothing else",
        [mr(), pet(summary={"CorrectedImage": ["DECY"]})],
        ["MR1 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "the brain rather than the whole body",
        [mr(), pet(1, summary={"SeriesType": ["WHOLE BODY", "IMAGE"]}, instance_count=300), pet(2)],
        ["MR1 + PET2 ready, 0 days apart", "PET1 unpaired: another series was preferred: static acquisition"],
    ),
    Situation(
        "a MIP of the PET besides",
        [mr(), pet(1, summary={"ImageType": ["DERIVED", "MIP"]}), pet(2)],
        ["MR1 + PET2 ready, 0 days apart", "PET1 refused: a projection, ImageType MIP"],
    ),
    Situation(
        "a PET that was registered already",
        [mr(), pet(1, summary={"ImageType": ["DERIVED", "PRIMARY", "RESAMPLED"]})],
        [
            "MR1 unpaired: no PET of this patient",
            "PET1 refused: registered to another series already, ImageType RESAMPLED",
        ],
    ),
    Situation(
        "a gated PET only",
        [mr(), pet(summary={"SeriesType": ["GATED", "IMAGE"]})],
        ["MR1 unpaired: no PET of this patient", "PET1 refused: gated, SeriesType GATED"],
    ),
    Situation(
        "a dynamic PET beside the static one",
        [mr(), pet(1, summary={"NumberOfTimeSlices": 12}), pet(2)],
        [
            "MR1 + PET2 ready, 0 days apart",
            "PET1 refused: dynamic and pairing.dynamic_pet is refuse, 12 time slices where 1 is needed",
        ],
    ),
    Situation(
        "a dynamic PET beside the static one, where a mean may be taken",
        [mr(), pet(1, summary={"NumberOfTimeSlices": 12}, instance_count=1000), pet(2)],
        ["MR1 + PET2 ready, 0 days apart", "PET1 unpaired: another series was preferred: static acquisition"],
        settings=PairingSettings(dynamic_pet="mean"),
    ),
    Situation(
        "a dynamic PET only, where a mean may be taken",
        [mr(), pet(summary={"SeriesType": ["DYNAMIC", "IMAGE"], "NumberOfTimeSlices": 12}, instance_count=1000)],
        ["MR1 + PET1 ready, 0 days apart"],
        settings=PairingSettings(dynamic_pet="mean"),
    ),
    Situation(
        "a gated PET only, where a mean may be taken",
        [mr(), pet(summary={"SeriesType": ["GATED", "IMAGE"]})],
        [
            "MR1 unpaired: no PET of this patient",
            "PET1 refused: gated and nothing says how long each gate was counted, SeriesType GATED",
        ],
        settings=PairingSettings(dynamic_pet="mean"),
    ),
    Situation(
        "two PET studies, each with its nearest MR",
        [mr(1, **study(8, "20260101")), mr(2), pet(1, **study(7, "20260102")), pet(2)],
        ["MR1 + PET1 ready, 1 day apart", "MR2 + PET2 ready, 0 days apart"],
    ),
    Situation(
        "one MR for two PET studies",
        [mr(), pet(1), pet(2, **study(7, "20260302"))],
        ["MR1 + PET1 ready, 0 days apart", "MR1 + PET2 ready, 1 day apart"],
    ),
    # how much of it came
    Situation(
        "fewer slices than the PET counts",
        [mr(), pet(instance_count=80)],
        ["MR1 + PET1 held: the PET counts 89 instances itself, 80 arrived"],
    ),
    Situation("more slices than the PET counts", [mr(), pet(instance_count=90)], ["MR1 + PET1 ready, 0 days apart"]),
    Situation(
        "fewer slices than the source counts",
        [mr(**SHORT_OF_SOURCE), pet()],
        ["MR1 + PET1 held: the source counts 192 instances of the MR, 176 arrived"],
    ),
    Situation(
        "late slices still come",
        [mr(state="receiving"), pet()],
        [
            "MR1 complete: waits for a series of this patient that is still received",
            "PET1 complete: waits for a series of this patient that is still received",
        ],
    ),
    Situation(
        "late slices of a localizer still come",
        [mr(1), mr(2, state="receiving", description="localizer"), pet()],
        ["MR1 + PET1 ready, 0 days apart", "MR2 refused: its description names a localizer"],
    ),
    Situation(
        "a series of one slice",
        [mr(), pet(instance_count=1)],
        ["MR1 unpaired: no PET of this patient", "PET1 refused: 1 slices, at least 8 needed"],
    ),
    # corrections
    Situation(
        "an ID that was corrected at the source and sent again",
        [mr(), pet(1, patient=replace(JANE, patient_id="4712")), pet(2, **study(3))],
        ["MR1 + PET2 ready, 0 days apart", "PET1 unpaired: no MR fits: PatientID differs"],
    ),
    Situation(
        "a birth date that was corrected at the source and sent again",
        [mr(1, patient=OLDER), mr(2, **study(3)), pet()],
        ["MR1 unpaired: another series was preferred: no conflict of identity", "MR2 + PET1 ready, 0 days apart"],
    ),
    Situation(
        "slices of two people in one series",
        [mr(1, state="refused", reason="its instances name more than one patient"), pet()],
        ["MR1 refused: its instances name more than one patient", "PET1 unpaired: no MR of this patient"],
    ),
    # what a person asks for
    Situation(
        "a person asks for the farther prior",
        [mr(1), mr(2, **study(8, "20260101")), pet()],
        [
            "MR1 unpaired: another series was preferred: requested by a person",
            "MR2 + PET1 ready: requested by a person, 59 days apart",
        ],
        requests={201: 102},
    ),
    Situation(
        "a person asks beyond the window",
        [mr(**study(8, "20240101")), pet()],
        ["MR1 + PET1 ready: requested by a person, 790 days apart"],
        requests={201: 101},
    ),
    Situation(
        "a person asks for a localizer",
        [mr(1), mr(2, description="localizer"), pet()],
        [
            "MR1 unpaired: another series was preferred: requested by a person",
            "MR2 + PET1 ready: requested by a person, 0 days apart",
        ],
        requests={201: 102},
    ),
    Situation(
        "a person asks across two IDs",
        [mr(patient=TWIN), pet()],
        ["MR1 + PET1 held: PatientID differs"],
        requests={201: 101},
    ),
    Situation(
        "a person asks for the uncorrected PET",
        [mr(), pet(1, summary={"CorrectedImage": ["DECY"]}), pet(2)],
        [
            "MR1 + PET1 ready: requested by a person, 0 days apart",
            "PET2 unpaired: another series was preferred: requested by a person",
        ],
        requests={201: 101},
    ),
    Situation(
        "a person asked for a series to which slices of another person came later",
        [mr(1, state="refused", reason=MIXED_PATIENTS), mr(2, **study(8, "20260101")), pet()],
        [
            "MR1 refused: its instances name more than one patient, or one patient in different ways",
            "MR2 + PET1 ready, 59 days apart",
        ],
        requests={201: 101},
    ),
    Situation(
        "a CT",
        [mr(), pet(modality="CT")],
        ["CT1 refused: modality CT, MR or PT needed", "MR1 unpaired: no PET of this patient"],
    ),
]


def _name(row: SeriesRow) -> str:
    return f"{'PET' if row.modality == 'PT' else row.modality}{row.series_uid[-1]}"


def _say(decision: PatientDecision) -> list[str]:
    """Say every decision in a line: `MR1 + PET1 ready, 0 days apart`."""
    pairs = [f"{_name(p.fixed)} + {_name(p.moving)} {p.state}: {p.reason}" for p in decision.pairs]
    others = [f"{_name(s.series)} {s.state}: {s.reason}" for s in decision.series if s.state != "paired"]
    return sorted(line.replace(": one patient by PatientID and issuer,", ",") for line in (*pairs, *others))


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_what_is_decided_and_why(situation: Situation) -> None:
    assert _say(situation.decide(situation.series)) == situation.decisions


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
@given(order=st.randoms())
def test_the_order_of_arrival_changes_nothing(situation: Situation, order: Random) -> None:
    shuffled = list(situation.series)
    order.shuffle(shuffled)
    later = [replace(one, row=replace(one.row, first_received_at=float(n))) for n, one in enumerate(shuffled)]

    assert _plain(situation.decide(later)) == _plain(situation.decide(situation.series))


def _plain(decision: PatientDecision) -> object:
    return (
        sorted((p.fixed.id, p.moving.id, p.state, p.reason, str(p.explanation)) for p in decision.pairs),
        sorted((s.series.id, s.state, s.reason, s.wants) for s in decision.series),
    )


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_no_decision_holds_an_identity(situation: Situation) -> None:
    decision = situation.decide(situation.series)
    told = str([(pair.reason, pair.explanation) for pair in decision.pairs]) + str([s.reason for s in decision.series])

    assert not any(value in told for value in ("4711", "4712", "Doe", "Roe", "Jane", "Joan", "19700102", "19600102"))
