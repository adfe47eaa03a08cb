"""The record of pairs behaves alike on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dicomnode.database.engine import Database
from dicomnode.database.pairs import (
    PAIR_MOVES,
    NewPair,
    Pair,
    add_pair,
    fetch_input_digest,
    fetch_pair,
    fetch_pairs,
    fetch_patient_series,
    move_pair,
    reject_superseded_pairs,
)
from dicomnode.errors import StateError
from tests.rows import MR, PET, add_ready_pair, grown, receive

OTHER_PERSON = replace(MR.patient, patient_id="4712")


def _pair(database: Database, pair_id: int) -> Pair:
    with database.read() as connection:
        return fetch_pair(connection, pair_id)


def _new(pair: Pair, digest: str) -> NewPair:
    return NewPair(pair.fixed_series_id, pair.moving_series_id, digest, "held", "", {})


def test_a_pair_names_both_series(database: Database) -> None:
    pair = _pair(database, add_ready_pair(database))

    assert (pair.fixed_series_uid, pair.moving_series_uid, pair.state) == (MR.series_uid, PET.series_uid, "ready")


def test_the_same_instances_are_paired_once(database: Database) -> None:
    pair = _pair(database, add_ready_pair(database))

    with database.write() as connection:
        assert add_pair(connection, _new(pair, pair.input_digest), now=3.0) is None
        assert add_pair(connection, _new(pair, "another"), now=3.0) is not None


def test_the_digest_follows_the_instances_of_either_series_and_nothing_else(database: Database) -> None:
    pair = _pair(database, add_ready_pair(database))

    def digest() -> str:
        with database.read() as connection:
            return fetch_input_digest(connection, pair.fixed_series_id, pair.moving_series_id)

    receive(database, MR, now=50.0)
    assert digest() == pair.input_digest
    receive(database, grown(MR, 11), now=51.0)
    with_late_mr = digest()
    receive(database, grown(PET, 11), now=52.0)
    assert len({pair.input_digest, with_late_mr, digest()}) == 3


def test_a_newer_pair_rejects_held_ones_of_the_same_series(database: Database) -> None:
    held = _pair(database, add_ready_pair(database, state="held"))
    ready = add_ready_pair(database, replace(MR, study=8), replace(PET, study=9))
    newer = _new(held, "newer")

    with database.write() as connection:
        add_pair(connection, newer, now=3.0)
        assert reject_superseded_pairs(connection, newer, "superseded") == [held.id]

    assert (_pair(database, held.id).state, _pair(database, held.id).reason) == ("rejected", "superseded")
    assert _pair(database, ready).state == "ready"


@pytest.mark.parametrize(("state", "to"), [(old, new) for old, all_ in PAIR_MOVES.items() for new in sorted(all_)])
def test_a_pair_makes_the_moves_of_the_table(database: Database, state: str, to: str) -> None:
    pair_id = add_ready_pair(database, state=state)

    with database.write() as connection:
        move_pair(connection, pair_id, to, "because")

    assert (_pair(database, pair_id).state, _pair(database, pair_id).reason) == (to, "because")


def test_a_pair_makes_no_other_move(database: Database) -> None:
    pair_id = add_ready_pair(database, state="rejected")

    with pytest.raises(StateError, match="it is rejected, held is needed"), database.write() as connection:
        move_pair(connection, pair_id, "ready", "")
    with pytest.raises(StateError, match="no pair with this number"), database.write() as connection:
        move_pair(connection, pair_id + 1, "ready", "")


def test_pairs_are_listed_by_state(database: Database) -> None:
    first = add_ready_pair(database)
    second = add_ready_pair(database, replace(MR, study=8), replace(PET, study=9), state="held")

    with database.read() as connection:
        assert [pair.id for pair in fetch_pairs(connection)] == [first, second]
        assert [pair.id for pair in fetch_pairs(connection, ["held"])] == [second]


def test_a_patients_series_are_found_by_id_whatever_the_issuer(database: Database) -> None:
    other_issuer = replace(MR, study=5, patient=replace(MR.patient, issuer="ELSEWHERE"))
    for sent in (MR, PET, other_issuer, replace(MR, study=6, patient=OTHER_PERSON)):
        receive(database, sent, now=1.0)

    with database.write() as connection:
        found = fetch_patient_series(connection, MR.patient.patient_id)

    assert [one.row.series_uid for one in found] == [MR.series_uid, PET.series_uid, other_issuer.series_uid]
