"""`dicomnode pairs explain|request` and what `series show` tells of a series' past: rows as the node writes them.

Flow: cli/pairs, cli/listings > [test_pairs]
Never: a row the node could not have written (tests/rows).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dicomnode.database.engine import Database
from dicomnode.database.index import Arrival, StoredFile, open_association, record_instance
from dicomnode.database.jobs import fetch_outputs
from dicomnode.database.outbox import Due, add_outbox_rows, claim_outbox, record_sent
from dicomnode.database.priors import FoundSeries, record_priors
from dicomnode.database.queries import add_query, claim_query
from dicomnode.database.series import fetch_series
from dicomnode.database.store import make_file_name
from dicomnode.database.turns import Turn
from dicomnode.pairing.service import step
from dicomnode.settings import PairingSettings, Settings
from tests.dicomnode.cli.conftest import Run
from tests.rows import EXPLICIT_LITTLE_ENDIAN, MR, NODE, PATIENT, PET, Sent, add_finished_job, receive

SETTINGS = Settings(pairing=PairingSettings(series_quiet_period_s=20.0, study_quiet_period_s=60.0))
IDENTITY = ("4711", "Doe", "19700102")
T1 = replace(MR, description="t1_mprage")
FLAIR = replace(MR, number=3, description="t2_flair")
SCOUT = replace(MR, number=4, description="scout")
NOT_CORRECTED = replace(PET, number=5, description="NAC")
FAR = replace(MR, study=7, study_date="20240301")


def _receive_all(database: Database, *series: Sent) -> None:
    for sent in series:
        receive(database, sent, now=100.0)
    step(database, SETTINGS, now=200.0)


def test_a_pair_is_explained_candidate_by_candidate(run: Run, config: Path, database: Database) -> None:
    other_sex = replace(PET, patient=replace(PATIENT, sex="M"), description="FDG \x1b[31m")
    _receive_all(database, T1, FLAIR, SCOUT, other_sex, replace(NOT_CORRECTED, patient=other_sex.patient))

    explained = run("pairs", "explain", 1, "--config", config, "--json").json

    assert [(one["role"], one["outcome"], one["rule"], one["series_uid"]) for one in explained["candidates"]] == [
        ("MR", "won", "best by every rule", T1.series_uid),
        ("MR", "lost", "T1 weighting", FLAIR.series_uid),
        ("MR", "refused", "its description names a localizer", SCOUT.series_uid),
        ("PET", "won", "best by every rule", PET.series_uid),
        ("PET", "lost", "attenuation corrected", NOT_CORRECTED.series_uid),
    ]
    assert (explained["state"], explained["reason"]) == ("held", "PatientSex differs between the MR and the PET")
    assert explained["identity"] == {
        "PatientID": "equal",
        "IssuerOfPatientID": "equal",
        "PatientName": "equal",
        "PatientBirthDate": "equal",
        "PatientSex": "differs",
    }
    table = run("pairs", "explain", 1, "--config", config).out
    lines = table.splitlines()
    assert any(line.split()[:2] == ["MR", "lost"] and "T1 weighting" in line for line in lines)
    assert "PatientID equal" in table
    assert "PatientSex differs" in table
    assert "\x1b" not in table
    assert not any(secret in table + str(explained) for secret in IDENTITY)


def test_two_series_are_paired_at_a_persons_request(run: Run, config: Path, database: Database) -> None:
    _receive_all(database, FAR, PET)
    assert run("pairs", "list", "--config", config, "--json").json == []
    names = ("--fixed", FAR.series_uid, "--moving", PET.series_uid, "--config", config)

    assert run("pairs", "request", *names).out == "pair 1: ready\n"

    [pair] = run("pairs", "list", "--config", config, "--json").json
    assert (pair["fixed_series_uid"], pair["is_requested"]) == (FAR.series_uid, True)
    assert [job["pair_id"] for job in run("jobs", "list", "--config", config, "--json").json] == [1]
    again = run("pairs", "request", *names, "--json")
    assert (again.code, again.err) == (2, "dicomnode: pair 1: it has the same instances already, and is ready\n")


def test_a_request_for_two_patients_says_that_it_is_held(run: Run, config: Path, database: Database) -> None:
    _receive_all(database, MR, replace(PET, patient=replace(PATIENT, patient_id="4712")))
    names = ("--fixed", MR.series_uid, "--moving", PET.series_uid, "--config", config)

    assert run("pairs", "request", *names).out == "pair 1: held (PatientID differs)\n"


def test_a_series_shows_what_was_made_of_it_and_where_it_went(run: Run, config: Path, database: Database) -> None:
    job_id, output_ids = add_finished_job(database, ("pt", "pt"))
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    (first,) = claim_outbox(database, Due("pacs", 31.0, lease_s=60.0, wait_at_most_s=3600.0), limit=1)
    with database.write() as connection:
        record_sent(connection, first, 32.0)
        result_uid = fetch_outputs(connection, job_id)[0].series_uid
    [pair] = run("pairs", "list", "--config", config, "--json").json

    for source, other in (("fixed", "moving"), ("moving", "fixed")):
        shown = run("series", "show", pair[f"{source}_series_uid"], "--config", config, "--json").json
        assert shown["made"] == [
            {
                "pair_id": pair["id"],
                "pair_state": "ready",
                "other_series_uid": pair[f"{other}_series_uid"],
                "job_id": job_id,
                "job_state": "done",
                "verdict": "accept",
                "kind": "pt",
                "series_uid": result_uid,
                "instance_count": 2,
                "sent_to": ["pacs owed 1", "pacs sent 1"],
            }
        ]
    assert result_uid in run("series", "show", pair["fixed_series_uid"], "--config", config).out
    origin = run("series", "show", result_uid, "--config", config, "--json").json
    assert {name: origin[name] for name in ("job_id", "fixed_series_uid", "moving_series_uid")} == {
        "job_id": job_id,
        "fixed_series_uid": pair["fixed_series_uid"],
        "moving_series_uid": pair["moving_series_uid"],
    }


def test_a_series_shows_from_what_it_was_judged_complete(run: Run, config: Path, database: Database) -> None:
    _receive_all(database, replace(PET, expected_instances=10), MR)

    shown = run("series", "show", PET.series_uid, "--config", config, "--json").json

    assert (shown["state"], shown["reason"]) == ("paired", "one patient by PatientID and issuer, 0 days apart")
    assert shown["completed_by"] == "10 of 10 instances, by the PET's own count"
    assert [(made["pair_state"], made["job_state"]) for made in shown["made"]] == [("ready", "waiting")]


def test_a_series_that_is_still_received_shows_what_it_waits_for(run: Run, config: Path, database: Database) -> None:
    receive(database, MR, now=100.0, stays_open=True)

    shown = run("series", "show", MR.series_uid, "--config", config, "--json").json

    assert (shown["state"], shown["reason"]) == ("receiving", "10 instances, an association that sends it is open")


def test_an_id_that_was_corrected_at_the_source_is_seen_at_the_series(
    run: Run, config: Path, database: Database
) -> None:
    receive(database, MR, now=100.0)
    corrected = replace(MR, patient=replace(PATIENT, patient_id="4712"))
    with database.write() as connection:
        association_id = open_association(connection, node=NODE, calling_ae="PACS", address="127.0.0.1", now=200.0)
        for number in range(1, 11):
            file = StoredFile(make_file_name(), EXPLICIT_LITTLE_ENDIAN, 1000, f"{number + 500:064x}")
            record_instance(connection, corrected.instance(number), file, Arrival(association_id, "PACS", 200.0))

    shown = run("series", "show", MR.series_uid, "--config", config, "--json").json

    assert (shown["conflicts"], shown["patient"]["patient_id"]) == (10, "4711")
    assert run("series", "show", PET.series_uid, "--config", config).code == 2


def test_a_series_shows_what_was_asked_and_found(run: Run, config: Path, database: Database) -> None:
    receive(database, PET, now=100.0)
    found = FoundSeries("1.2.8", "20260201", "", "", "1.2.8.1", "MR", "t1", 176, PATIENT)
    with database.write() as connection:
        add_query(connection, "priors", fetch_series(connection, PET.series_uid).row.id, "pacs", 110.0)
    query = claim_query(database, Turn("pacs", 111.0, 60.0, 3600.0))
    assert query is not None
    with database.write() as connection:
        record_priors(connection, query, [found])

    shown = run("series", "show", PET.series_uid, "--config", config, "--json").json

    assert [(one["kind"], one["peer"], one["state"]) for one in shown["queries"]] == [("priors", "pacs", "owed")]
    assert [(one["peer"], one["series_uid"], one["instances"], one["state"]) for one in shown["priors"]] == [
        ("pacs", "1.2.8.1", 176, "found")
    ]
    assert not any(secret in str(shown["priors"]) for secret in IDENTITY)
    text = run("series", "show", PET.series_uid, "--config", config).out
    assert "1.2.8.1" in text
