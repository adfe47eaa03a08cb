"""Storage commitment that peers ask of the node, as rows, alike on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dicomnode.commitment import Reference, Request
from dicomnode.database.commitment_requests import (
    CommitmentRequest,
    claim_requests,
    extend_requests,
    fetch_conflicting,
    fetch_held,
    fetch_told_peers,
    fetch_untold,
    finish_request,
    has_due_requests,
    put_due_requests_off,
    record_request,
    release_requests,
)
from dicomnode.database.deletions import NewDeletion, delete_outputs
from dicomnode.database.engine import Database
from dicomnode.database.refusals import Refused, clear_refusals, fetch_refusals, is_refused, record_refusal
from dicomnode.database.store import Store
from dicomnode.database.turns import Turn
from dicomnode.errors import CommitmentRefusedError, LeaseLostError
from tests.rows import MR, MR_CLASS, add_finished_job, receive

NOW = 50.0
FIRST, SECOND = Reference("1.2.840", "1.2.3.1"), Reference("1.2.840", "1.2.3.2")


def _ask(database: Database, *named: Reference, uid: str = "1.9", peer: str = "scanner", at_most: int = 10) -> None:
    with database.write() as connection:
        record_request(connection, peer, Request(uid, named or (FIRST, SECOND)), NOW, at_most)


def _turn(now: float = NOW) -> Turn:
    return Turn("scanner", now, lease_s=60.0, wait_at_most_s=3600.0)


def _claim(database: Database, now: float = NOW) -> list[CommitmentRequest]:
    return claim_requests(database, _turn(now), 20)


def _finish(database: Database, request: CommitmentRequest, state: str = "reported") -> None:
    with database.write() as connection:
        finish_request(connection, request, state, NOW, "")


def test_a_request_is_owed_until_it_is_reported(database: Database) -> None:
    _ask(database)

    [request] = _claim(database)
    assert (request.references, request.attempts, request.is_duplicate) == ((FIRST, SECOND), 1, False)
    assert _claim(database) == []
    _finish(database, request)

    with database.read() as connection:
        assert fetch_told_peers(connection) == set()
        assert not has_due_requests(connection, _turn(NOW + 1e4))
    with pytest.raises(LeaseLostError):
        _finish(database, request)


def test_the_same_request_again_is_one_report_while_it_is_owed_and_another_after(database: Database) -> None:
    _ask(database, at_most=2)
    _ask(database, SECOND, FIRST, at_most=2)
    [request] = _claim(database)
    _finish(database, request, "failed")
    _ask(database)

    [again] = _claim(database)
    assert (again.id, again.references, again.attempts, again.state) == (request.id, (FIRST, SECOND), 1, "owed")


def test_a_transaction_in_use_for_other_instances_is_a_duplicate(database: Database) -> None:
    _ask(database)
    _ask(database, FIRST)
    _ask(database, FIRST, peer="other")

    assert [one.is_duplicate for one in _claim(database)] == [False, True]


def test_no_more_waits_for_one_peer_than_may(database: Database) -> None:
    _ask(database, at_most=3)
    _ask(database, peer="other", at_most=3)

    with pytest.raises(CommitmentRefusedError, match="2 instances wait to be reported, and 2 are asked for"):
        _ask(database, uid="1.8", at_most=3)
    _ask(database, FIRST, uid="1.8", at_most=3)
    for request in _claim(database):
        _finish(database, request)
    _ask(database, uid="1.7", at_most=3)


def test_reports_that_are_due_share_a_failed_association(database: Database) -> None:
    _ask(database)
    _ask(database, uid="1.8")
    claimed = _claim(database)

    def fail(not_before: float | None, attempts_at_most: int = 2) -> int:
        with database.write() as connection:
            release_requests(connection, claimed)
            return put_due_requests_off(connection, _turn(), "nobody listens there", not_before, attempts_at_most)

    assert fail(NOW) == 0
    claimed = _claim(database)
    assert [(one.state, one.attempts, one.reason) for one in claimed] == [("retry", 2, "nobody listens there")] * 2
    assert fail(NOW) == 2
    assert _claim(database, NOW + 1e4) == []
    _ask(database)
    claimed = _claim(database)
    assert fail(None) == 1


def test_an_extended_lease_keeps_the_requests_that_are_held(database: Database) -> None:
    for number in range(3):
        _ask(database, uid=f"1.{number}")
    claimed = _claim(database)
    [other] = claim_requests(database, _turn(NOW + 61.0), 1)

    assert extend_requests(database, claimed, NOW + 160.0) == {one.id for one in claimed} - {other.id}
    assert [one.id for one in _claim(database, NOW + 125.0)] == [other.id]
    assert extend_requests(database, [], NOW + 160.0) == set()


def test_who_has_not_taken_a_report_is_known_until_it_has(database: Database) -> None:
    def untold() -> list[tuple[str, int, str, bool]]:
        with database.read() as connection:
            return [(one.peer, one.requests, one.reason, one.has_taken_since) for one in fetch_untold(connection)]

    _ask(database)
    _ask(database, uid="1.8")
    assert untold() == []
    first, second = _claim(database)
    with database.write() as connection:
        finish_request(connection, first, "failed", NOW, "status 0x0112")
        finish_request(connection, second, "failed", NOW, "status 0x0110")
    assert untold() == [("scanner", 2, "status 0x0110", False)]

    with database.write() as connection:
        record_request(connection, "scanner", Request("1.7", (FIRST,)), NOW + 1.0, 10)
    [third] = _claim(database, NOW + 1.0)
    _finish(database, third)
    assert untold() == [("scanner", 2, "status 0x0110", True)]

    _ask(database)  # the same again
    [again] = _claim(database)
    _finish(database, again)
    assert untold() == [("scanner", 1, "status 0x0110", True)]


def test_who_is_refused_is_known_until_one_is_taken(database: Database) -> None:
    who = Refused("SCANNER", "10.1.2.8", "request")

    def refusals() -> list[tuple[str, int, str, float, float]]:
        with database.read() as connection:
            found = fetch_refusals(connection)
        return [(one.kind, one.refused, one.reason, one.first_at, one.last_at) for one in found]

    with database.write() as connection:
        for now in (5.0, 6.0):
            record_refusal(connection, who, f"at {now:g}", now)
        record_refusal(connection, replace(who, kind="report"), "nobody was asked", 7.0)
        record_refusal(connection, replace(who, calling_ae="OTHER"), "too many", 8.0)
    assert refusals() == [
        ("request", 2, "at 6", 5.0, 6.0),
        ("report", 1, "nobody was asked", 7.0, 7.0),
        ("request", 1, "too many", 8.0, 8.0),
    ]
    with database.write() as connection:
        clear_refusals(connection, who)
        assert not is_refused(connection, who)
        assert is_refused(connection, replace(who, kind="report"))
    assert [row[2] for row in refusals()] == ["nobody was asked", "too many"]


def test_what_is_kept_is_found_as_received_or_as_made(database: Database, tmp_path: Path) -> None:
    receive(database, MR, now=1.0)
    add_finished_job(database, ("pt",))
    store = Store(tmp_path)
    received, made = MR.instance(1).sop_instance_uid, "1.2.4.1.1"

    with database.read() as connection:
        held = fetch_held(connection, store, [Reference(MR_CLASS, received), Reference("1.2", made), FIRST])
        assert fetch_conflicting(connection, [FIRST]) == set()

    assert held.keys() == {received, made}
    assert (held[received].sop_class_uid, held[received].sha256) == (MR_CLASS, f"{1:064x}")
    assert (held[made].path, held[made].is_of_whole_file) == (tmp_path / "outputs/1/pt-0001.dcm", True)


def test_a_result_whose_file_was_deleted_is_not_held_any_more(database: Database, tmp_path: Path) -> None:
    job_id, _ = add_finished_job(database, ("pt",))
    named = [Reference("1.2", f"1.2.4.{job_id}.1")]
    with database.read() as connection:
        assert fetch_held(connection, Store(tmp_path), named).keys() == {named[0].sop_instance_uid}

    with database.write() as connection:
        delete_outputs(connection, job_id, NewDeletion("outputs", str(job_id), "", 0), [], NOW)
        assert fetch_held(connection, Store(tmp_path), named) == {}
