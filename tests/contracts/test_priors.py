"""Rounds of pairing that ask peers: how many instances a series has, and for priors, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from dicomnode.database.engine import Database
from dicomnode.database.index import close_association
from dicomnode.database.pairs import Pair, fetch_pairs
from dicomnode.database.priors import FoundSeries, fetch_priors, record_priors
from dicomnode.database.queries import Query, claim_query, fetch_queries, finish_query, record_source_count
from dicomnode.database.series import fetch_series, note_commitment_request
from dicomnode.database.turns import Turn
from dicomnode.pairing.service import step
from dicomnode.settings import PairingSettings, PeerSettings, Settings
from tests.rows import MR, PATIENT, PET, Sent, grown, receive, series_state

PACS = PeerSettings(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, may=("store",), answers=("find", "move"))
SCANNER = PeerSettings(
    name="scanner", ae_title="SCANNER", host="127.0.0.1", port=104, may=("store",), answers=("find",)
)
PERIODS = PairingSettings(series_quiet_period_s=20.0, study_quiet_period_s=60.0)
WITH_PACS = Settings(peers=(PACS,), pairing=PERIODS)
WITH_SCANNER = Settings(peers=(SCANNER,), pairing=PERIODS)
PRIOR, LOCALIZER = replace(MR, study=7, study_date="20260201"), replace(MR, study=8, description="localizer")


def _found(sent: Sent, description: str = "t1_mprage") -> FoundSeries:
    where = (sent.study_date, sent.study_time, sent.accession_number, sent.series_uid)
    return FoundSeries(f"1.2.3.{sent.study}", *where, sent.modality, description, sent.slices, PATIENT)


def _queries(database: Database, sent: Sent) -> list[tuple[str, str, str]]:
    with database.read() as connection:
        series_id = fetch_series(connection, sent.series_uid).row.id
        return [(one.kind, one.peer, one.state) for one in fetch_queries(connection, [series_id])]


def _claim(database: Database, peer: str, now: float) -> Query:
    query = claim_query(database, Turn(peer, now, 60.0, 3600.0))
    assert query is not None
    return query


def _answer(database: Database, found: Iterable[FoundSeries], now: float) -> None:
    search = _claim(database, "pacs", now)
    with database.write() as connection:
        record_priors(connection, search, found)
        finish_query(connection, search, "done", now)


def _fetch(database: Database, sent: Sent, now: float) -> None:
    """Do what `send` does for the fetch that is owed: it must be of this series."""
    query = _claim(database, "pacs", now)
    receive(database, sent, now=now)
    with database.write() as connection:
        chosen = {one.id: one.series.row.series_uid for one in fetch_priors(connection, query.series_id)}
        assert query.prior_id is not None
        assert chosen[query.prior_id] == sent.series_uid
        finish_query(connection, query, "done", now)


def _pairs(database: Database) -> list[Pair]:
    with database.read() as connection:
        return fetch_pairs(connection)


@pytest.mark.parametrize("lonely", [PET, MR])
def test_a_series_without_a_partner_is_searched_one_once(database: Database, lonely: Sent) -> None:
    receive(database, lonely, now=100.0)

    for now in (160.0, 161.0):
        step(database, WITH_PACS, now=now)

    assert _queries(database, lonely) == [("priors", "pacs", "owed")]


def test_a_series_is_not_searched_a_partner_again_for_its_late_slices(database: Database) -> None:
    receive(database, PET, now=100.0)
    step(database, WITH_PACS, now=160.0)
    _answer(database, [], 161.0)
    receive(database, grown(PET, 12), now=200.0, first=11)

    step(database, WITH_PACS, now=300.0)

    assert series_state(database, PET)[0] == "unpaired"
    assert _queries(database, PET) == [("priors", "pacs", "done")]


def test_a_source_that_does_not_answer_is_not_asked(database: Database) -> None:
    receive(database, MR, now=100.0)

    step(database, Settings(peers=(SCANNER.model_copy(update={"answers": ()}),), pairing=PERIODS), now=110.0)

    assert _queries(database, MR) == []


def test_only_the_best_of_a_study_is_searched_a_partner(database: Database) -> None:
    flair = replace(MR, number=5, description="flair")
    for sent in (MR, flair):
        receive(database, sent, now=100.0)

    step(database, WITH_PACS, now=160.0)

    assert [len(_queries(database, sent)) for sent in (MR, flair)] == [1, 0]


@pytest.mark.parametrize(
    ("sent", "settings"),
    [
        (PET, WITH_SCANNER),
        (MR, WITH_SCANNER),
        (replace(PET, patient=replace(PATIENT, patient_id="UNKNOWN")), WITH_PACS),
        (replace(PET, slices=3), WITH_PACS),
    ],
    ids=["no peer has priors", "no peer has PETs", "a placeholder ID", "a refused series"],
)
def test_nothing_is_searched(database: Database, sent: Sent, settings: Settings) -> None:
    receive(database, sent, now=100.0)

    step(database, settings, now=160.0)

    assert [kind for kind, _, _ in _queries(database, sent) if kind != "count"] == []


def test_the_best_prior_is_fetched_and_paired_once_it_is_here(database: Database) -> None:
    receive(database, PET, now=100.0)
    step(database, WITH_PACS, now=160.0)
    _answer(database, [_found(PRIOR), _found(LOCALIZER, "localizer")], 161.0)
    step(database, WITH_PACS, now=162.0)
    _fetch(database, PRIOR, 163.0)

    step(database, WITH_PACS, now=164.0)  # complete at once: as many have come as the peer counts
    step(database, WITH_PACS, now=223.0)

    assert [pair.fixed_series_uid for pair in _pairs(database)] == [PRIOR.series_uid]
    with database.read() as connection:
        completed_by = fetch_series(connection, PRIOR.series_uid).row.completed_by
    assert completed_by == "10 of 10 instances, by the source's count"
    assert _queries(database, PET) == [("priors", "pacs", "done"), ("fetch", "pacs", "done")]


def test_a_prior_of_which_a_part_came_is_held(database: Database) -> None:
    receive(database, PET, now=100.0)
    step(database, WITH_PACS, now=160.0)
    _answer(database, [_found(PRIOR)], 161.0)
    step(database, WITH_PACS, now=162.0)
    _fetch(database, grown(PRIOR, 8), 163.0)

    step(database, WITH_PACS, now=223.0)

    assert [(pair.state, pair.reason) for pair in _pairs(database)] == [
        ("held", "the source counts 10 instances of the MR, 8 arrived")
    ]


def test_the_next_best_is_fetched_when_the_best_is_of_no_use_once_it_is_here(database: Database) -> None:
    receive(database, PET, now=100.0)
    step(database, WITH_PACS, now=160.0)
    _answer(database, [_found(PRIOR, ""), _found(LOCALIZER, "")], 161.0)  # a peer that describes nothing
    step(database, WITH_PACS, now=162.0)
    _fetch(database, LOCALIZER, 163.0)
    step(database, WITH_PACS, now=164.0)
    assert series_state(database, LOCALIZER)[0] == "refused"
    step(database, WITH_PACS, now=165.0)
    _fetch(database, PRIOR, 166.0)
    step(database, WITH_PACS, now=226.0)

    assert [pair.fixed_series_uid for pair in _pairs(database)] == [PRIOR.series_uid]


def test_a_source_s_count_ends_a_series_before_its_quiet_period(database: Database) -> None:
    receive(database, MR, now=100.0)
    step(database, WITH_SCANNER, now=109.0)
    assert _queries(database, MR) == []
    step(database, WITH_SCANNER, now=110.0)
    query = _claim(database, "scanner", 111.0)
    with database.write() as connection:
        record_source_count(connection, query.series_id, 10)
        finish_query(connection, query, "done", 111.0)

    step(database, WITH_SCANNER, now=112.0)

    assert series_state(database, MR)[0] != "receiving"
    assert _queries(database, MR) == [("count", "scanner", "done")]


def test_a_source_is_asked_again_after_the_next_silence_only(database: Database) -> None:
    receive(database, MR, now=100.0)
    for now in (110.0, 111.0):
        step(database, WITH_SCANNER, now=now)
    receive(database, grown(MR, 12), now=112.0, first=11)
    for now in (113.0, 122.0, 123.0):
        step(database, WITH_SCANNER, now=now)

    assert len(_queries(database, MR)) == 2


def test_a_storage_commitment_request_ends_a_series(database: Database) -> None:
    association_id = receive(database, MR, now=100.0, stays_open=True)
    with database.write() as connection:
        note_commitment_request(connection, [MR.instance(n).sop_instance_uid for n in range(1, 11)], 101.0)
    step(database, WITH_SCANNER, now=102.0)
    assert series_state(database, MR)[0] == "receiving"
    with database.write() as connection:
        close_association(connection, association_id, 103.0)

    step(database, WITH_SCANNER, now=104.0)

    with database.read() as connection:
        row = fetch_series(connection, MR.series_uid).row
    assert (row.state, row.completed_by) == (
        "complete",
        "10 instances, storage commitment was requested for all of them",
    )
    receive(database, grown(MR, 12), now=105.0, first=11)
    step(database, WITH_SCANNER, now=106.0)
    assert series_state(database, MR)[0] == "receiving"
