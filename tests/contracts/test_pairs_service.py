"""A round of pairing, from received rows to pairs and jobs, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dicomnode.database.engine import Database
from dicomnode.database.index import close_association
from dicomnode.database.jobs import Job, claim_job, fetch_jobs
from dicomnode.database.pairs import Pair, fetch_pairs
from dicomnode.database.series import fetch_series
from dicomnode.pairing.service import step
from dicomnode.settings import PairingSettings, Settings
from tests.rows import MR, PET, Sent, grown, receive, series_state

SETTINGS = Settings(pairing=PairingSettings(series_quiet_period_s=20.0, study_quiet_period_s=60.0))
LONG_AFTER = 10_000.0


def _pairs(database: Database) -> list[Pair]:
    with database.read() as connection:
        return fetch_pairs(connection)


def _jobs(database: Database) -> list[Job]:
    with database.read() as connection:
        return fetch_jobs(connection)


def test_a_complete_pair_gets_one_job(database: Database) -> None:
    receive(database, MR, now=100.0)
    receive(database, PET, now=100.0)

    for _ in range(3):
        step(database, SETTINGS, now=160.0)

    [pair], [job] = _pairs(database), _jobs(database)
    assert (pair.fixed_series_uid, pair.moving_series_uid, pair.state) == (MR.series_uid, PET.series_uid, "ready")
    assert (job.pair_id, job.state, job.created_at) == (pair.id, "waiting", 160.0)
    assert [series_state(database, sent)[0] for sent in (MR, PET)] == ["paired", "paired"]


def test_nothing_happens_before_the_quiet_period_or_while_an_association_is_open(database: Database) -> None:
    association_id = receive(database, MR, now=100.0, stays_open=True)
    receive(database, PET, now=100.0)

    step(database, SETTINGS, now=LONG_AFTER)
    assert series_state(database, MR)[0] == "receiving"
    with database.write() as connection:
        close_association(connection, association_id, LONG_AFTER)
    step(database, SETTINGS, now=LONG_AFTER + 19.0)
    assert _pairs(database) == []
    step(database, SETTINGS, now=LONG_AFTER + 20.0)
    assert len(_pairs(database)) == 1


def test_a_series_without_a_partner_is_paired_when_it_comes(database: Database) -> None:
    receive(database, PET, now=100.0)
    step(database, SETTINGS, now=160.0)
    assert series_state(database, PET) == ("unpaired", "no MR of this patient")

    receive(database, MR, now=500.0)
    step(database, SETTINGS, now=560.0)

    assert len(_pairs(database)) == 1
    assert series_state(database, PET)[0] == "paired"


def test_another_patients_pet_is_not_paired(database: Database) -> None:
    receive(database, MR, now=100.0)
    receive(database, replace(PET, patient=replace(PET.patient, patient_id="4712")), now=100.0)

    step(database, SETTINGS, now=160.0)

    assert _pairs(database) == []
    assert [series_state(database, sent)[0] for sent in (MR, PET)] == ["unpaired", "unpaired"]


def test_a_conflict_is_held_without_a_job(database: Database) -> None:
    receive(database, MR, now=100.0)
    receive(database, replace(PET, patient=replace(PET.patient, sex="M")), now=100.0)

    step(database, SETTINGS, now=160.0)

    assert [(pair.state, pair.reason) for pair in _pairs(database)] == [
        ("held", "PatientSex differs between the MR and the PET")
    ]
    assert _jobs(database) == []
    assert series_state(database, PET) == ("paired", "PatientSex differs between the MR and the PET")


def test_how_identities_agree_is_not_logged(database: Database) -> None:
    for sent in (MR, replace(PET, patient=replace(PET.patient, sex="M")), replace(PET, study=9, study_date="20240101")):
        receive(database, sent, now=100.0)
    stranger = replace(MR, study=10, patient=replace(MR.patient, issuer="ELSEWHERE"))
    receive(database, stranger, now=100.0)

    with capture_logs() as logs:
        step(database, SETTINGS, now=200.0)

    assert {log["event"] for log in logs} == {"pairing.series_complete", "pairing.paired", "pairing.series"}
    assert not any(word in str(logs) for word in ("Patient", "Issuer", "4711", "HOSPITAL", "ELSEWHERE", "Doe"))


def test_a_refused_series_says_why(database: Database) -> None:
    receive(database, replace(MR, slices=1), now=100.0)

    step(database, SETTINGS, now=160.0)

    assert series_state(database, MR) == ("refused", "1 slices, at least 8 needed")


def test_the_same_instances_again_make_no_new_job(database: Database) -> None:
    for now in (100.0, 300.0):
        receive(database, MR, now=now)
        receive(database, PET, now=now)
        step(database, SETTINGS, now=now + 60.0)

    assert len(_jobs(database)) == 1


@pytest.mark.parametrize("was_started", [True, False])
def test_late_slices_make_a_new_job_in_place_of_one_that_has_not_started(database: Database, was_started: bool) -> None:
    receive(database, MR, now=100.0)
    receive(database, PET, now=100.0)
    step(database, SETTINGS, now=160.0)
    if was_started:
        claim_job(database, 161.0, lease_s=60.0)

    receive(database, grown(MR, 12), now=200.0, first=11)
    assert series_state(database, MR)[0] == "receiving"
    step(database, SETTINGS, now=260.0)

    old, new = _jobs(database)
    assert (old.state, new.state) == ("running" if was_started else "done", "waiting")
    assert was_started or old.reason == f"superseded by pair {new.pair_id}: the instances of a series changed"
    assert old.pair_id != new.pair_id


def test_late_slices_of_a_held_pair_hold_the_newer_one_only(database: Database) -> None:
    receive(database, MR, now=100.0)
    other = replace(PET, patient=replace(PET.patient, sex="M"))
    receive(database, other, now=100.0)
    step(database, SETTINGS, now=160.0)

    receive(database, grown(other, 12), now=200.0, first=11)
    step(database, SETTINGS, now=260.0)

    assert [pair.state for pair in _pairs(database)] == ["rejected", "held"]


def test_slices_that_come_between_reading_and_writing_keep_a_series_open(database: Database) -> None:
    receive(database, MR, now=100.0)
    step(database, SETTINGS, now=119.0)
    receive(database, grown(MR, 12), now=119.0, first=11)

    step(database, SETTINGS, now=121.0)

    assert series_state(database, MR)[0] == "receiving"


def test_a_nearer_mr_that_comes_later_makes_a_pair_of_its_own(database: Database) -> None:
    prior = replace(MR, study=7, study_date="20260101")
    receive(database, prior, now=100.0)
    receive(database, PET, now=100.0)
    step(database, SETTINGS, now=160.0)

    receive(database, MR, now=500.0)
    step(database, SETTINGS, now=560.0)

    assert [pair.fixed_series_uid for pair in _pairs(database)] == [prior.series_uid, MR.series_uid]


def test_what_comes_first_of_a_study_is_not_taken_before_the_rest_of_it(database: Database) -> None:
    """A reconstruction is complete by its own count as soon as it is here; the corrected one may follow at once."""
    receive(database, MR, now=100.0)
    uncorrected = replace(PET, number=6, description="NAC", expected_instances=10)
    for sent, came_at in ((uncorrected, 500.0), (PET, 530.0)):
        receive(database, sent, now=came_at)
        step(database, SETTINGS, now=came_at + 1.0)
    assert _pairs(database) == []

    step(database, SETTINGS, now=590.0)

    assert [pair.moving_series_uid for pair in _pairs(database)] == [PET.series_uid]


# Two halves of an MR and of a PET, and whatever else a patient has, in the order of the standard.
ARRIVALS: Sequence[tuple[Sent, int]] = (
    (grown(MR, 5), 1),
    (MR, 6),
    (replace(MR, number=3, description="t2_flair"), 1),
    (replace(MR, number=4, description="scout", slices=3), 1),
    (replace(MR, number=5, study=3, study_date="20260201"), 1),
    (grown(PET, 5), 1),
    (PET, 6),
    (replace(PET, number=6, description="NAC"), 1),
)
_patients = count(1)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(ARRIVALS))))
def test_the_order_of_arrival_changes_nothing(database: Database, order: list[int]) -> None:
    """Each example is another patient's, so that one database does for all."""
    patient = next(_patients)

    def of_patient(sent: Sent) -> Sent:
        identity = replace(sent.patient, patient_id=f"8{patient}")
        return replace(sent, study=sent.study + 10 * patient, patient=identity)

    for second, number in enumerate(order):
        sent, first = ARRIVALS[number]
        receive(database, of_patient(sent), now=100.0 + second, first=first)
        step(database, SETTINGS, now=100.0 + second)
    step(database, SETTINGS, now=LONG_AFTER)

    states = {(sent.modality, sent.number): series_state(database, of_patient(sent)) for sent, _ in ARRIVALS}
    assert states == {
        ("MR", 1): ("paired", "one patient by PatientID and issuer, 0 days apart"),
        ("MR", 3): ("unpaired", "another series was preferred: T1 weighting"),
        ("MR", 4): ("refused", "its description names a localizer"),
        ("MR", 5): ("unpaired", "another series was preferred: nearest day"),
        ("PT", 2): ("paired", "one patient by PatientID and issuer, 0 days apart"),
        ("PT", 6): ("unpaired", "another series was preferred: attenuation corrected"),
    }


