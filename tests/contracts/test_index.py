"""What the index makes of instances that arrive in every order, twice, at once, and with other content."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import reduce
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select, text

from dicomnode.database.engine import Database
from dicomnode.database.index import (
    MIXED_PATIENTS,
    MIXED_STUDIES,
    RENAMED_PATIENT,
    Arrival,
    InstanceHeader,
    PatientIdentity,
    Recorded,
    Recording,
    StoredFile,
    close_association,
    close_lost_associations,
    is_conflict,
    is_indexed,
    merge_summaries,
    open_association,
    record_instance,
)
from dicomnode.database.schema import jobs, metadata, outputs, pairs
from dicomnode.database.series import (
    SERIES_MOVES,
    fetch_identified_series,
    fetch_instance_paths,
    fetch_instance_uids,
    fetch_open_series,
    fetch_series,
    fetch_series_by_id,
    fetch_series_rows,
    set_series_state,
)
from dicomnode.database.store import Store
from dicomnode.errors import StateError
from tests.receiving import PATIENT, ROOT, make_arrival, make_file, make_header

IMPLICIT = "1.2.840.10008.1.2"
OTHER_PATIENT = replace(PATIENT, patient_id="P-18")


@pytest.fixture
def association_id(database: Database) -> int:
    return associate(database)


def associate(database: Database, node: str = "a" * 32, now: float = 90.0) -> int:
    with database.write() as connection:
        return open_association(connection, node=node, calling_ae="SCANNER", address="10.1.2.8", now=now)


def record(database: Database, header: InstanceHeader, file: StoredFile, arrival: Arrival) -> Recording:
    with database.write() as connection:
        return record_instance(connection, header, file, arrival)


def dump(database: Database) -> dict[str, list[Any]]:
    with database.read() as connection:
        return {name: list(connection.execute(select(table))) for name, table in metadata.tables.items()}


def move(database: Database, series_id: int, states: Iterable[str]) -> None:
    for state in states:
        with database.write() as connection:
            set_series_state(connection, series_id, state, f"for {state}")


def test_a_new_instance_makes_its_rows(database: Database, association_id: int) -> None:
    file = make_file()
    assert record(database, make_header(expected=47), file, make_arrival(association_id)) == Recording(
        Recorded.NEW, file.file_name
    )
    with database.read() as connection:
        found = fetch_series(connection, f"{ROOT}.3")
        assert is_indexed(connection, file.file_name)
    assert found.patient == PATIENT
    assert found.row.study_uid == f"{ROOT}.2"
    assert (found.row.state, found.row.modality, found.row.description) == ("receiving", "PT", "FDG brain")
    assert (found.row.expected_instances, found.row.instance_count) == (47, 1)
    assert found.row.summary == {"ImageType": ["ORIGINAL", "PRIMARY"]}
    assert (found.row.calling_ae, found.row.first_received_at, found.row.last_received_at) == ("SCANNER", 100.0, 100.0)


def test_instances_of_one_series_share_its_row(database: Database, association_id: int) -> None:
    for number in (3, 1, 2):
        record(database, make_header(number), make_file(str(number)), make_arrival(association_id, 100.0 + number))
    with database.read() as connection:
        (row,) = fetch_series_rows(connection)
        assert fetch_instance_uids(connection, row.id) == [f"{ROOT}.3.{number}" for number in (1, 2, 3)]
    assert (row.instance_count, row.first_received_at, row.last_received_at) == (3, 103.0, 103.0)


def test_identical_bytes_change_nothing(database: Database, association_id: int) -> None:
    file = make_file()
    record(database, make_header(), file, make_arrival(association_id))
    before = dump(database)
    again = record(database, make_header(), make_file(), make_arrival(association_id, 500.0))
    assert again == Recording(Recorded.IDENTICAL, file.file_name)
    assert dump(database) == before


@pytest.mark.parametrize("other", [make_file("b"), make_file("a", IMPLICIT)], ids=["bytes", "transfer syntax"])
def test_other_content_is_a_conflict_kept_once(database: Database, association_id: int, other: StoredFile) -> None:
    record(database, make_header(), make_file(), make_arrival(association_id))
    before = dump(database)
    assert record(database, make_header(), other, make_arrival(association_id)).kind is Recorded.CONFLICT
    same = replace(other, file_name=make_file().file_name)
    assert record(database, make_header(), same, make_arrival(association_id)).kind is Recorded.KNOWN_CONFLICT
    after = dump(database)
    assert [row.file_name for row in after.pop("conflicts")] == [other.file_name]
    assert before.pop("conflicts") == []
    assert after == before
    with database.read() as connection:
        assert is_conflict(connection, other.file_name)
        assert not is_conflict(connection, same.file_name)
        assert not is_indexed(connection, other.file_name)


def test_our_own_output_is_counted_and_not_recorded(database: Database, association_id: int) -> None:
    record(database, make_header(), make_file(), make_arrival(association_id))
    values = {"kind": "pt", "sop_class_uid": "1.2", "series_uid": "1.2", "transfer_syntax_uid": "1.2", "path": "x"}
    with database.write() as connection:
        pair = {"input_digest": "d", "state": "ready", "explanation": {}, "created_at": 1.0}
        connection.execute(insert(pairs).values(id=1, fixed_series_id=1, moving_series_id=1, **pair))
        connection.execute(insert(jobs).values(id=1, pair_id=1, state="done", not_before=0.0, created_at=1.0))
        uid = f"{ROOT}.99.1"
        connection.execute(insert(outputs).values(job_id=1, sop_instance_uid=uid, size_bytes=1, sha256="s", **values))
    before = dump(database)
    returned = make_header(1, series=f"{ROOT}.99")
    assert record(database, returned, make_file("b"), make_arrival(association_id)).kind is Recorded.OWN_OUTPUT
    after = dump(database)
    assert [row.returned for row in after.pop("outputs")] == [1]
    del before["outputs"]
    assert after == before


@pytest.mark.parametrize("is_same", [True, False])
def test_one_of_many_that_bring_one_uid_at_once_is_new(database: Database, is_same: bool) -> None:
    senders = 6
    associations = [associate(database) for _ in range(senders)]
    start = threading.Barrier(senders)
    found: list[Recorded] = []

    def send(number: int) -> None:
        file = make_file("a" if is_same else str(number))
        start.wait(10)
        found.append(record(database, make_header(), file, make_arrival(associations[number])).kind)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    other = Recorded.IDENTICAL if is_same else Recorded.CONFLICT
    assert sorted(found, key=str) == sorted([Recorded.NEW, *[other] * (senders - 1)], key=str)
    with database.read() as connection:
        (row,) = fetch_series_rows(connection)
        assert row.instance_count == 1


def test_many_associations_fill_one_series_at_once(database: Database) -> None:
    senders, each = 5, 6
    associations = [associate(database) for _ in range(senders)]
    start = threading.Barrier(senders)

    def send(sender: int) -> None:
        start.wait(10)
        for number in range(sender * each, (sender + 1) * each):
            record(database, make_header(number), make_file(str(number)), make_arrival(associations[sender]))

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with database.read() as connection:
        (row,) = fetch_series_rows(connection)
    assert row.instance_count == senders * each


JUDGED = [("complete",), ("complete", "paired"), ("complete", "unpaired"), ("refused",)]


@pytest.mark.parametrize("states", JUDGED)
def test_a_late_instance_lets_a_series_be_judged_again(
    database: Database, association_id: int, states: tuple[str, ...]
) -> None:
    record(database, make_header(1), make_file("1"), make_arrival(association_id))
    move(database, 1, states)
    record(database, make_header(2), make_file("2"), make_arrival(association_id, 200.0))
    with database.read() as connection:
        (row,) = fetch_series_rows(connection, ["receiving"])
    assert (row.reason, row.instance_count, row.last_received_at) == ("", 2, 200.0)


@pytest.mark.parametrize("states", JUDGED)
def test_a_duplicate_does_not_wake_a_series(database: Database, association_id: int, states: tuple[str, ...]) -> None:
    record(database, make_header(1), make_file("1"), make_arrival(association_id))
    move(database, 1, states)
    record(database, make_header(1), make_file("1"), make_arrival(association_id, 200.0))
    record(database, make_header(1), make_file("x"), make_arrival(association_id, 200.0))
    with database.read() as connection:
        (row,) = fetch_series_rows(connection)
    assert (row.state, row.last_received_at) == (states[-1], 100.0)


@pytest.mark.parametrize("states", [(), *JUDGED])
@pytest.mark.parametrize(
    ("stranger", "reason"),
    [
        (make_header(2, patient=OTHER_PATIENT), MIXED_PATIENTS),
        (make_header(2, patient=replace(PATIENT, birth_date="19700101")), MIXED_PATIENTS),
        (make_header(2, study=f"{ROOT}.5"), MIXED_STUDIES),
    ],
    ids=["patient", "birth date", "study"],
)
def test_a_series_of_two_patients_or_studies_is_refused_for_good(
    database: Database, association_id: int, states: tuple[str, ...], stranger: InstanceHeader, reason: str
) -> None:
    record(database, make_header(1), make_file("1"), make_arrival(association_id))
    move(database, 1, states)
    assert record(database, stranger, make_file("2"), make_arrival(association_id)).kind is Recorded.NEW
    record(database, make_header(3), make_file("3"), make_arrival(association_id))
    with database.read() as connection:
        found = fetch_series(connection, f"{ROOT}.3")
    assert (found.row.state, found.row.reason, found.row.instance_count) == ("refused", reason, 3)
    assert found.patient == PATIENT
    with pytest.raises(StateError), database.write() as connection:
        set_series_state(connection, 1, "receiving")


@pytest.mark.parametrize("states", [(), *JUDGED])
@pytest.mark.parametrize(
    ("patient", "is_refused"),
    [(OTHER_PATIENT, True), (replace(PATIENT, name="Roe^Jane", issuer="ELSEWHERE"), False)],
    ids=["another PatientID", "coerced by an archive"],
)
def test_a_series_that_comes_again_under_another_patient_id_is_refused(
    database: Database, association_id: int, states: tuple[str, ...], patient: PatientIdentity, is_refused: bool
) -> None:
    other_series = replace(make_header(9).series, series_uid=f"{ROOT}.9")
    record(database, replace(make_header(9), series=other_series), make_file("9"), make_arrival(association_id))
    record(database, make_header(1), make_file("1"), make_arrival(association_id))
    move(database, 2, states)
    again = record(database, make_header(1, patient=patient), make_file("x"), make_arrival(association_id))
    assert again.kind is Recorded.CONFLICT
    with database.read() as connection:
        unconcerned, found = fetch_series_rows(connection)
    assert unconcerned.state == "receiving"
    assert (found.state == "refused" and found.reason == RENAMED_PATIENT) == is_refused
    assert found.patient_key == unconcerned.patient_key


STATES = sorted(SERIES_MOVES)
ROUTES: dict[str, tuple[str, ...]] = {
    "receiving": (),
    "complete": ("complete",),
    "paired": ("complete", "paired"),
    "unpaired": ("complete", "unpaired"),
    "refused": ("refused",),
    "deleted": ("complete", "unpaired", "deleted"),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(STATES, STATES)))
def test_a_state_moves_as_the_table_allows(database: Database, association_id: int, old: str, new: str) -> None:
    record(database, make_header(), make_file(), make_arrival(association_id))
    move(database, 1, ROUTES[old])
    before = dump(database)
    if new in SERIES_MOVES[old]:
        move(database, 1, [new])
        with database.read() as connection:
            row = fetch_series_by_id(connection, 1).row
        assert (row.state, row.reason) == (new, f"for {new}")
    else:
        with pytest.raises(StateError, match=f"{old} .* does not become {new}"):
            move(database, 1, [new])
        assert dump(database) == before


def test_open_series_tell_what_goes_on_in_them_and_their_study(database: Database) -> None:
    first, second = associate(database), associate(database)
    record(database, make_header(1, series=f"{ROOT}.31"), make_file("1"), make_arrival(first, 100.0))
    record(database, make_header(2, series=f"{ROOT}.31"), make_file("2"), make_arrival(second, 110.0))
    record(database, make_header(1, series=f"{ROOT}.32"), make_file("3"), make_arrival(second, 120.0))
    record(database, make_header(1, series=f"{ROOT}.33", study=f"{ROOT}.9"), make_file("4"), make_arrival(first, 130.0))
    with database.write() as connection:
        close_association(connection, first, 140.0)
        close_association(connection, first, 150.0)
    with database.read() as connection:
        one, two, three = (asdict(found) for found in fetch_open_series(connection))
    none = {"commitment_requested": 0}
    both = {"last_received_at": 110.0, "open_associations": 1, "last_closed_at": 140.0, **none}
    study = {"instance_count": 3, "last_received_at": 120.0, "open_associations": 1, "last_closed_at": 140.0, **none}
    assert (one["series"], one["study"]) == ({"instance_count": 2, **both}, study)
    alone = {"instance_count": 1, "last_received_at": 120.0, "open_associations": 1, "last_closed_at": None, **none}
    assert (two["series"], two["study"]) == (alone, study)
    ended = {"instance_count": 1, "last_received_at": 130.0, "open_associations": 0, "last_closed_at": 140.0, **none}
    assert (three["series"], three["study"]) == (ended, ended)


def test_associations_of_dead_processes_are_closed(database: Database) -> None:
    alive, dead = "a" * 32, "d" * 32
    ids = [associate(database, alive), associate(database, dead), associate(database, dead)]
    with database.write() as connection:
        close_association(connection, ids[2], 95.0)
        assert close_lost_associations(connection, [alive], 200.0) == 1
    assert [row.closed_at for row in sorted(dump(database)["associations"])] == [None, 200.0, 95.0]


def test_the_largest_count_a_series_claims_is_expected(database: Database, association_id: int) -> None:
    for number, expected in enumerate((None, 40, 47, None, 40)):
        file = make_file(str(number))
        record(database, make_header(number, expected=expected), file, make_arrival(association_id))
    with database.read() as connection:
        (row,) = fetch_series_rows(connection)
    assert row.expected_instances == 47


def test_listings_hold_no_identity(database: Database, association_id: int) -> None:
    record(database, make_header(), make_file(), make_arrival(association_id))
    with database.read() as connection:
        listing = repr(fetch_series_rows(connection)) + repr(fetch_open_series(connection))
        (found,) = fetch_identified_series(connection, ["receiving"])
        assert fetch_identified_series(connection, ["complete"]) == []
    assert found.patient == PATIENT
    assert not [value for value in asdict(PATIENT).values() if len(value) > 1 and value in listing]


def test_two_identities_with_one_patient_id_are_two_rows(database: Database, association_id: int) -> None:
    other = replace(PATIENT, name="Doe^Joan")
    record(database, make_header(series=f"{ROOT}.31"), make_file("1"), make_arrival(association_id))
    record(database, make_header(series=f"{ROOT}.32", patient=other), make_file("2"), make_arrival(association_id))
    record(database, make_header(series=f"{ROOT}.33"), make_file("3"), make_arrival(association_id))
    with database.read() as connection:
        keys = [row.patient_key for row in fetch_series_rows(connection)]
    assert keys[0] == keys[2] != keys[1]


def test_paths_of_a_series(database: Database, association_id: int, tmp_path: Any) -> None:
    store = Store(tmp_path / "root")
    store.make_folders()
    files = [make_file("1"), make_file("2")]
    for number, file in enumerate(files):
        record(database, make_header(number), file, make_arrival(association_id))
    with database.read() as connection:
        assert fetch_instance_paths(connection, store, 1) == [store.instance_path(file.file_name) for file in files]


def test_an_unknown_series_is_named(database: Database) -> None:
    with database.read() as connection, pytest.raises(StateError, match=r"'1\.2\.3': none received"):
        fetch_series(connection, "1.2.3")


def test_hostile_text_stays_text(database: Database, association_id: int) -> None:
    hostile = "x'); DROP TABLE series; --"
    header = make_header(patient=replace(PATIENT, name=hostile))
    record(database, header, make_file(), Arrival(association_id, "a' OR 1=1--", 100.0))
    with database.read() as connection:
        found = fetch_series(connection, f"{ROOT}.3")
        assert connection.execute(text("SELECT count(*) FROM series")).scalar_one() == 1
    assert (found.patient.name, found.row.calling_ae) == (hostile, "a' OR 1=1--")


WORDS = st.lists(st.sampled_from("MPR"), min_size=1, max_size=3)
SUMMARIES = st.fixed_dictionaries(
    {},
    optional={
        "ImageType": WORDS,
        "SequenceVariant": WORDS,
        "EchoTime": st.sampled_from((3.0, 9.0)),
        "PixelSpacing": st.just([1.0, 0.5]),
    },
)


@given(said=st.lists(SUMMARIES, min_size=2, max_size=5), order=st.randoms())
def test_what_a_series_says_does_not_depend_on_which_instance_came_first(
    said: list[Mapping[str, Any]], order: Random
) -> None:
    otherwise = list(said)
    order.shuffle(otherwise)
    assert reduce(merge_summaries, otherwise) == reduce(merge_summaries, said)
