"""What is owed to peers that were taken out of the settings ends, and says why; on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomnode.commitment import Reference, Report, Request
from dicomnode.database.commitment_requests import record_request
from dicomnode.database.commitments import owe_commitments, take_report
from dicomnode.database.engine import Database
from dicomnode.database.outbox import claim_outbox, record_all_sent, retry_dead_rows
from dicomnode.database.queries import add_query
from dicomnode.database.retained import fetch_output_facts, fetch_series_facts
from dicomnode.database.series import fetch_series
from dicomnode.database.unnamed import OLD_S
from dicomnode.housekeeping.service import HousekeepingService
from dicomnode.settings import DestinationSettings, NodeSettings, PeerSettings, Settings
from dicomnode.settings_keeping import RetentionSettings
from tests.house import House, fetch_all
from tests.rows import due


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "root", database) as opened:
        yield opened


def _settings(house: House, *names: str) -> Settings:
    return Settings(
        node=NodeSettings(storage_root=house.root),
        peers=tuple(
            PeerSettings(
                name=name,
                ae_title=name.upper(),
                host="127.0.0.1",
                port=104,
                may=("store", "receive"),
                answers=("find",),
            )
            for name in names
        ),
        destinations=tuple(DestinationSettings(peer=name, commitment=name) for name in names),
        retention=RetentionSettings(hold_hours=1.0),  # of a node that starts, or whose clock was put forward
    )


def _send(house: House, name: str) -> None:
    rows = claim_outbox(house.database, due(name, house.now), 100)
    with house.database.write() as connection:
        assert len(record_all_sent(connection, rows, house.now, owes_commitment=True)) == 2


def _owe_everything(house: House, name: str, number: int) -> None:
    """Owe a peer one of each: a request to commit, one that is not opened yet, a result, a question, a report."""
    for place in range(3):
        house.finish(house.pair(number + place)[0], owed_to=(name,))
        if place < 2:
            _send(house, name)
        if place == 0:
            with house.database.write() as connection:
                assert len(owe_commitments(connection, name, name, house.now)) == 1
    uid = house.receive("MR", number * 10 + 90)
    house.settle(uid, "unpaired")
    with house.database.write() as connection:
        add_query(connection, "priors", fetch_series(connection, uid).row.id, name, house.now)
        record_request(connection, name, Request("1.2.3", (Reference("1.2", f"1.3.{number}"),)), house.now, 100)


def _look(house: House, settings: Settings, later_s: float) -> None:
    """Let a process look at what is owed that has seen so many seconds pass."""
    service = HousekeepingService(settings, house.database, house.clock, house.clock)
    service._end_unnamed()
    house.now += later_s
    service._end_unnamed()


def _states(house: House, name: str) -> list[tuple[str, str]]:
    rows = fetch_all(house.database)
    found = [(row["state"], row["reason"]) for row in rows["outbox"] if row["destination"] == name]
    for table in ("commitments", "queries", "commitment_requests"):
        found += [(row["state"], row["reason"]) for row in rows[table] if row["peer"] == name]
    return found


def test_what_nobody_tries_any_more_ends_after_a_day_and_says_why(house: House) -> None:
    _owe_everything(house, "gone", 1)
    _owe_everything(house, "kept", 5)
    kept = _states(house, "kept")
    gone = _states(house, "gone")

    _look(house, _settings(house, "kept"), OLD_S - 60.0)
    assert _states(house, "gone") == gone

    _look(house, _settings(house, "gone", "kept"), 120.0)
    assert _states(house, "gone") == gone

    _look(house, _settings(house, "kept"), 1.0)
    assert _states(house, "kept") == kept
    not_asked = ("sent", "not committed: gone is not asked to commit any more")
    nobody = ("sent", "not committed: nobody is asked to commit it any more")
    none = ("dead", "it is no destination any more; name it in [[destinations]], then: dicomnode outbox retry")
    assert _states(house, "gone") == [
        *[not_asked] * 2,
        *[nobody] * 2,
        *[none] * 2,
        ("dead", "gone is not asked to commit any more"),
        ("failed", "it is not asked any more: no [[peers]] of this name has answers = [...]"),
        ("failed", "it cannot be told any more: no [[peers]] of this name has a host"),
    ]
    with house.database.read() as connection:
        open_of = [(one.job.outbox, one.job.id) for one in fetch_output_facts(connection)]
        assert [of for of, _ in open_of[:3]] == [{"sent": 2}, {"sent": 2}, {"dead": 2}]
        assert sum(facts.open_questions for facts in fetch_series_facts(connection)) == 1
    with house.database.write() as connection:
        assert retry_dead_rows(connection, "gone", house.now) == 2


def test_a_clock_that_is_put_forward_ends_nothing(house: House) -> None:
    _owe_everything(house, "gone", 1)
    before = _states(house, "gone")
    service = HousekeepingService(_settings(house), house.database, house.clock, lambda: 0.0)
    service._end_unnamed()

    house.now += 30 * OLD_S
    service._end_unnamed()

    assert _states(house, "gone") == before


def test_a_report_that_comes_after_the_destination_is_gone_is_settled_all_the_same(house: House) -> None:
    house.finish(house.pair(1)[0], owed_to=("gone",))
    _send(house, "gone")
    with house.database.write() as connection:
        assert len(owe_commitments(connection, "gone", "gone", house.now)) == 1
    _look(house, _settings(house, "kept"), OLD_S + 60.0)
    [transaction] = fetch_all(house.database)["commitments"]
    safe, lost = (Reference(*row) for row in _made(house))
    take_report(house.database, Report(transaction["transaction_uid"], (safe,), {lost: 0x0112}), ["gone"])

    _look(house, _settings(house, "kept"), 60.0)

    assert _states(house, "gone") == [
        ("committed", ""),
        ("sent", "not committed: gone is not asked to commit any more"),
        ("dead", "gone is not asked to commit any more"),
    ]


def _made(house: House) -> list[tuple[str, str]]:
    return [(row["sop_class_uid"], row["sop_instance_uid"]) for row in fetch_all(house.database)["outputs"]]
