"""The spool of the audit trail, and which transfers it tells of, on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dicomnode.database.audit import (
    ChannelClaim,
    ChannelState,
    claim_channel,
    fetch_channel_states,
    fetch_messages,
    fetch_patient_ids,
    give_up_oldest,
    has_untold,
    open_audit,
    record_message,
    release_channel,
    remove_messages,
    take_received,
    take_sent,
)
from dicomnode.database.engine import Database
from dicomnode.database.index import close_association
from dicomnode.database.outbox import add_outbox_rows, claim_outbox, record_all_sent
from dicomnode.errors import LeaseLostError
from tests.rows import MR, MR_CLASS, PATIENT, PET, PET_CLASS, add_finished_job, due, receive

LEASE_S, WAIT_AT_MOST_S = 60.0, 3600.0


def _open(database: Database, *channels: str) -> None:
    with database.write() as connection:
        open_audit(connection, channels, 0.0)


def _record(database: Database, *texts: str, channel: str = "file", now: float = 1.0) -> None:
    with database.write() as connection:
        for text in texts:
            record_message(connection, [channel], text, now)


def _claim(database: Database, now: float = 10.0, channel: str = "file") -> ChannelClaim | None:
    return claim_channel(database, channel, now, LEASE_S, WAIT_AT_MOST_S)


def _waiting(database: Database, channel: str = "file") -> list[str]:
    with database.read() as connection:
        return [message.text for message in fetch_messages(connection, channel, 100)]


def test_an_association_is_told_of_once_when_it_has_ended(database: Database) -> None:
    _open(database, "file")
    first = receive(database, MR, now=1.0, stays_open=True)
    second = receive(database, replace(PET, slices=4), now=2.0, calling_ae="PETCT")
    with database.write() as connection:
        assert has_untold(connection)
        (told,) = take_received(connection)
        assert not has_untold(connection)
        close_association(connection, first, 9.0)
        (later,) = take_received(connection)
        assert take_received(connection) == []
        patient_ids = fetch_patient_ids(connection, [told.patient_row])
    assert second != first
    assert (told.calling_ae, told.address, told.study_uid, told.at) == ("PETCT", "127.0.0.1", "1.2.3.2", 2.0)
    assert told.sop_classes == {PET_CLASS: 4}
    assert (later.calling_ae, later.sop_classes, later.at) == ("SCANNER", {MR_CLASS: 10}, 9.0)
    assert patient_ids == {told.patient_row: PATIENT.patient_id}


def test_what_was_transferred_before_there_was_a_trail_is_not_told_of(database: Database) -> None:
    receive(database, MR, now=1.0)
    _, output_ids = add_finished_job(database, ("pt",))
    _send(database, output_ids)
    _open(database, "file")
    with database.write() as connection:
        assert (take_received(connection), take_sent(connection, 99.0, 0.0)) == ([], [])
    receive(database, PET, now=2.0)
    _open(database, "file", "syslog")  # one more, and a restart
    with database.write() as connection:
        assert [told.study_uid for told in take_received(connection)] == ["1.2.3.2"]


def test_studies_of_one_association_are_told_of_apart(database: Database) -> None:
    _open(database, "file")
    association_id = receive(database, MR, now=1.0)
    other = receive(database, PET, now=1.0)
    with database.write() as connection:
        told = take_received(connection)
    assert association_id != other
    assert sorted(one.study_uid for one in told) == ["1.2.3.1", "1.2.3.2"]


def _send(database: Database, output_ids: list[int], *, first: int = 100, now: float = 50.0) -> None:
    with database.write() as connection:
        add_outbox_rows(connection, output_ids, ["pacs"], now=30.0)
    rows = claim_outbox(database, due(now=now), 100)[:first]
    with database.write() as connection:
        record_all_sent(connection, rows, now)


def test_what_a_destination_takes_is_told_of_by_job_when_all_is_there_or_a_wait_is_over(database: Database) -> None:
    _open(database, "file")
    job_id, output_ids = add_finished_job(database, ("pt", "pt", "rgb"))
    _send(database, output_ids, first=1)
    with database.write() as connection:
        assert take_sent(connection, 109.0, 60.0) == []
        (told,) = take_sent(connection, 110.0, 60.0)
        assert take_sent(connection, 110.0, 60.0) == []
    assert (told.job_id, told.destination, told.sop_classes, told.at) == (job_id, "pacs", {PET_CLASS: 1}, 50.0)
    _send(database, output_ids, now=200.0)
    with database.write() as connection:
        (rest,) = take_sent(connection, 200.0, 60.0)
    assert rest.sop_classes == {PET_CLASS: 2}


def test_several_nodes_tell_of_a_transfer_once(database: Database) -> None:
    _open(database, "file")
    for number in range(6):
        receive(database, replace(MR, number=number, study=number + 20, slices=1), now=1.0)

    def node(_: int) -> list[str]:
        with database.write() as connection:
            return [told.study_uid for told in take_received(connection)]

    with ThreadPoolExecutor(4) as threads:
        told = [study_uid for found in threads.map(node, range(8)) for study_uid in found]
    assert sorted(told) == [f"1.2.3.{number + 20}" for number in range(6)]


def test_a_channel_is_held_by_one_sender_and_gives_its_messages_in_order(database: Database) -> None:
    _open(database, "file", "syslog")
    assert _claim(database) is None  # nothing waits
    _record(database, "a", "b", "c")
    claim = _claim(database)
    assert claim == ChannelClaim("file", 1, 0)
    assert _claim(database, 69.0) is None
    assert _claim(database, channel="syslog") is None
    with database.write() as connection:
        first, second, _ = fetch_messages(connection, "file", 3)
        remove_messages(connection, claim, [first, second], 80.0)
    assert _waiting(database) == ["c"]
    late = _claim(database, 81.0)
    assert late is not None
    with pytest.raises(LeaseLostError, match="audit channel file: token 1"), database.write() as connection:
        remove_messages(connection, claim, fetch_messages(connection, "file", 1), 90.0)
    assert _waiting(database) == ["c"]


def test_a_channel_that_failed_waits_and_says_why(database: Database) -> None:
    _open(database, "file")
    _record(database, "a")
    claim = _claim(database)
    assert claim is not None
    with database.write() as connection:
        release_channel(connection, claim, not_before=100.0, attempts=1, reason="no answer")
    with database.read() as connection:
        assert fetch_channel_states(connection) == [ChannelState("file", 1, "no answer")]
    assert _claim(database, 99.0) is None
    assert _claim(database, -WAIT_AT_MOST_S + 99.0) is not None  # the clock was put back further than there is a wait
    again = _claim(database, 100.0 + 4 * LEASE_S)
    assert again is not None
    assert again.attempts == 1
    with database.write() as connection:
        remove_messages(connection, again, fetch_messages(connection, "file", 9), 400.0)
    with database.read() as connection:
        assert fetch_channel_states(connection) == [ChannelState("file", 0, "")]


def test_the_oldest_is_given_up_beyond_a_bound_with_a_tenth_besides(database: Database) -> None:
    _open(database, "file", "syslog")
    for number in range(20):
        _record(database, str(number), now=float(number))
    _record(database, "other", channel="syslog")
    with database.write() as connection:
        assert give_up_oldest(connection, "file", 20) is None
    _record(database, "20", now=20.0)
    with database.write() as connection:
        assert give_up_oldest(connection, "file", 20) == (3, 0.0, 2.0)
        assert give_up_oldest(connection, "syslog", 20) is None
    assert _waiting(database) == [str(number) for number in range(3, 21)]
    assert _waiting(database, "syslog") == ["other"]
