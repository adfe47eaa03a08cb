"""When the series of one patient are paired, and what is recorded of the decision (the table: `test_situations`)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dicomnode.pairing.rules import decide_patient
from dicomnode.settings import PairingSettings
from tests.values import JANE, mr, pet, study

SETTINGS = PairingSettings(window_days=90, is_single_issuer=False)
LONG_AFTER = 1e6


def test_nothing_is_paired_while_a_candidate_is_still_received() -> None:
    group = [mr(1, **study(8, "20260201")), mr(2, state="receiving"), pet()]

    decision = decide_patient(group, LONG_AFTER, SETTINGS)

    assert decision.pairs == ()
    assert {one.state for one in decision.series} == {"complete"}


def test_a_localizer_that_is_still_received_holds_nothing_up() -> None:
    group = [mr(1), mr(2, state="receiving", description="localizer"), pet()]

    assert len(decide_patient(group, LONG_AFTER, SETTINGS).pairs) == 1


# Before 40 s the clock was put back by more than the period since the last slice: that is not waited for.
@pytest.mark.parametrize(("now", "pairs"), [(159.9, 0), (160.0, 1), (40.0, 0), (39.9, 1)])
@pytest.mark.parametrize("late", ["MR", "PT"])
def test_each_study_is_given_its_quiet_period(late: str, now: float, pairs: int) -> None:
    times = {"MR": -100.0, "PT": -100.0, late: 100.0}
    group = [mr(last_received_at=times["MR"]), pet(last_received_at=times["PT"])]

    assert len(decide_patient(group, now, SETTINGS).pairs) == pairs


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
