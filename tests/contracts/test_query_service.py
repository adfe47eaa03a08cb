"""The senders' questions: what is asked again, given up, and left alone, with a peer that is down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from numpy.random import default_rng

from dicomnode.database.engine import Database
from dicomnode.database.queries import Kind, Query, add_query, fetch_queries
from dicomnode.database.series import fetch_series
from dicomnode.send.queries import QueryService
from dicomnode.setting_values import Service
from dicomnode.settings import NodeSettings, PeerSettings, SendSettings, Settings
from tests.peers_programs import LOOPBACK, free_port
from tests.rows import PET, receive
from tests.waiting import wait_until


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _settings(root: Path, answers: tuple[Service, ...]) -> Settings:
    peer = PeerSettings(name="pacs", ae_title="PACS", host=LOOPBACK, port=free_port(), may=("store",), answers=answers)
    send = SendSettings(attempts=2, retry_first_s=10.0, timeout_s=2.0)
    return Settings(node=NodeSettings(storage_root=root), peers=(peer,), send=send)


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def service(database: Database, clock: _Clock, tmp_path: Path) -> Iterator[QueryService]:
    running = QueryService(_settings(tmp_path, ("find", "get")), database, clock, default_rng(0))
    yield running
    running.stop(5.0)


def _ask(database: Database, kind: Kind) -> int:
    receive(database, PET, now=1.0)
    with database.write() as connection:
        series_id = fetch_series(connection, PET.series_uid).row.id
        add_query(connection, kind, series_id, "pacs", 10.0)
    return series_id


def _query(database: Database, series_id: int) -> Query:
    with database.read() as connection:
        [query] = fetch_queries(connection, [series_id])
    return query


def _step_until(database: Database, service: QueryService, series_id: int, state: str) -> Query:
    service.step()
    wait_until(lambda: _query(database, series_id).state == state, 20, f"a query in {state}")
    return _query(database, series_id)


def test_a_search_is_asked_again_after_a_wait_and_given_up_after_its_attempts(
    database: Database, service: QueryService, clock: _Clock
) -> None:
    series_id = _ask(database, "priors")

    query = _step_until(database, service, series_id, "retry")
    assert (query.attempts, query.lease_until) == (1, None)
    assert 105.0 <= query.not_before <= 110.0
    assert "nobody listens" in query.reason
    clock.now = 111.0
    query = _step_until(database, service, series_id, "failed")
    assert (query.attempts, query.finished_at) == (2, 111.0)


def test_a_count_is_asked_for_once(database: Database, service: QueryService) -> None:
    assert _step_until(database, service, _ask(database, "count"), "failed").attempts == 1


def test_a_peer_that_does_not_answer_any_more_is_left_alone(
    database: Database, service: QueryService, tmp_path: Path
) -> None:
    series_id = _ask(database, "priors")
    service.reload(_settings(tmp_path, ()))

    service.step()
    service.stop(5.0)

    assert (_query(database, series_id).state, _query(database, series_id).attempts) == ("owed", 0)


def test_nothing_is_fetched_by_a_service_that_a_reload_took_away(
    database: Database, service: QueryService, tmp_path: Path
) -> None:
    series_id = _ask(database, "fetch")
    service.reload(_settings(tmp_path, ("find",)))

    query = _step_until(database, service, series_id, "failed")

    assert query.reason == 'pacs is not fetched from; add "move" or "get" to its answers = [...]'