MAGNITUDE, PHASE = (
    replace(MR, summary={**MR.summary, "EchoTime": echo_ms, "ImageType": ["ORIGINAL", "PRIMARY", *kind]})
    for echo_ms, kind in ((3.0, ("M", "FFE")), (9.0, ("FFE", "PHASE MAP", "P")))
)


@pytest.mark.parametrize("is_phase_first", [False, True])
def test_a_series_of_two_kinds_of_images_is_judged_alike_whichever_comes_first(
    database: Database, is_phase_first: bool
) -> None:
    """Scanners put magnitude and phase of one acquisition in one series; reading takes the magnitude."""
    kinds = [(PHASE, 10), (MAGNITUDE, 20)] if is_phase_first else [(MAGNITUDE, 10), (PHASE, 20)]
    for kind, last in kinds:
        receive(database, replace(kind, slices=last), now=100.0, first=last - 9)
    receive(database, PET, now=100.0)
    step(database, SETTINGS, now=LONG_AFTER)

    assert series_state(database, MR) == ("paired", "one patient by PatientID and issuer, 0 days apart")
    with database.read() as connection:
        summary = fetch_series(connection, MR.series_uid).row.summary
    assert summary == {
        **MR.summary,
        "EchoTime": 3.0,
        "ImageTypes": [r"ORIGINAL\PRIMARY\FFE\PHASE MAP\P", r"ORIGINAL\PRIMARY\M\FFE"],
    }


def test_a_series_all_of_whose_images_are_refused_is_refused(database: Database) -> None:
    for kind, last in (("ADC", 10), ("TRACEW", 20)):
        sent = replace(MR, summary={**MR.summary, "ImageType": ["DERIVED", "PRIMARY", kind]}, slices=last)
        receive(database, sent, now=100.0, first=last - 9)
    step(database, SETTINGS, now=LONG_AFTER)

    assert series_state(database, MR) == ("refused", "a diffusion map, ImageType ADC")
