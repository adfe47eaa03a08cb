"""A person's word on pairs and jobs, on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest

from dicomnode.database.engine import Database
from dicomnode.database.jobs import Job, JobClaim, claim_job, fetch_job, fetch_latest_job, move_claimed_job
from dicomnode.database.outbox import Due, add_outbox_rows, claim_outbox, fetch_outbox, record_sent
from dicomnode.database.pairs import Pair, fetch_pair, fetch_pairs
from dicomnode.errors import StateError
from dicomnode.pairing.decisions import accept_pair, reject_pair, request_pair, retry_job
from dicomnode.pairing.service import step
from dicomnode.settings import DestinationSettings, PairingSettings
from tests.rows import (
    MR,
    PET,
    Sent,
    add_finished_job,
    add_ready_pair,
    add_waiting_job,
    grown,
    receive,
    receive_within,
    series_state,
    settings_of,
)

DESTINATIONS = (DestinationSettings(peer="pacs"), DestinationSettings(peer="archive", objects=("pt",)))
SETTINGS = settings_of(Path("/unused"), "pacs", "archive").model_copy(
    update={
        "destinations": DESTINATIONS,
        "pairing": PairingSettings(series_quiet_period_s=20.0, study_quiet_period_s=60.0),
    }
)
FAR = replace(MR, study=7, study_date="20240301")
OTHER_PERSON = replace(PET.patient, patient_id="4712")


def _job(database: Database, job_id: int) -> Job:
    with database.read() as connection:
        return fetch_job(connection, job_id)


def _pair_state(database: Database, pair_id: int) -> str:
    with database.read() as connection:
        return fetch_pair(connection, pair_id).state


def _owed(database: Database) -> int:
    with database.read() as connection:
        return len(fetch_outbox(connection))


def test_an_accepted_held_pair_gets_its_job(database: Database) -> None:
    pair_id = add_ready_pair(database, state="held")

    accept_pair(database, pair_id, 30.0, SETTINGS)

    with database.read() as connection:
        job = fetch_latest_job(connection, pair_id)
    assert job is not None
    assert (job.state, _pair_state(database, pair_id)) == ("waiting", "ready")


def test_a_rejected_held_pair_never_runs(database: Database) -> None:
    pair_id = add_ready_pair(database, state="held")

    reject_pair(database, pair_id, 30.0)

    assert _pair_state(database, pair_id) == "rejected"
    assert claim_job(database, 99.0, lease_s=60.0) is None
    with pytest.raises(StateError, match="it is rejected and it has no job"):
        accept_pair(database, pair_id, 31.0, SETTINGS)


def test_nothing_of_a_job_in_review_is_owed_until_it_is_accepted(database: Database) -> None:
    job_id, _ = add_finished_job(database, ("pt", "pt", "rgb", "reg"), state="review")
    assert _owed(database) == 0

    accept_pair(database, _job(database, job_id).pair_id, 30.0, SETTINGS)

    job = _job(database, job_id)
    assert (job.state, job.decision, job.finished_at) == ("done", "accepted", 30.0)
    with database.read() as connection:
        owed = [(row.destination, row.kind) for row in fetch_outbox(connection)]
    assert owed == [
        ("archive", "pt"),
        ("archive", "pt"),
        ("pacs", "pt"),
        ("pacs", "pt"),
        ("pacs", "rgb"),
        ("pacs", "reg"),
    ]


def test_what_is_in_review_is_not_accepted_once_its_series_holds_another_patient_too(database: Database) -> None:
    job_id, _ = add_finished_job(database, ("pt",), state="review")
    pair_id = _job(database, job_id).pair_id
    receive(database, grown(replace(MR, study=100, patient=OTHER_PERSON), 11), now=25.0, first=11)

    with pytest.raises(StateError, match="slices came after its registration was made"):
        accept_pair(database, pair_id, 30.0, SETTINGS)

    assert (_job(database, job_id).state, _owed(database)) == ("review", 0)
    reject_pair(database, pair_id, 31.0)
    assert _pair_state(database, pair_id) == "rejected"


def test_what_is_in_review_is_not_accepted_while_another_patients_slice_joins_its_series(database: Database) -> None:
    job_id, _ = add_finished_job(database, ("pt",), state="review")
    other = grown(replace(MR, study=100, patient=OTHER_PERSON), 11)
    with ThreadPoolExecutor(1) as threads:
        with database.write() as connection:
            receive_within(connection, other, now=25.0, first=11)
            accepted = threads.submit(accept_pair, database, _job(database, job_id).pair_id, 30.0, SETTINGS)
            assert wait([accepted], timeout=0.3).not_done  # it waits for what is under way
        with pytest.raises(StateError, match="slices came after its registration was made"):
            accepted.result(timeout=30.0)

    assert (_job(database, job_id).state, _owed(database)) == ("review", 0)


def test_nothing_of_a_job_in_review_is_owed_once_it_is_rejected(database: Database) -> None:
    job_id, _ = add_finished_job(database, ("pt", "rgb", "reg"), state="review")
    pair_id = _job(database, job_id).pair_id

    reject_pair(database, pair_id, 30.0)

    assert (_job(database, job_id).state, _job(database, job_id).decision) == ("done", "rejected")
    assert _pair_state(database, pair_id) == "rejected"
    with pytest.raises(StateError):
        accept_pair(database, pair_id, 31.0, SETTINGS)
    assert _owed(database) == 0


def test_what_was_to_be_sent_before_anybody_looked_is_given_up_once_it_is_rejected(database: Database) -> None:
    job_id, output_ids = add_finished_job(database, ("pt", "rgb", "reg"), state="review")
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=25.0)
    sent, under_way, *_ = claim_outbox(database, Due("pacs", 26.0, 60.0, 3600.0), 2)
    with database.write() as connection:
        record_sent(connection, sent, 27.0)

    reject_pair(database, _job(database, job_id).pair_id, 30.0)

    with database.read() as connection:
        states = [(row.state, row.reason) for row in fetch_outbox(connection)]
    assert states == [("sent", ""), ("dead", "rejected by a person"), ("dead", "rejected by a person")]
    with database.write() as connection:
        record_sent(connection, under_way, 31.0)  # it went out while the person decided
    with database.read() as connection:
        arrived = next(row for row in fetch_outbox(connection) if row.id == under_way.id)
    assert (arrived.state, arrived.reason) == ("sent", "rejected by a person")
    assert claim_outbox(database, Due("pacs", 99.0, 60.0, 3600.0), 9) == []


@pytest.mark.parametrize(
    "decide", [lambda d, p: accept_pair(d, p, 30.0, SETTINGS), lambda d, p: reject_pair(d, p, 30.0)]
)
def test_a_pair_that_waits_for_nobody_is_left_alone(database: Database, decide: object) -> None:
    job_id = add_waiting_job(database)
    before = _job(database, job_id)
    assert callable(decide)

    with pytest.raises(
        StateError, match="it is ready and its job is waiting; a held pair or a job in review is needed"
    ):
        decide(database, before.pair_id)

    assert _job(database, job_id) == before


def test_a_failed_job_is_tried_again_from_the_start(database: Database) -> None:
    add_waiting_job(database)
    job = claim_job(database, 20.0, lease_s=60.0)
    assert job is not None
    with database.write() as connection:
        move_claimed_job(connection, JobClaim(job.id, job.token), "failed", reason="no overlap", verdict="reject")

    retry_job(database, job.id, 30.0)

    again = _job(database, job.id)
    assert (again.state, again.attempts, again.reason, again.verdict) == ("waiting", 0, "", "")
    with pytest.raises(StateError, match="it is waiting, failed is needed"):
        retry_job(database, job.id, 31.0)


def _request(database: Database, fixed: Sent, moving: Sent, now: float) -> Pair:
    return request_pair(database, (fixed.series_uid, moving.series_uid), SETTINGS.pairing, now)


def _pairs(database: Database) -> list[Pair]:
    with database.read() as connection:
        return fetch_pairs(connection)


def _receive_all(database: Database, *series: Sent) -> None:
    for sent in series:
        receive(database, sent, now=100.0)
    step(database, SETTINGS, now=160.0)


def test_a_request_goes_beyond_the_window_and_gets_a_job(database: Database) -> None:
    _receive_all(database, FAR, PET)
    assert _pairs(database) == []

    pair = _request(database, FAR, PET, 200.0)

    assert (pair.state, pair.is_requested, pair.reason) == ("ready", True, "requested by a person, 730 days apart")
    assert pair.explanation["fixed"][0]["series_uid"] == FAR.series_uid
    with database.read() as connection:
        assert fetch_latest_job(connection, pair.id) is not None
    assert series_state(database, PET) == ("paired", "requested by a person")


def test_a_request_takes_what_the_rules_refuse(database: Database) -> None:
    scout = replace(MR, description="scout")
    _receive_all(database, scout, PET)
    assert series_state(database, scout)[0] == "refused"

    assert _request(database, scout, PET, 200.0).state == "ready"
    assert series_state(database, scout)[0] == "paired"


def test_a_request_for_two_ids_is_held_with_how_they_agree(database: Database) -> None:
    stranger = replace(PET, patient=OTHER_PERSON)
    _receive_all(database, MR, stranger)

    pair = _request(database, MR, stranger, 200.0)

    assert (pair.state, pair.reason) == ("held", "PatientID differs")
    assert pair.explanation["identity"]["PatientID"] == "differs"
    assert pair.explanation["identity"]["PatientBirthDate"] == "equal"
    accept_pair(database, pair.id, 201.0, SETTINGS)
    assert _pair_state(database, pair.id) == "ready"


def test_a_request_stands_against_the_rules_until_it_is_rejected(database: Database) -> None:
    _receive_all(database, FAR, MR, PET)
    assert [pair.fixed_series_uid for pair in _pairs(database)] == [MR.series_uid]
    _request(database, FAR, PET, 200.0)

    receive(database, grown(PET, 12), now=300.0, first=11)
    step(database, SETTINGS, now=400.0)

    assert [pair.fixed_series_uid for pair in _pairs(database)] == [MR.series_uid, FAR.series_uid, FAR.series_uid]
    assert [pair.is_requested for pair in _pairs(database)] == [False, True, True]


def test_after_a_request_was_rejected_the_rules_decide_again(database: Database) -> None:
    other_sex = replace(FAR, patient=replace(FAR.patient, sex="M"))
    _receive_all(database, other_sex, MR, PET)
    reject_pair(database, _request(database, other_sex, PET, 200.0).id, 201.0)

    receive(database, grown(PET, 12), now=300.0, first=11)
    step(database, SETTINGS, now=400.0)

    assert [pair.fixed_series_uid for pair in _pairs(database)] == [MR.series_uid, other_sex.series_uid, MR.series_uid]


def test_a_request_across_two_ids_follows_late_slices(database: Database) -> None:
    stranger = replace(PET, patient=OTHER_PERSON)
    _receive_all(database, MR, stranger)
    first = _request(database, MR, stranger, 200.0)

    receive(database, grown(stranger, 12), now=300.0, first=11)
    step(database, SETTINGS, now=400.0)

    assert [(pair.id == first.id, pair.state) for pair in _pairs(database)] == [(True, "rejected"), (False, "held")]


@pytest.mark.parametrize(
    ("fixed", "moving", "message"),
    [
        (PET, MR, "its modality is PT, MR is needed"),
        (replace(MR, number=9), PET, "none received with this SeriesInstanceUID"),
        (MR, replace(PET, study=9), "it is still being received; ask again when it is complete"),
    ],
)
def test_a_request_that_cannot_be_met_changes_nothing(
    database: Database, fixed: Sent, moving: Sent, message: str
) -> None:
    _receive_all(database, FAR, MR, PET)
    receive(database, replace(PET, study=9), now=200.0)

    with pytest.raises(StateError, match=message):
        _request(database, fixed, moving, 201.0)

    assert len(_pairs(database)) == 1


def test_a_request_for_what_is_paired_already_names_the_pair(database: Database) -> None:
    _receive_all(database, MR, PET)

    with pytest.raises(StateError, match="pair 1: it has the same instances already, and is ready"):
        _request(database, MR, PET, 200.0)
